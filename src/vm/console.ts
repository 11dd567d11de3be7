import { Socket } from 'node:net';
import { Duplex } from 'node:stream';

/**
 * Both directions of a guest's console as one stream. Node's sockets do the work; what is ours is how they end:
 * the guest's end is the end of what can be read and no error, and what is written to a guest that no longer reads
 * is dropped, as for a process that ignores its input.
 */
export class Console extends Duplex {
  readonly #output: Socket;
  readonly #input: Socket;
  #guestIsGone = false;

  constructor(output: number, input: number) {
    super({ allowHalfOpen: true, emitClose: true });
    this.#output = new Socket({ fd: output, readable: true, writable: false });
    this.#input = new Socket({ fd: input, readable: false, writable: true });
    this.#output.on('data', (chunk: Buffer) => {
      if (!this.push(chunk) && !this.#guestIsGone) this.#output.pause();
    });
    // Broken off is ended, too: the monitor was killed. 'close' comes after either.
    this.#output.on('error', () => {});
    this.#output.on('close', () => this.push(null));
    this.#input.on('error', () => this.#input.destroy());
  }

  /**
   * The guest is gone. What it wrote last is taken into memory, a socket's buffer at most: a VM that has ended holds no
   * descriptors, whether anybody reads its console or not.
   */
  guestIsGone(): void {
    this.#guestIsGone = true;
    this.#input.destroy();
    this.#output.resume();
  }

  override _read(): void {
    this.#output.resume();
  }

  override _write(chunk: Buffer, encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    if (this.#input.writable) this.#input.write(chunk, encoding, () => done());
    else done();
  }

  override _final(done: (error?: Error | null) => void): void {
    if (this.#input.writable) this.#input.end(() => done());
    else done();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#output.destroy();
    this.#input.destroy();
    done(error);
  }
}
