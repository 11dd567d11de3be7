import { createWriteStream } from 'node:fs';
import { mkdtemp, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { integer, invalid, object, oneOf, string } from '../is.js';
import { cpioStream } from './cpio.js';
import { readDirectory } from './directory.js';
import { makeErofs } from './erofs.js';
import { makeExt4 } from './ext4.js';
import { wrapFileError } from './files.js';
import { openTar, type TarSource } from './tar.js';
import { completeTree, type Entry, type Ownership } from './tree.js';

/** What an image is: an initrd, a root disk that can be written, or one that cannot. */
export const imageFormats = ['cpio', 'ext4', 'erofs'] as const;

/** One of {@link imageFormats}. */
export type ImageFormat = (typeof imageFormats)[number];

/** What {@link makeImage} takes. */
export interface ImageOptions {
  /** The path of a directory or a tar archive; the archive's bytes, or a stream of them. Default: nothing. */
  from?: TarSource;
  /** What else is in it; the later of two with the same path counts, and these come last. */
  add?: Iterable<Entry>;
  /** The image's path. It is replaced when it is done, and only then. */
  to: string;
  /** `'cpio'`, the default, for `initrd`; `'ext4'` or `'erofs'` for disks. */
  format?: ImageFormat;
  /** Whose the files are: `'root'`'s, the default, or whose they are where they come from. */
  ownership?: Ownership;
  /** Of an ext4 image, all of it. Default: what is in it, a quarter more, and 32 MiB. */
  sizeMib?: number;
}

/**
 * Makes an initrd or a root disk, without any rights and without mounting anything. The same tree makes the same image.
 *
 * @throws CasemateError ERR_CASEMATE_IMAGE for what an image cannot hold, and where a program is missing that makes it;
 * ERR_CASEMATE_FILE; ERR_CASEMATE_INVALID_OPTION.
 * @example
 * ```ts
 * await makeImage({ from: 'rootfs.tar.gz', to: 'root.ext4', format: 'ext4' });
 * ```
 */
export async function makeImage(options: ImageOptions): Promise<void> {
  const known = ['from', 'add', 'to', 'format', 'ownership', 'sizeMib'] as const;
  const { from, add = [], to, format = 'cpio', ownership = 'root', sizeMib } = object('options', options, known);
  const kind = oneOf('options.format', format, imageFormats);
  const owners = { ownership: oneOf('options.ownership', ownership, ['root', 'keep']) };
  const target = string('options.to', to);
  if (sizeMib !== undefined && kind !== 'ext4') throw invalid('options.sizeMib', 'nothing but with ext4', sizeMib);
  const size = sizeMib === undefined ? undefined : integer('options.sizeMib', sizeMib, 8, 2 ** 24) * 2 ** 20;
  const source = from as TarSource | undefined;
  const isDirectory =
    typeof source === 'string' && (await wrapFileError('from', source, () => stat(source))).isDirectory();
  await using tar = source === undefined || isDirectory ? undefined : await openTar(source, owners);
  const found = isDirectory ? await readDirectory(source, owners) : (tar?.entries ?? []);
  const tree = completeTree([...found, ...(add as Iterable<Entry>)]);
  await wrapFileError('to', target, async () => {
    // In its folder, so that it can be put in its place at once; in one of its own, so that nobody else can.
    const folder = await mkdtemp(join(dirname(resolve(target)), `.${basename(target)}-`));
    try {
      const image = join(folder, 'image');
      if (kind === 'cpio') await pipeline(Readable.from(cpioStream(tree)), createWriteStream(image));
      else if (kind === 'ext4') await makeExt4(tree, image, size);
      else await makeErofs(tree, image);
      await rename(image, target);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
}
