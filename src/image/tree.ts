import type { FileHandle } from 'node:fs/promises';
import { CasemateError } from '../errors.js';
import { describe } from '../is.js';

/** What a file holds that is not in memory: so many bytes, read when they are written into the image. */
export interface StreamedContents {
  /** In bytes. */
  readonly size: number;
  /** Exactly that many bytes; called once for each image. */
  stream(): AsyncIterable<Uint8Array>;
}

interface Named {
  /** From the image's root on, `'usr/bin/env'`: not absolute, without `.` and `..`. */
  readonly path: string;
  /** The owner. Default 0, root. */
  readonly uid?: number;
  /** The group. Default 0, root. */
  readonly gid?: number;
}

interface Protected extends Named {
  /** Permission bits, with the set-id and sticky ones. Default 0o755 for directories, 0o644 for others. */
  readonly mode?: number;
}

/** A regular file. */
export interface FileEntry extends Protected {
  readonly type: 'file';
  readonly contents: Uint8Array | string | StreamedContents;
}

/** A directory. Those that others need and that nobody names are made, with mode 0755. */
export interface DirectoryEntry extends Protected {
  readonly type: 'directory';
}

/** A symbolic link; what it points to is the guest's affair. */
export interface SymlinkEntry extends Named {
  readonly type: 'symlink';
  readonly target: string;
}

/** Another name (a hard link) of a file that comes before it. */
export interface LinkEntry {
  readonly type: 'link';
  readonly path: string;
  readonly target: string;
}

/** A device node; mknod(2). */
export interface DeviceEntry extends Protected {
  readonly type: 'character' | 'block';
  readonly major: number;
  readonly minor: number;
}

/** A named pipe. */
export interface PipeEntry extends Protected {
  readonly type: 'fifo';
}

/** One name in an image. */
export type Entry = FileEntry | DirectoryEntry | SymlinkEntry | LinkEntry | DeviceEntry | PipeEntry;

/** Whose the entries of an archive or a directory become: root's, or whose they are there. */
export type Ownership = 'root' | 'keep';

/** The longest path that Linux takes, without its NUL, and the longest name in it. */
const pathMax = 4095;
const nameMax = 255;

/**
 * The same tree, checked, as image writers take it: paths in one spelling, each of them once, parents before what is in
 * them, links behind their targets. Where a path comes twice, the later entry counts, as in an archive that was added to.
 *
 * Nothing lies beyond a symbolic link or outside the root: what unpacks the image would write where it leads.
 */
export function completeTree(entries: Iterable<Entry>): Entry[] {
  const tree = new Map<string, Entry>();
  for (const entry of entries) {
    const path = checkedPath(entry.path);
    // The root itself has no name in an image.
    if (path === '' && entry.type === 'directory') continue;
    if (path === '') throw badEntry(entry.path, 'is the root, which is a directory');
    for (const parent of parents(path)) {
      const there = tree.get(parent);
      if (there === undefined) tree.set(parent, { type: 'directory', path: parent });
      else if (there.type !== 'directory') throw badEntry(path, `lies behind ${parent}, which is no directory`);
    }
    const before = tree.get(path);
    if (before?.type === 'directory' && entry.type !== 'directory') {
      throw badEntry(path, 'comes twice, first as a directory');
    }
    if (before?.type === 'file') keepOtherNames(tree, before);
    // A directory keeps its place, before what is in it; anything else may be a link to what has come meanwhile.
    if (entry.type !== 'directory') tree.delete(path);
    tree.set(path, entry.type === 'link' ? checkedLink(tree, entry, path) : checked(entry, path));
  }
  return [...tree.values()];
}

function checkedLink(tree: ReadonlyMap<string, Entry>, { target }: LinkEntry, path: string): LinkEntry {
  const name = checkedPath(target);
  const there = tree.get(name);
  if (there?.type === 'link') return { type: 'link', path, target: there.target };
  if (there?.type !== 'file') throw badEntry(path, `is a hard link to ${name}, which is no file before it`);
  return { type: 'link', path, target: name };
}

/** A file goes that may have other names: the first of them becomes the file. */
function keepOtherNames(tree: Map<string, Entry>, file: FileEntry): void {
  const others = [...tree.values()].filter((entry) => entry.type === 'link' && entry.target === file.path);
  const [first, ...rest] = others;
  if (first === undefined) return;
  tree.set(first.path, { ...file, path: first.path });
  for (const { path } of rest) tree.set(path, { type: 'link', path, target: first.path });
}

function checked(entry: Exclude<Entry, LinkEntry>, path: string): Entry {
  checkNumber(path, 'uid', entry.uid, 0xffffffff);
  checkNumber(path, 'gid', entry.gid, 0xffffffff);
  if (entry.type === 'symlink') {
    const length = Buffer.byteLength(entry.target);
    if (length === 0 || length > pathMax || entry.target.includes('\0')) throw badEntry(path, 'points to no path');
    return { ...entry, path };
  }
  checkNumber(path, 'mode', entry.mode, 0o7777);
  if (entry.type === 'character' || entry.type === 'block') {
    // dev_t of the kernel: 12 and 20 bits.
    checkNumber(path, 'major', entry.major, 0xfff);
    checkNumber(path, 'minor', entry.minor, 0xfffff);
  }
  return { ...entry, path };
}

/** Without slashes at its end and `.` in it; refused where it is absolute or has `..`. */
function checkedPath(path: string): string {
  if (typeof path !== 'string') throw badEntry(describe(path), 'is no path');
  if (path.startsWith('/')) throw badEntry(path, 'is absolute');
  const names = path.split('/').filter((name) => name !== '' && name !== '.');
  if (names.includes('..')) throw badEntry(path, "has '..' in it");
  if (path.includes('\0')) throw badEntry(path, 'has a NUL in it');
  const clean = names.join('/');
  if (Buffer.byteLength(clean) > pathMax || names.some((name) => Buffer.byteLength(name) > nameMax)) {
    throw badEntry(`${clean.slice(0, 60)}...`, 'is too long');
  }
  return clean;
}

function* parents(path: string): Iterable<string> {
  for (let end = path.indexOf('/'); end !== -1; end = path.indexOf('/', end + 1)) yield path.slice(0, end);
}

function checkNumber(path: string, name: string, value: number | undefined, max: number): void {
  if (value === undefined || (Number.isInteger(value) && value >= 0 && value <= max)) return;
  throw badEntry(path, `has ${value} as its ${name}`);
}

/** What cannot be in an image. */
export function badEntry(path: string, why: string): CasemateError {
  return new CasemateError('ERR_CASEMATE_IMAGE', `${JSON.stringify(path)} ${why}`, {
    step: 'tree',
    remedy: 'Leave it out of what the image is made from, or put it right there.',
  });
}

/** The permission bits of an entry that has some. */
export function modeOf(entry: FileEntry | DirectoryEntry | DeviceEntry | PipeEntry): number {
  return entry.mode ?? (entry.type === 'directory' ? 0o755 : 0o644);
}

/** The contents of a file, held to its size. */
export async function* contentsOf(file: FileEntry): AsyncGenerator<Uint8Array, void, undefined> {
  const { contents, path } = file;
  if (typeof contents === 'string') yield Buffer.from(contents);
  else if (contents instanceof Uint8Array) yield contents;
  else {
    let left = contents.size;
    for await (const chunk of contents.stream()) {
      left -= chunk.length;
      if (left < 0) break;
      yield chunk;
    }
    if (left !== 0) throw badEntry(path, `changed while it was read: it had ${contents.size} bytes`);
  }
}

/** So much of an open file, as contents. A shorter file makes them shorter. */
export async function* readRange(file: FileHandle, offset: number, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < size; ) {
    const buffer = Buffer.allocUnsafe(Math.min(chunkSize, size - at));
    const { bytesRead } = await file.read(buffer, 0, buffer.length, offset + at);
    if (bytesRead === 0) return;
    yield buffer.subarray(0, bytesRead);
    at += bytesRead;
  }
}

const chunkSize = 256 * 1024;

/** What a file holds, in bytes. */
export function sizeOf({ contents }: FileEntry): number {
  if (typeof contents === 'string') return Buffer.byteLength(contents);
  return contents instanceof Uint8Array ? contents.length : contents.size;
}
