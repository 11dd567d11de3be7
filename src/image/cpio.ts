import { badEntry, completeTree, contentsOf, type Entry, type FileEntry, modeOf, sizeOf } from './tree.js';

/** File types of st_mode; inode(7). */
const typeBits: Readonly<Record<Exclude<Entry['type'], 'link'>, number>> = {
  fifo: 0o010000,
  character: 0o020000,
  directory: 0o040000,
  block: 0o060000,
  file: 0o100000,
  symlink: 0o120000,
};

/** Archives end at a multiple of this, as cpio(1) has it, and so another one can follow. */
const blockSize = 512;

/** Sizes are eight hexadecimal digits. */
const sizeMax = 0xffffffff;

/**
 * An archive as Linux takes it for an initrd: cpio, "newc" (the kernel's
 * Documentation/driver-api/early-userspace/buffer-format.rst). The same entries make the same bytes. Archives can be put
 * one behind the other; where a path is in two of them, the kernel takes the later one.
 *
 * @param entries - of files only those whose contents are in memory; {@link cpioStream} takes all.
 * @throws CasemateError ERR_CASEMATE_IMAGE for what cannot be in an archive.
 */
export function cpio(entries: Iterable<Entry>): Buffer {
  const pieces: Uint8Array[] = [];
  for (const piece of archive(entries)) {
    if (piece instanceof Uint8Array) pieces.push(piece);
    else throw badEntry(piece.path, 'is not in memory: this takes a stream');
  }
  return Buffer.concat(pieces);
}

/** The bytes of {@link cpio}, contents read as they are needed. */
export async function* cpioStream(entries: Iterable<Entry>): AsyncGenerator<Uint8Array, void, undefined> {
  for (const piece of archive(entries)) {
    if (piece instanceof Uint8Array) yield piece;
    else yield* contentsOf(piece);
  }
}

/** Headers and contents in turn; in the place of contents that are not in memory their file. */
function* archive(entries: Iterable<Entry>): Generator<Uint8Array | FileEntry, void, undefined> {
  const tree = completeTree(entries);
  const names = new Map<string, number>();
  for (const entry of tree) {
    if (entry.type === 'link') names.set(entry.target, (names.get(entry.target) ?? 1) + 1);
  }
  const inodes = new Map<string, Inode>();
  let size = 0;
  const sized = (piece: Uint8Array) => {
    size += piece.length;
    return piece;
  };
  for (const entry of tree) {
    // Of the names of a file the first brings the contents; the kernel knows the others by the inode.
    const inode: Inode =
      entry.type === 'link'
        ? { ...(inodes.get(entry.target) as Inode), size: 0 }
        : inodeOf(entry, inodes.size + 1, names.get(entry.path));
    if (entry.type !== 'link') inodes.set(entry.path, inode);
    yield sized(header(entry.path, inode));
    if (entry.type === 'symlink') yield sized(padded(Buffer.from(entry.target)));
    if (entry.type !== 'file') continue;
    if (typeof entry.contents === 'string' || entry.contents instanceof Uint8Array) {
      yield sized(padded(Buffer.from(entry.contents)));
    } else {
      yield entry;
      size += inode.size;
      yield sized(Buffer.alloc(-inode.size & 3));
    }
  }
  yield sized(header('TRAILER!!!', { number: 0, mode: 0, uid: 0, gid: 0, links: 1, size: 0, major: 0, minor: 0 }));
  yield Buffer.alloc(-size & (blockSize - 1));
}

interface Inode {
  readonly number: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly links: number;
  readonly size: number;
  readonly major: number;
  readonly minor: number;
}

function inodeOf(entry: Exclude<Entry, { type: 'link' }>, number: number, names = 1): Inode {
  const { type, path, uid = 0, gid = 0 } = entry;
  const size = type === 'file' ? sizeOf(entry) : type === 'symlink' ? Buffer.byteLength(entry.target) : 0;
  if (size > sizeMax) throw badEntry(path, 'is too big for a cpio archive, which holds files of less than 4 GiB');
  const mode = typeBits[type] | (type === 'symlink' ? 0o777 : modeOf(entry));
  const { major, minor } = type === 'character' || type === 'block' ? entry : { major: 0, minor: 0 };
  return { number, mode, uid, gid, links: type === 'directory' ? 2 : names, size, major, minor };
}

function header(path: string, { number, mode, uid, gid, links, size, major, minor }: Inode): Buffer {
  const name = Buffer.from(`${path}\0`);
  // inode, mode, uid, gid, links, time, size, device it is on, device it is, length of the name, checksum
  const fields = [number, mode, uid, gid, links, 0, size, 0, 0, major, minor, name.length, 0];
  const digits = fields.map((field) => field.toString(16).padStart(8, '0')).join('');
  return padded(Buffer.concat([Buffer.from(`070701${digits}`), name]));
}

const padded = (bytes: Buffer): Buffer => Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
