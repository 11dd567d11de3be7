/**
 * Root file systems for Linux guests, made without root and without mounting anything.
 *
 * @packageDocumentation
 */
export { cpio, cpioStream } from './cpio.js';
export { readDirectory } from './directory.js';
export { type ImageFormat, type ImageOptions, imageFormats, makeImage } from './make.js';
export { openTar, type Tar, type TarSource } from './tar.js';
export type {
  DeviceEntry,
  DirectoryEntry,
  Entry,
  FileEntry,
  LinkEntry,
  Ownership,
  PipeEntry,
  StreamedContents,
  SymlinkEntry,
} from './tree.js';
