/** Archives as kernels take them for initrds: cpio(5), "new ASCII". */

/** A regular file with its contents, or with `undefined` a folder. Paths are without a slash in front. */
export type Entries = Readonly<Record<string, Uint8Array | string | undefined>>;

const isFolder = 0o040755;
const isProgram = 0o100755;

/** An archive of folders and executable files, in the order in which they come. */
export function cpio(entries: Entries): Buffer {
  const members = Object.entries(entries).map(([path, contents], index) => {
    const bytes = Buffer.from(contents ?? '');
    return member(path, contents === undefined ? isFolder : isProgram, index + 1, bytes);
  });
  return Buffer.concat([...members, member('TRAILER!!!', 0, 0, Buffer.alloc(0))]);
}

function member(path: string, mode: number, inode: number, contents: Buffer): Buffer {
  const name = `${path}\0`;
  // inode, mode, uid, gid, links, time, size, device, device, special, special, length of the name, checksum
  const numbers = [inode, mode, 0, 0, 1, 0, contents.length, 0, 0, 0, 0, name.length, 0];
  const header = `070701${numbers.map((number) => number.toString(16).padStart(8, '0')).join('')}`;
  return Buffer.concat([padded(Buffer.from(header + name, 'latin1')), padded(contents)]);
}

const padded = (bytes: Buffer): Buffer => Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)]);
