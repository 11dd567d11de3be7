import { Readable, Writable } from 'node:stream';
import { agentAbi, encode } from './protocol.js';

const { window } = agentAbi;
const mostAtOnce = 65536;
const small = 4096;

/** Sends a frame to the agent. */
type Send = (frame: Buffer) => void;

/** Ends a stream whose other end is gone; as an error only where somebody listens for one. */
export function cutOff(stream: Readable | Writable, error: Error | undefined): void {
  if (stream.destroyed) return;
  stream.destroy(stream.listenerCount('error') > 0 ? error : undefined);
}

/**
 * Bytes that come from the guest. What is not read yet is held here, a window of it at most: the agent gets credit for
 * what has been read.
 */
export class Inlet extends Readable {
  readonly #tell: Send;
  readonly #number: number;
  readonly #queue: Buffer[] = [];
  /** What the agent may still send. */
  #credit: number = window;
  /** What it has not been told yet that it may. */
  #read = 0;
  #complete = false;
  #wanted = false;

  constructor(tell: Send, number: number) {
    super({ highWaterMark: mostAtOnce });
    this.#tell = tell;
    this.#number = number;
  }

  /** Whether all that will ever come has come. */
  get complete(): boolean {
    return this.#complete;
  }

  /** False where the agent has no credit for so much. */
  receive(bytes: Buffer): boolean {
    if (this.#complete || bytes.length > this.#credit) return false;
    this.#credit -= bytes.length;
    if (this.destroyed) return true;
    // Many objects of a few bytes each would take far more memory than the bytes do.
    const last = this.#queue.at(-1);
    if (last === undefined || last.length + bytes.length > small) this.#queue.push(bytes);
    else this.#queue[this.#queue.length - 1] = Buffer.concat([last, bytes]);
    this.#deliver();
    return true;
  }

  /** No more will come. False for the second time. */
  finish(): boolean {
    if (this.#complete) return false;
    this.#complete = true;
    this.#deliver();
    return true;
  }

  override _read(): void {
    this.#wanted = true;
    this.#deliver();
  }

  #deliver(): void {
    while (this.#wanted && this.#queue.length > 0) {
      const bytes = this.#queue.shift() as Buffer;
      this.#read += bytes.length;
      this.#wanted = false; // before, for push() may ask for more at once
      if (this.push(bytes)) this.#wanted = true;
    }
    if (this.#complete && this.#queue.length === 0 && !this.destroyed) this.push(null);
    // Not for every few bytes.
    if (this.#read >= window / 2 || (this.#read > 0 && this.#credit < mostAtOnce)) {
      if (!this.#complete) this.#tell(encode.credit(this.#number, this.#read));
      this.#credit += this.#read;
      this.#read = 0;
    }
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    if (!this.#complete) this.#tell(encode.close(this.#number));
    this.#queue.length = 0;
    done(error);
  }
}

/** Bytes that go to the guest, as it has room for them. */
export class Outlet extends Writable {
  readonly #tell: Send;
  #credit: number = window;
  #bytes: Buffer | undefined;
  #written: (() => void) | undefined;
  #ended = false;

  constructor(tell: Send) {
    super({ highWaterMark: mostAtOnce });
    this.#tell = tell;
  }

  /** Room for so much more. False where there would be more than a window's. */
  addCredit(bytes: number): boolean {
    this.#credit += bytes;
    if (this.#credit > window) return false;
    this.#send();
    return true;
  }

  /** Nobody reads it any more: as for a process that ignores its input, what is written is dropped. */
  drop(): void {
    this.#ended = true;
    this.#bytes = undefined;
    this.#send();
    this.destroy();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.#bytes = chunk;
    this.#written = done;
    this.#send();
  }

  #send(): void {
    while (this.#bytes !== undefined && this.#bytes.length > 0 && this.#credit > 0) {
      const bytes = this.#bytes.subarray(0, Math.min(this.#credit, mostAtOnce));
      this.#credit -= bytes.length;
      this.#bytes = this.#bytes.subarray(bytes.length);
      this.#tell(encode.data(agentAbi.streams.stdin, bytes));
    }
    if (this.#bytes !== undefined && this.#bytes.length > 0) return;
    this.#bytes = undefined;
    const written = this.#written;
    this.#written = undefined;
    written?.();
  }

  override _final(done: () => void): void {
    this.#close();
    done();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#close();
    this.#bytes = undefined;
    this.#written = undefined;
    done(error);
  }

  #close(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#tell(encode.close(agentAbi.streams.stdin));
  }
}

/** Gathers the bytes of a stream: in one piece of memory, into however small ones the guest cuts them. */
export class Gathered {
  readonly #maxBytes: number;
  #bytes = Buffer.alloc(0);
  #size = 0;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  /** False where it would be too much. */
  add(chunk: Buffer): boolean {
    const size = this.#size + chunk.length;
    if (size > this.#maxBytes) return false;
    if (size > this.#bytes.length) {
      const larger = Buffer.allocUnsafe(Math.min(this.#maxBytes, Math.max(size, 2 * this.#bytes.length, small)));
      this.#bytes.copy(larger, 0, 0, this.#size);
      this.#bytes = larger;
    }
    chunk.copy(this.#bytes, this.#size);
    this.#size = size;
    return true;
  }

  get bytes(): Buffer {
    return this.#bytes.subarray(0, this.#size);
  }
}
