import { Duplex } from 'node:stream';
import type { NativeChild, NativeStream } from '../jail/native.js';
import { native } from '../native.js';

/**
 * Both directions of a guest's console as one stream. The guest's end is the end of what can be read and no error,
 * and what is written to a guest that no longer reads is dropped, as for a process that ignores its input.
 */
export class Console extends Duplex {
  readonly #output: NativeStream;
  readonly #input: NativeStream;

  constructor(child: NativeChild, slots: { readonly output: number; readonly input: number }) {
    super({ allowHalfOpen: true, emitClose: true });
    this.#output = new native.Stream(child, slots.output, (chunk) => {
      if (chunk === null) this.#output.close();
      if (!this.push(chunk)) this.#output.pause();
    });
    this.#input = new native.Stream(child, slots.input, () => {});
  }

  /**
   * The guest is gone. What it wrote last is taken into memory, a socket's buffer at most: a VM that has ended holds no
   * descriptors, whether anybody reads its console or not.
   */
  guestIsGone(): void {
    this.#input.close();
    this.#output.drain();
  }

  override _read(): void {
    this.#output.resume();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#input.write(chunk, () => done());
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#input.close();
    done();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#output.close();
    this.#input.close();
    done(error);
  }
}
