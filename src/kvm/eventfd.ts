import { onAbort } from '../abort.js';
import { abortError, CasemateError, wrapSystemError } from '../errors.js';
import { integer, invalid, object } from '../is.js';
import { native } from '../native.js';
import { closed, signalOption } from './common.js';
import type { EventFdHandle } from './native.js';

/** A descriptor by its number, or something that has one. */
export type Descriptor = number | { readonly fd: number };

/**
 * An eventfd(2): a counter in the kernel with a descriptor, by which a guest rings (ioeventfd) and is rung
 * (irqfd) without an exit.
 */
export class EventFd implements Disposable {
  #handle: EventFdHandle | undefined;
  #waiting = false;

  /** @throws CasemateError `ERR_CASEMATE_SYSTEM` */
  constructor() {
    this.#handle = wrapSystemError('ERR_CASEMATE_SYSTEM', () => new native.EventFdHandle());
  }

  /** The descriptor's number, valid until `close()`. */
  get fd(): number {
    return this.#open.fd;
  }

  /** Adds to the counter. As an irqfd this injects the interrupt. */
  signal(count = 1): void {
    const by = BigInt(integer('count', count, 1, Number.MAX_SAFE_INTEGER));
    wrapSystemError('ERR_CASEMATE_SYSTEM', () => this.#open.signal(by));
  }

  /** The counter, which is 0 afterwards. Does not wait. */
  take(): bigint {
    return wrapSystemError('ERR_CASEMATE_SYSTEM', () => this.#open.take());
  }

  /**
   * Waits until the counter is not 0, and takes it. Keeps the event loop alive. One wait at a time.
   *
   * @throws CasemateError `ERR_CASEMATE_STATE` while another wait is under way, `ERR_CASEMATE_CLOSED`
   *   if the eventfd is closed; an AbortError if `signal` aborts.
   */
  async wait(options: { signal?: AbortSignal } = {}): Promise<bigint> {
    const signal = signalOption(object('options', options, ['signal']).signal);
    const handle = this.#open;
    if (this.#waiting) {
      throw new CasemateError('ERR_CASEMATE_STATE', 'A wait for this eventfd is under way', {
        remedy: 'Await it, or abort it by its signal, first.',
      });
    }
    if (signal?.aborted) throw abortError(signal);
    this.#waiting = true;
    const unlisten = onAbort(signal, () => handle.cancel());
    try {
      const count = await handle.wait();
      if (count !== 0n) return count;
    } finally {
      this.#waiting = false;
      unlisten();
    }
    throw signal?.aborted ? abortError(signal) : closed('EventFd');
  }

  /** Closes the descriptor; a wait ends with `ERR_CASEMATE_CLOSED`. */
  close(): void {
    this.#handle?.close();
    this.#handle = undefined;
  }

  /** {@link EventFd.close}, as the end of a `using` scope. */
  [Symbol.dispose](): void {
    this.close();
  }

  get #open(): EventFdHandle {
    if (this.#handle === undefined) throw closed('EventFd');
    return this.#handle;
  }
}

/** The number of a descriptor given either way. */
export function descriptorNumber(name: string, value: Descriptor): number {
  const fd = typeof value === 'object' && value !== null ? value.fd : value;
  if (!Number.isInteger(fd) || fd < 0 || fd > 0x7fffffff) {
    throw invalid(name, 'a file descriptor or an object with one as its fd', value);
  }
  return fd;
}
