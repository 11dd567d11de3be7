import { fstatSync, readSync } from 'node:fs';
import { CasemateError, isSystemError } from '../errors.js';
import { native } from '../native.js';
import type { FileSource } from './options.js';

/** Every seal: nobody changes, shrinks or grows it any more; fcntl(2), F_ADD_SEALS. */
const allSeals = 0b1_1111;

/** Descriptors of one launch: opened here, closed together once the monitor has its own copies. */
export class LaunchFiles {
  readonly #opened: number[] = [];

  /** A regular file to read, by descriptor; contents become a sealed memfd. */
  open(option: string, source: FileSource): number {
    if (source instanceof Uint8Array) {
      const fd = wrap(option, 'its contents', () => native.memfdCreate('casemate', source, allSeals));
      this.#opened.push(fd);
      return fd;
    }
    const name = typeof source === 'string' ? source : `descriptor ${source.fd}`;
    const { fd, size } = wrap(option, name, () =>
      typeof source === 'string' ? this.#openPath(source) : { fd: source.fd, size: sizeOf(source.fd) },
    );
    if (size < 0) {
      throw new CasemateError('ERR_CASEMATE_FILE', `${option}: ${name} is not a regular file`, {
        step: option,
        remedy: 'Pass a regular file, its contents as a Uint8Array, or a descriptor of a file or memfd.',
      });
    }
    if (size === 0) {
      throw new CasemateError('ERR_CASEMATE_FILE', `${option}: ${name} is empty`, {
        step: option,
        remedy: 'Pass a file with something in it.',
      });
    }
    return fd;
  }

  #openPath(path: string): { fd: number; size: number } {
    const file = native.openRegular(path);
    this.#opened.push(file.fd);
    return file;
  }

  close(): void {
    for (const fd of this.#opened.splice(0)) native.closeDescriptor(fd);
  }
}

/** In bytes; -1 for what is no regular file. */
function sizeOf(fd: number): number {
  const stat = fstatSync(fd);
  if (!stat.isFile()) return -1;
  // One that is open only for writing would otherwise fail in the monitor, with everything already created.
  readSync(fd, new Uint8Array(1), 0, 1, 0);
  return stat.size;
}

function wrap<T>(option: string, name: string, call: () => T): T {
  try {
    return call();
  } catch (cause) {
    if (!isSystemError(cause)) throw cause;
    throw new CasemateError('ERR_CASEMATE_FILE', `${option}: ${name} cannot be opened: ${cause.message}`, {
      step: option,
      remedy: 'Check the path and its permissions; it is opened with the rights of this process.',
      cause,
    });
  }
}
