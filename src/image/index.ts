/**
 * Root file systems for Linux guests, made without root and without mounting anything.
 *
 * @packageDocumentation
 */
export { cpio, cpioStream } from './cpio.js';
export type {
  DeviceEntry,
  DirectoryEntry,
  Entry,
  FileEntry,
  LinkEntry,
  PipeEntry,
  StreamedContents,
  SymlinkEntry,
} from './tree.js';
