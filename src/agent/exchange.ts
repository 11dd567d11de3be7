import type { Duplex } from 'node:stream';
import { onAbort } from '../abort.js';
import { abortError, CasemateError } from '../errors.js';
import { agentError } from './errors.js';
import { type AgentFrame, FrameDecoder } from './protocol.js';

/** How to reach an agent: a stream of its own for each request. */
export type Connect = (signal: AbortSignal) => Promise<Duplex>;

export interface ExchangeOptions {
  /** Of the error: `'exec'`. */
  readonly step: string;
  readonly connect: Connect;
  readonly request: Buffer;
  readonly signal: AbortSignal | undefined;
  readonly timeoutMs: number | undefined;
  /** False for a frame that is none of this request's, at this point of it. */
  readonly onFrame: (frame: AgentFrame) => boolean;
  /** Once, at the end: with an error where it was not {@link Exchange.done}. */
  readonly onEnd: (error: Error | undefined) => void;
}

/**
 * One request and what belongs to it. It reads always, for what is read is bounded by credit; and it ends always: when
 * all is said, by an error of the transport, its time limit or its signal, or because the agent broke the protocol.
 */
export class Exchange {
  readonly #options: ExchangeOptions;
  readonly #unlisten: () => void;
  readonly #connecting = new AbortController();
  #timer: NodeJS.Timeout | undefined;
  #stream: Duplex | undefined;
  /** What is to be sent as soon as there is a stream. */
  #waiting: Buffer[];
  #ended = false;

  constructor(options: ExchangeOptions) {
    this.#options = options;
    this.#waiting = [options.request];
    const { signal, step, timeoutMs } = options;
    this.#unlisten = onAbort(signal, () => this.fail(abortError(signal as AbortSignal)));
    if (signal?.aborted) {
      queueMicrotask(() => this.fail(abortError(signal)));
      return;
    }
    if (timeoutMs !== undefined) {
      this.#timer = setTimeout(() => {
        this.fail(
          new CasemateError('ERR_CASEMATE_TIMEOUT', `${step} was not done within ${timeoutMs} ms`, {
            step,
            remedy: 'Raise options.timeoutMs.',
          }),
        );
      }, timeoutMs);
    }
    options.connect(this.#connecting.signal).then(
      (stream) => this.#begin(stream),
      (error) => this.fail(error),
    );
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** To the agent; nowhere once it has ended. */
  send(frame: Buffer): void {
    if (this.#ended) return;
    if (this.#stream === undefined) this.#waiting.push(frame);
    else this.#stream.write(frame);
  }

  /** All is said. */
  done(): void {
    this.#end(undefined);
  }

  fail(error: Error): void {
    this.#end(error);
  }

  #begin(stream: Duplex): void {
    // Also behind its end: an error of a stream that nobody listens to ends the process.
    stream.on('error', (cause) => this.#lost(cause));
    if (this.#ended) return void stream.destroy();
    this.#stream = stream;
    const { onFrame, step } = this.#options;
    const decoder = new FrameDecoder((frame) => {
      if (!this.#ended && !onFrame(frame)) this.fail(agentError(step, `The agent sent an unexpected '${frame.type}'`));
    });
    stream.on('data', (chunk: Buffer) => {
      if (!decoder.write(chunk)) this.fail(agentError(step, 'The agent sent something that is none of the protocol'));
    });
    stream.on('end', () => this.#lost());
    stream.on('close', () => this.#lost());
    for (const frame of this.#waiting.splice(0)) stream.write(frame);
  }

  #lost(cause?: Error): void {
    if (this.#ended) return;
    const { step } = this.#options;
    this.fail(
      cause instanceof CasemateError ? cause : agentError(step, 'The agent hung up before the request was done', cause),
    );
  }

  #end(error: Error | undefined): void {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#timer);
    this.#unlisten();
    this.#connecting.abort();
    this.#waiting = [];
    this.#stream?.destroy(); // which is also how the agent hears that nobody waits any more
    this.#options.onEnd(error);
  }
}
