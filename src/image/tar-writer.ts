import { imageTime } from './tool.js';
import { contentsOf, type Entry, modeOf, sizeOf } from './tree.js';

const blockSize = 512;
const types = { file: '0', link: '1', symlink: '2', character: '3', block: '4', directory: '5', fifo: '6' } as const;

/** The archive of a checked tree, by pax: each entry has its names in an extended header, whatever their length. tar(5) */
export async function* tarStream(tree: Iterable<Entry>): AsyncGenerator<Uint8Array, void, undefined> {
  for (const entry of tree) {
    const size = entry.type === 'file' ? sizeOf(entry) : 0;
    const { uid = 0, gid = 0 } = entry.type === 'link' ? {} : entry;
    const target = entry.type === 'link' || entry.type === 'symlink' ? entry.target : undefined;
    const extended = Buffer.concat([
      record('path', entry.path),
      ...(target === undefined ? [] : [record('linkpath', target)]),
      record('size', String(size)),
      record('uid', String(uid)),
      record('gid', String(gid)),
    ]);
    yield header('x', extended.length, 0o644, 0, 0);
    yield padded(extended);
    const mode = entry.type === 'link' ? 0o644 : entry.type === 'symlink' ? 0o777 : modeOf(entry);
    const device = entry.type === 'character' || entry.type === 'block' ? entry : { major: 0, minor: 0 };
    // Numbers that are too great for this header are in the other one.
    yield header(types[entry.type], size % 0o77777777777, mode, device.major, device.minor);
    if (entry.type !== 'file') continue;
    yield* contentsOf(entry);
    yield Buffer.alloc(-size & (blockSize - 1));
  }
  yield Buffer.alloc(2 * blockSize);
}

/** Its length, which counts its own digits, a space, key and value. */
function record(key: string, value: string): Buffer {
  const rest = Buffer.byteLength(` ${key}=${value}\n`);
  let length = rest + String(rest).length;
  if (String(length).length !== String(rest).length) length = rest + String(length).length;
  return Buffer.from(`${length} ${key}=${value}\n`);
}

function header(type: string, size: number, mode: number, major: number, minor: number): Buffer {
  const bytes = Buffer.alloc(blockSize);
  const octal = (value: number, at: number, digits: number) => bytes.write(value.toString(8).padStart(digits, '0'), at);
  bytes.write('-', 0);
  octal(mode, 100, 7);
  octal(0, 108, 7);
  octal(0, 116, 7);
  octal(size, 124, 11);
  octal(imageTime, 136, 11);
  bytes.write('        ', 148);
  bytes.write(type, 156);
  bytes.write('ustar\0' + '00', 257);
  octal(major, 329, 7);
  octal(minor, 337, 7);
  octal(
    bytes.reduce((sum, byte) => sum + byte, 0),
    148,
    6,
  );
  return bytes;
}

const padded = (bytes: Buffer): Buffer => Buffer.concat([bytes, Buffer.alloc(-bytes.length & (blockSize - 1))]);
