import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { CasemateError, isSystemError } from '../errors.js';
import { native } from '../native.js';
import type { FileSource } from './options.js';

/** Every seal: nobody changes, shrinks or grows it any more; fcntl(2), F_ADD_SEALS. */
const allSeals = 0b1_1111;

/** Descriptors of one launch: opened here, closed together once the launcher has its own copies. */
export class LaunchFiles {
  readonly #opened: number[] = [];
  /** Made by the addon, and closed by it: Node's own close warns of them in a worker. */
  readonly #memfds: number[] = [];

  /** A regular file to read, by descriptor; contents become a sealed memfd. */
  open(option: string, source: FileSource): number {
    if (source instanceof Uint8Array) {
      const fd = wrap(option, 'its contents', () => native.memfdCreate('casemate', source, allSeals));
      this.#memfds.push(fd);
      return fd;
    }
    let fd: number;
    if (typeof source === 'string') {
      // Without O_NONBLOCK the open of a FIFO would wait for its writer.
      fd = wrap(option, source, () => openSync(source, constants.O_RDONLY | constants.O_NONBLOCK));
      this.#opened.push(fd);
    } else {
      fd = source.fd;
    }
    const name = typeof source === 'string' ? source : `descriptor ${fd}`;
    const stat = wrap(option, name, () => fstatSync(fd));
    if (!stat.isFile()) {
      throw new CasemateError('ERR_CASEMATE_FILE', `${option}: ${name} is not a regular file`, {
        step: option,
        remedy: 'Pass a regular file, its contents as a Uint8Array, or a descriptor of a file or memfd.',
      });
    }
    if (stat.size === 0) {
      throw new CasemateError('ERR_CASEMATE_FILE', `${option}: ${name} is empty`, { step: option });
    }
    return fd;
  }

  close(): void {
    for (const fd of this.#opened.splice(0)) closeSync(fd);
    for (const fd of this.#memfds.splice(0)) native.closeDescriptor(fd);
  }
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
