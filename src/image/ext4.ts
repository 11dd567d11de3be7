import { mkdtemp, open, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { identifier } from './identifier.js';
import { runTool, toolError } from './tool.js';
import { badEntry, contentsOf, type Entry, modeOf, sizeOf } from './tree.js';

/** A file system of ext4, as mke2fs(8) makes it by default on a disk of this size, but for what is said here. */
const blockSize = 4096;
const inodeSize = 256;
const minSize = 16 * 2 ** 20;

/**
 * Makes an ext4 image of a checked tree: mke2fs(8) makes it, debugfs(8) puts the files in. By that no name of the tree is
 * ever one of the host's, owners and devices need no rights, and nothing is mounted.
 *
 * @param path - is not there yet; there is nothing else of this name beside it.
 */
export async function makeExt4(tree: readonly Entry[], path: string, size: number | undefined): Promise<void> {
  const spool = await mkdtemp(`${path}-`);
  try {
    const file = await open(path, 'wx', 0o644);
    try {
      await file.truncate(size ?? roomFor(tree));
    } finally {
      await file.close();
    }
    const id = identifier(tree);
    await runTool(
      'mke2fs',
      [
        ...['-q', '-F', '-t', 'ext4', '-b', String(blockSize), '-I', String(inodeSize), '-m', '0', '-U', id],
        // Room for as many again, and for what is written later.
        ...['-N', String(tree.length * 2 + 1024), '-O', features],
        ...['-E', `root_owner=0:0,hash_seed=${id},lazy_itable_init=0,lazy_journal_init=0`, path],
      ],
      { package: 'e2fsprogs' },
    );
    await fill(tree, path, spool);
    await runTool('e2fsck', ['-f', '-n', path], { package: 'e2fsprogs' });
  } finally {
    await rm(spool, { recursive: true });
  }
}

/** Those of mke2fs.conf(5) as most distributions have it: which file there is here must not matter. */
const features =
  'has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize,sparse_super,large_file,filetype,' +
  'resize_inode,dir_index,ext_attr';

/** Everything in blocks, a quarter more for the file system's own, and some room. */
function roomFor(tree: readonly Entry[]): number {
  const blocks = tree.reduce(
    (sum, entry) => sum + 1 + (entry.type === 'file' ? Math.ceil(sizeOf(entry) / blockSize) : 0),
    0,
  );
  const size = blocks * blockSize * 1.25 + tree.length * 2 * inodeSize + 2 * minSize;
  return Math.ceil(size / 2 ** 20) * 2 ** 20;
}

/** debugfs takes files from the host: each is put into the spool under a number for as long as it takes to write it. */
async function fill(tree: readonly Entry[], image: string, spool: string): Promise<void> {
  const said = await runTool('debugfs', ['-w', '-f', '-', image], {
    package: 'e2fsprogs',
    cwd: spool,
    input: commands(tree, spool),
  });
  // It ends well whatever has failed. What it says first is its version.
  const problems = said.split('\n').filter((line) => line !== '' && !/^debugfs \d/.test(line));
  if (problems.length > 0) throw toolError('debugfs', problems.slice(0, 5).join('; '));
}

/** What makes a tree, in the language of debugfs. */
async function* commands(tree: readonly Entry[], spool: string): AsyncGenerator<string> {
  const names = new Map<string, number>();
  let count = 0;
  for (const entry of tree) {
    const path = quoted(entry.path, `/${entry.path}`);
    switch (entry.type) {
      case 'directory':
        // mke2fs has made this one.
        if (entry.path !== 'lost+found') yield `mkdir ${path}\n`;
        break;
      case 'file': {
        count += 1;
        const file = await open(join(spool, String(count)), 'wx', 0o600);
        try {
          for await (const chunk of contentsOf(entry)) await file.write(chunk);
        } finally {
          await file.close();
        }
        yield `write ${count} ${path}\n`;
        break;
      }
      case 'symlink':
        yield `symlink ${path} ${quoted(entry.path, entry.target)}\n`;
        break;
      case 'link':
        names.set(entry.target, (names.get(entry.target) ?? 1) + 1);
        yield `ln ${quoted(entry.path, `/${entry.target}`)} ${path}\n`;
        yield `set_inode_field ${path} links_count ${names.get(entry.target)}\n`;
        continue;
      default: {
        const kind = entry.type === 'fifo' ? 'p' : entry.type === 'block' ? 'b 0 0' : 'c 0 0';
        // The one command that takes no path, only a name.
        yield `cd ${quoted(entry.path, `/${dirname(entry.path)}`)}\n`;
        yield `mknod ${quoted(entry.path, basename(entry.path))} ${kind}\n`;
        if (entry.type === 'fifo') break;
        // As the kernel's new_encode_dev() has its numbers: mknod takes none above 65535 here.
        const device = (entry.minor & 0xff) | (entry.major << 8) | ((entry.minor & ~0xff) << 12);
        yield `set_inode_field ${path} block[1] ${device >>> 0}\n`;
      }
    }
    const fields = { uid: entry.uid, gid: entry.gid, mode: entry.type === 'symlink' ? undefined : typedMode(entry) };
    for (const [field, value] of Object.entries(fields)) {
      if (value !== undefined && value !== 0) yield `set_inode_field ${path} ${field} 0${value.toString(8)}\n`;
    }
  }
}

const typeBits = { directory: 0o040000, file: 0o100000, fifo: 0o010000, character: 0o020000, block: 0o060000 } as const;

const typedMode = (entry: Exclude<Entry, { type: 'symlink' | 'link' }>): number => typeBits[entry.type] | modeOf(entry);

/** Its lines are of 8192 bytes, and end at any of several control characters. */
function quoted(path: string, text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: those are what it is about.
  if (/[\0-\x1f\x7f]/.test(text) || Buffer.byteLength(text) > maxQuoted) {
    throw badEntry(path, 'has a control character in a path, or is too long, which debugfs does not take');
  }
  return `"${text.replaceAll('"', '""')}"`;
}

const maxQuoted = 2000;
