/** Programs that tests compile for themselves. */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmodSync, existsSync, lstatSync, mkdirSync, renameSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root } from './root.js';

/** Where they lie: readable for every user, as some of them run as another one. */
const folder = join(tmpdir(), `casemate-test-${process.geteuid?.()}`);

function compile(compiler: string, source: string, output: string, flags: readonly string[]): string {
  mkdirSync(folder, { recursive: true, mode: 0o755 });
  if (lstatSync(folder).uid !== process.geteuid?.()) throw new Error(`${folder} is somebody else's`);
  // Test files run at the same time: each sees the program whole or not at all.
  const path = join(folder, output);
  const unfinished = `${path}.${process.pid}`;
  const { status, stderr } = spawnSync(compiler, [source, '-o', unfinished, ...flags], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${source} does not compile:\n${stderr}`);
  chmodSync(unfinished, 0o755);
  renameSync(unfinished, path);
  return path;
}

/**
 * The path of a static program of test/programs, compiled once per version of its source and of what that includes, or
 * found where they are.
 */
export function program(name: string): string {
  const compiled = process.env.CASEMATE_TEST_PROGRAMS;
  if (compiled !== undefined) return join(compiled, name);
  const source = ['c', 'cpp'].map((kind) => join(root, `test/programs/${name}.${kind}`)).find(existsSync) ?? name;
  const headers = [...(source.endsWith('.cpp') ? ['-std=c++20'] : []), '-I', join(root, 'native')];
  const { status, stdout, stderr } = spawnSync('gcc', ['-E', '-P', source, ...headers], {
    encoding: 'utf8',
    maxBuffer: 2 ** 24,
  });
  if (status !== 0) throw new Error(`${source} does not compile:\n${stderr}`);
  const version = createHash('sha256').update(stdout).digest('hex').slice(0, 16);
  const output = `${name}-${version}`;
  const made = join(folder, output);
  const flags = ['-static', '-O1', '-Wall', '-Wextra', '-Werror', ...headers];
  return existsSync(made) ? made : compile(source.endsWith('.cpp') ? 'g++' : 'gcc', source, output, flags);
}

/** What a program of test/programs prints; it may include the headers of native/. */
export function printed(name: string): string {
  const source = join(root, `test/programs/${name}.cpp`);
  const path = compile('g++', source, name, ['-std=c++20', '-Wall', '-Wextra', '-Werror', '-I', join(root, 'native')]);
  const { status, stdout } = spawnSync(path, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${path} ended with ${status}`);
  return stdout;
}
