import { fstatSync, openSync, readSync } from 'node:fs';
import { CasemateError, isSystemError, wrapSystemError } from '../errors.js';
import type { NativeFile } from '../jail/native.js';
import { builtFile, native } from '../native.js';
import type { FileLabels } from '../selinux/files.js';

/** A file that the VM gets: its path, its contents, or a descriptor that stays the caller's. */
export type FileSource = string | Uint8Array | { fd: number };

/** Files of one launch: opened here, taken by the launcher. */
export class LaunchFiles {
  readonly #opened: NativeFile[] = [];
  readonly #labels: FileLabels | undefined;
  #largestDisk = 0;

  /** @param labels - where the VM has an SELinux label: its files get theirs. */
  constructor(labels?: FileLabels) {
    this.#labels = labels;
  }

  /** In bytes, of those that can be written to. */
  get largestDisk(): number {
    return this.#largestDisk;
  }

  /** A regular file to read; contents become a sealed memory file. A descriptor stays the caller's. */
  open(option: string, source: FileSource): NativeFile | number {
    const name = typeof source === 'string' ? source : 'fd' in source ? `descriptor ${source.fd}` : 'its contents';
    try {
      if (!(source instanceof Uint8Array) && typeof source !== 'string') {
        checkSize(option, name, sizeOf(source.fd));
        this.#labels?.share(option, name, source.fd);
        return source.fd;
      }
      const file = new native.File(source);
      this.#opened.push(file);
      checkSize(option, name, file.size);
      if (typeof source === 'string') this.#labels?.share(option, name, file);
      else this.#labels?.own(file);
      return file;
    } catch (cause) {
      if (!isSystemError(cause)) throw cause;
      throw fileError(option, name, `cannot be opened: ${cause.message}`, openRemedy, cause);
    }
  }

  /**
   * A disk: a regular file or a block device, locked against others that write to it while this one is in use, or read
   * what this one writes. A descriptor stays the caller's.
   */
  openDisk(option: string, source: string | number, isReadOnly: boolean): NativeFile | number {
    const name = typeof source === 'string' ? source : `descriptor ${source}`;
    try {
      const disk = new native.File(source, isReadOnly ? 'disk' : 'writable-disk');
      this.#opened.push(disk);
      if (disk.size < 0) throw fileError(option, name, 'is neither a regular file nor a block device', diskRemedy);
      if (disk.size < sectorSize) throw fileError(option, name, 'has no room for a sector of 512 bytes', diskRemedy);
      if (!isReadOnly) this.#largestDisk = Math.max(this.#largestDisk, disk.size);
      if (isReadOnly) this.#labels?.share(option, name, disk);
      else this.#labels?.claim(option, name, source, disk);
      return disk;
    } catch (cause) {
      if (!isSystemError(cause)) throw cause;
      const isLocked = cause.code === 'EAGAIN' || (cause.code === 'EACCES' && cause.syscall.startsWith('fcntl'));
      if (isLocked)
        throw fileError(option, name, 'is in use by another VM, or another program has locked it', lockRemedy, cause);
      throw fileError(option, name, `cannot be opened: ${cause.message}`, openRemedy, cause);
    }
  }

  /** A Unix socket by its path, a stream, connected to. */
  connect(option: string, path: string): NativeFile {
    const made = wrapSystemError('ERR_CASEMATE_NETWORK', () => new native.File(path, 'stream', this.#labels?.stream), {
      step: option,
      remedy: 'Does the program listen at this path already, and may this user write to its socket?',
    });
    this.#opened.push(made);
    return made;
  }

  /** Closes what no launch has taken. */
  close(): void {
    for (const file of this.#opened.splice(0)) file.close();
  }
}

function checkSize(option: string, name: string, size: number): void {
  if (size > 0) return;
  const [what, remedy] =
    size < 0
      ? [
          'is not a regular file',
          'Pass a regular file, its contents as a Uint8Array, or a descriptor of a file or memfd.',
        ]
      : ['is empty', 'Pass a file with something in it.'];
  throw fileError(option, name, what, remedy);
}

const fileError = (option: string, name: string, what: string, remedy: string, cause?: unknown): CasemateError =>
  new CasemateError('ERR_CASEMATE_FILE', `${option}: ${name} ${what}`, { step: option, remedy, cause });

const openRemedy = 'Check the path and its permissions; it is opened with the rights of this process.';
const diskRemedy = 'Pass a regular file with the bytes of a disk in it, or a block device.';
const lockRemedy = 'A disk that one VM writes to no other one can have; several can have it with readOnly: true.';
const sectorSize = 512;

/** In bytes; -1 for what is no regular file. */
function sizeOf(fd: number): number {
  const stat = fstatSync(fd);
  if (!stat.isFile()) return -1;
  // One that is open only for writing would otherwise fail in the monitor, with everything already created.
  readSync(fd, new Uint8Array(1), 0, 1, 0);
  return stat.size;
}

let guest: number | undefined;

/** The built-in guest, opened once. */
export function builtInGuest(): number {
  guest ??= openSync(builtFile('casemate-guest-hello.elf'), 'r');
  return guest;
}
