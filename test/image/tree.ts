/** A tree of everything that images hold, and what archives and file systems make of it. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Entry } from 'casemate/image';
import type { ExecutionContext } from '../helpers/index.js';

export const tree: readonly Entry[] = [
  { type: 'file', path: 'usr/bin/hello', mode: 0o4755, contents: '#!/bin/sh\n' },
  { type: 'symlink', path: 'bin', target: 'usr/bin' },
  { type: 'directory', path: 'tmp', mode: 0o1777 },
  { type: 'file', path: 'etc/secret', mode: 0o600, contents: Buffer.from('ab') },
  { type: 'link', path: 'etc/same', target: 'etc/secret' },
  { type: 'file', path: 'etc/empty', contents: '' },
  { type: 'fifo', path: 'pipe' },
  { type: 'character', path: 'dev/console', mode: 0o600, major: 5, minor: 1 },
  { type: 'block', path: 'dev/vda', uid: 7, gid: 8, major: 254, minor: 0x12345 },
];

/** A folder that goes with its test. */
export function temporary(t: ExecutionContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-image-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  return folder;
}

/** What a program says. */
export function said(
  command: string,
  args: readonly string[],
  options: { cwd?: string; input?: Uint8Array } = {},
): string {
  const { stdout, stderr, status, error } = spawnSync(command, args, {
    ...options,
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
    env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin`, TZ: 'UTC', LC_ALL: 'C' },
  });
  if (status !== 0) throw new Error(`${command}: ${error?.message ?? (stderr || stdout)}`);
  return stdout;
}

/** What cpio(1) lists of an archive: `ls -l`, without dates. */
export function list(archive: Uint8Array): string[] {
  return said('cpio', ['--list', '--verbose', '--numeric-uid-gid', '--quiet'], { input: archive })
    .trim()
    .split('\n')
    .map((line) => line.replace('Jan  1  1970', '').replaceAll(/ +/g, ' '));
}

export async function collect(chunks: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const all: Uint8Array[] = [];
  for await (const chunk of chunks) all.push(chunk);
  return Buffer.concat(all);
}
