import { createWriteStream } from 'node:fs';
import { type FileHandle, mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import * as zlib from 'node:zlib';
import { CasemateError } from '../errors.js';
import { wrapFileError } from './files.js';
import { badEntry, type Entry, type Ownership, readRange } from './tree.js';

/** Where a tar archive is: its path, its bytes, or a stream of them. */
export type TarSource = string | Uint8Array | AsyncIterable<Uint8Array>;

/** An open archive; its entries read from it as long as it is open. */
export interface Tar extends AsyncDisposable {
  readonly entries: readonly Entry[];
}

/**
 * Opens a tar archive: POSIX (ustar and pax) or GNU's, as it is, or compressed by gzip or, where Node can, by zstd.
 * Extended attributes are left out. A compressed one, or a stream, is unpacked into a temporary file without a name.
 *
 * @throws CasemateError ERR_CASEMATE_IMAGE for what is no such archive, or holds what an image does not; ERR_CASEMATE_FILE.
 */
export async function openTar(source: TarSource, { ownership = 'root' }: { ownership?: Ownership } = {}): Promise<Tar> {
  const name = typeof source === 'string' ? source : 'the archive';
  return wrapFileError('from', name, async () => {
    const given =
      typeof source === 'string'
        ? await open(source)
        : await spool(source instanceof Uint8Array ? Readable.from([source]) : Readable.from(source));
    const file = await plain(given);
    try {
      const entries = await index(file, ownership);
      return { entries, [Symbol.asyncDispose]: () => file.close() };
    } catch (error) {
      await file.close();
      throw error;
    }
  });
}

/** A temporary file of what is in a stream. It has no name any more: it goes when it is closed. */
async function spool(...streams: [Readable, ...NodeJS.ReadWriteStream[]]): Promise<FileHandle> {
  const folder = await mkdtemp(join(tmpdir(), 'casemate-'));
  let file: FileHandle | undefined;
  try {
    const path = join(folder, 'tar');
    file = await open(path, 'wx+', 0o600);
    await pipeline([...streams, createWriteStream(path)]);
    return file;
  } catch (error) {
    await file?.close();
    throw error;
  } finally {
    await rm(folder, { recursive: true });
  }
}

const magics = [
  { name: 'gzip', bytes: Buffer.from([0x1f, 0x8b]), unpack: () => zlib.createGunzip() },
  {
    name: 'zstd',
    bytes: Buffer.from([0x28, 0xb5, 0x2f, 0xfd]),
    // From Node 22.15 on.
    unpack: (zlib as { createZstdDecompress?: () => NodeJS.ReadWriteStream }).createZstdDecompress,
  },
  { name: 'xz', bytes: Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a]), unpack: undefined },
  { name: 'bzip2', bytes: Buffer.from('BZh'), unpack: undefined },
] as const;

/** The archive itself, unpacked where it is compressed. Takes the file over. */
async function plain(file: FileHandle): Promise<FileHandle> {
  const start = Buffer.alloc(8);
  let kept = false;
  try {
    await file.read(start, 0, start.length, 0);
    const packed = magics.find(({ bytes }) => start.subarray(0, bytes.length).equals(bytes));
    if (packed === undefined) {
      kept = true;
      return file;
    }
    if (packed.unpack === undefined) {
      throw broken(`is compressed by ${packed.name}, which this Node cannot unpack`, 'Unpack it before, or use gzip.');
    }
    const { size } = await file.stat();
    try {
      return await spool(Readable.from(readRange(file, 0, size)), packed.unpack());
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).syscall !== undefined) throw cause;
      throw broken(`cannot be unpacked: ${(cause as Error).message}`, 'Is it complete?', cause);
    }
  } finally {
    if (!kept) await file.close();
  }
}

function broken(
  why: string,
  remedy = 'Make it with tar(1), or pass what it is made of.',
  cause?: unknown,
): CasemateError {
  return new CasemateError('ERR_CASEMATE_IMAGE', `The archive ${why}`, { step: 'tar', remedy, cause });
}

const blockSize = 512;
const roundedUp = (size: number): number => Math.ceil(size / blockSize) * blockSize;

/** The most that headers in front of a header have: a path and a link's target, and room for attributes. */
const maxExtension = 1024 * 1024;

/** What headers in front of a header say about the entry, by the names that pax has for it. */
type Extension = Map<string, string>;

/** All entries of an archive, without reading the files in it. tar(5) */
async function index(file: FileHandle, ownership: Ownership): Promise<Entry[]> {
  const entries: Entry[] = [];
  const { size: end } = await file.stat();
  const forAll: Extension = new Map();
  let forNext: Extension = new Map();
  let at = 0;
  const take = async (size: number): Promise<Buffer> => {
    const bytes = Buffer.alloc(size);
    const { bytesRead } = at + size <= end ? await file.read(bytes, 0, size, at) : { bytesRead: -1 };
    if (bytesRead !== size) throw broken('is cut short', 'Is it complete?');
    at += roundedUp(size);
    return bytes;
  };
  for (;;) {
    const header = await take(blockSize);
    if (header.every((byte) => byte === 0)) return entries;
    checkSum(header);
    const type = header.toString('latin1', 156, 157);
    if ('xgLK'.includes(type)) {
      const size = number(header, 124, 12);
      if (size > maxExtension) throw broken(`has an extended header of ${size} bytes`);
      const bytes = await take(size);
      if (type === 'L') forNext.set('path', cString(bytes));
      else if (type === 'K') forNext.set('linkpath', cString(bytes));
      else for (const [key, value] of records(bytes)) (type === 'g' ? forAll : forNext).set(key, value);
      continue;
    }
    const entry = entryOf(header, type, new Map([...forAll, ...forNext]), ownership);
    forNext = new Map();
    if (entry.type === 'file') {
      const { contents, ...rest } = entry;
      const offset = at;
      if (offset + contents.size > end) throw broken('is cut short', 'Is it complete?');
      entries.push({ ...rest, contents: { ...contents, stream: () => readRange(file, offset, contents.size) } });
      at += roundedUp(contents.size);
    } else {
      entries.push(entry);
    }
  }
}

type Indexed =
  | Exclude<Entry, { type: 'file' }>
  | { type: 'file'; path: string; mode: number; contents: { size: number } };

function entryOf(header: Buffer, type: string, said: Extension, ownership: Ownership): Indexed {
  const prefix = header.toString('latin1', 257, 263) === 'ustar\0' ? cString(header.subarray(345, 500)) : '';
  const name = cString(header.subarray(0, 100));
  const path = said.get('path') ?? (prefix === '' ? name : `${prefix}/${name}`);
  const target = said.get('linkpath') ?? cString(header.subarray(157, 257));
  const size = decimal(path, said.get('size')) ?? number(header, 124, 12);
  const owner =
    ownership === 'keep'
      ? {
          uid: decimal(path, said.get('uid')) ?? number(header, 108, 8),
          gid: decimal(path, said.get('gid')) ?? number(header, 116, 8),
        }
      : {};
  const common = { path, mode: number(header, 100, 8) & 0o7777, ...owner };
  if ([...said.keys()].some((key) => key.startsWith('GNU.sparse.'))) throw badEntry(path, 'is a sparse file');
  switch (type) {
    case '0':
    case '\0':
    case '7':
      // Before POSIX a directory was a file whose name ends so.
      return path.endsWith('/') ? { type: 'directory', ...common } : { type: 'file', ...common, contents: { size } };
    case '1':
      if (size !== 0) throw badEntry(path, 'is a hard link with contents of its own');
      return { type: 'link', path, target };
    case '2':
      return { type: 'symlink', path, target, ...owner };
    case '3':
    case '4': {
      const [major, minor] = [number(header, 329, 8), number(header, 337, 8)];
      return { type: type === '3' ? 'character' : 'block', ...common, major, minor };
    }
    case '5':
      return { type: 'directory', ...common };
    case '6':
      return { type: 'fifo', ...common };
    default:
      throw badEntry(path, `is of the type ${JSON.stringify(type)}, which images do not have`);
  }
}

/** Of all bytes of a header, its own eight taken as spaces. Some old programs added them up as signed. */
function checkSum(header: Buffer): void {
  let sum = 8 * 0x20;
  let signed = sum;
  header.forEach((byte, index) => {
    if (index >= 148 && index < 156) return;
    sum += byte;
    signed += byte > 127 ? byte - 256 : byte;
  });
  const said = number(header, 148, 8);
  if (said !== sum && said !== signed) throw broken('is none of tar, or is damaged: a checksum is wrong');
}

/** Octal digits, or, as GNU has it for what is too great for them, two's complement behind a first bit that is set. */
function number(header: Buffer, start: number, size: number): number {
  const field = header.subarray(start, start + size);
  const first = field[0] as number;
  let value: number;
  if (first & 0x80) {
    value = Number(BigInt(`0x${field.toString('hex')}`) & ((1n << BigInt(size * 8 - 1)) - 1n));
    if (first & 0x40) value = Number.NaN; // negative
  } else {
    const text = field
      .toString('latin1')
      .replace(/[\0 ]+$/, '')
      .trimStart();
    value = text === '' ? 0 : /^[0-7]+$/.test(text) ? Number.parseInt(text, 8) : Number.NaN;
  }
  if (!Number.isSafeInteger(value)) throw broken(`has a number in a header that is none: ${field.toString('latin1')}`);
  return value;
}

function decimal(path: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(value)) throw badEntry(path, `has ${JSON.stringify(text)} for a number`);
  return value;
}

/** Records of pax: their own length, a space, a key, "=", a value, a newline. */
function* records(bytes: Buffer): Iterable<[key: string, value: string]> {
  for (let at = 0; at < bytes.length; ) {
    const space = bytes.indexOf(0x20, at);
    const length = Number(bytes.toString('latin1', at, space));
    const end = at + length;
    const equals = bytes.indexOf(0x3d, space);
    const wellFormed = space > at && space - at < 8 && Number.isInteger(length) && end <= bytes.length && equals < end;
    if (!wellFormed || equals < space || bytes[end - 1] !== 0x0a) throw broken('has an extended header that is none');
    const key = bytes.toString('latin1', space + 1, equals);
    const value = bytes.subarray(equals + 1, end - 1);
    // Attributes can be anything; what names are made of cannot.
    if (paxKeys.has(key)) yield [key, text(value)];
    else if (key.startsWith('GNU.sparse.')) yield [key, ''];
    at = end;
  }
}

const paxKeys: ReadonlySet<string> = new Set(['path', 'linkpath', 'size', 'uid', 'gid']);

function cString(bytes: Buffer): string {
  const end = bytes.indexOf(0);
  return text(end < 0 ? bytes : bytes.subarray(0, end));
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function text(bytes: Buffer): string {
  try {
    return utf8.decode(bytes);
  } catch (cause) {
    throw broken(`has a name that is not UTF-8: ${bytes.toString('latin1')}`, 'Rename it.', cause);
  }
}
