import type { BigIntStats } from 'node:fs';
import { constants, lstat, open, readdir, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { deviceNumbers } from '../host.js';
import { wrapFileError } from './files.js';
import { badEntry, type Entry, type Ownership, readRange } from './tree.js';

/**
 * What is in a directory, in the order of names: files, directories, symbolic links as they are, hard links, devices and
 * pipes. Sockets are left out: they mean nothing without who listens. Files are read when an image is written.
 *
 * @throws CasemateError ERR_CASEMATE_FILE for what cannot be read, ERR_CASEMATE_IMAGE for a name that is not UTF-8.
 */
export async function readDirectory(
  path: string,
  { ownership = 'root' }: { ownership?: Ownership } = {},
): Promise<Entry[]> {
  const entries: Entry[] = [];
  const linked = new Map<string, string>();
  await wrapFileError('from', path, () => walk(''));
  return entries;

  async function walk(directory: string): Promise<void> {
    const names = await readdir(join(path, directory), { encoding: 'buffer' });
    for (const name of names.sort(Buffer.compare)) {
      const text = name.toString();
      if (!Buffer.from(text).equals(name)) throw badEntry(text, 'has a name that is not UTF-8');
      await add(directory === '' ? text : `${directory}/${text}`);
    }
  }

  async function add(name: string): Promise<void> {
    const source = join(path, name);
    const stat = await lstat(source, { bigint: true });
    const owner = ownership === 'keep' ? { uid: Number(stat.uid), gid: Number(stat.gid) } : {};
    const common = { path: name, mode: Number(stat.mode & 0o7777n), ...owner };
    if (stat.isDirectory()) {
      entries.push({ type: 'directory', ...common });
      return walk(name);
    }
    if (stat.isSymbolicLink()) {
      entries.push({ type: 'symlink', path: name, target: await readlink(source), ...owner });
    } else if (stat.isFile()) {
      const first = stat.nlink > 1n ? linked.get(identity(stat)) : undefined;
      if (first !== undefined) return void entries.push({ type: 'link', path: name, target: first });
      linked.set(identity(stat), name);
      const contents = { size: Number(stat.size), stream: () => readFile(name, source, stat) };
      entries.push({ type: 'file', ...common, contents });
    } else if (stat.isCharacterDevice() || stat.isBlockDevice()) {
      const type = stat.isBlockDevice() ? 'block' : 'character';
      entries.push({ type, ...common, ...deviceNumbers(stat.rdev) });
    } else if (stat.isFIFO()) {
      entries.push({ type: 'fifo', ...common });
    }
  }
}

const identity = ({ dev, ino }: BigIntStats): string => `${dev}:${ino}`;

/** The file that was found there, and no other one. */
async function* readFile(name: string, path: string, found: BigIntStats): AsyncGenerator<Uint8Array> {
  const file = await wrapFileError('from', path, () => open(path, constants.O_RDONLY | constants.O_NOFOLLOW));
  try {
    const stat = await file.stat({ bigint: true });
    if (identity(stat) !== identity(found) || stat.size !== found.size)
      throw badEntry(name, 'changed while it was read');
    yield* readRange(file, 0, Number(found.size));
  } finally {
    await file.close();
  }
}
