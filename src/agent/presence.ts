import type { Duplex } from 'node:stream';
import { deferred } from './deferred.js';
import { agentError } from './errors.js';
import { type AgentRole, agentAbi, FrameDecoder } from './protocol.js';

/** Whether the agent of a guest is there: what it says at its start, and the stream that it keeps open from then on. */
export class Presence {
  /** Its role, once it is there. Rejects where it does not come, or has gone. */
  get ready(): Promise<AgentRole> {
    return this.#ready.promise;
  }

  #ready = deferred<AgentRole>();
  #state: 'awaited' | 'there' | 'gone' = 'awaited';
  #stream: Duplex | undefined;
  readonly #timer: NodeJS.Timeout;

  /** @param limitMs - how long it may take to come. */
  constructor(limitMs: number) {
    this.#timer = setTimeout(
      () => this.gone(agentError('agent', `The guest's agent did not say hello within ${limitMs} ms`)),
      limitMs,
    );
    this.#timer.unref();
  }

  /** A stream to the agent's port of the host; one that anything in the guest may have opened. */
  accept(stream: Duplex): void {
    stream.on('error', () => {}); // 'close' follows
    if (this.#stream !== undefined || this.#state !== 'awaited') return void stream.destroy();
    this.#stream = stream;
    const decoder = new FrameDecoder((frame) => {
      if (frame.type !== 'hello' || this.#state !== 'awaited') {
        this.gone(agentError('agent', `The agent sent an unexpected '${frame.type}'`));
      } else if (frame.version !== agentAbi.version) {
        this.gone(agentError('agent', `The agent is of version ${frame.version}, this is ${agentAbi.version}`));
      } else {
        clearTimeout(this.#timer);
        this.#state = 'there';
        this.#ready.resolve(frame.role);
      }
    });
    stream.on('data', (chunk: Buffer) => {
      if (!decoder.write(chunk))
        this.gone(agentError('agent', 'The agent said something that is none of the protocol'));
    });
    stream.on('end', () => stream.destroy());
    stream.on('close', () => {
      if (this.#state === 'there') this.gone(agentError('agent', "The guest's agent has gone"));
      if (this.#state === 'awaited') this.#stream = undefined; // it was not the agent, or that tries again
    });
  }

  /** No request will be answered any more. */
  gone(error: Error): void {
    clearTimeout(this.#timer);
    // That its VM has ended says more than that its stream has.
    if (this.#state !== 'awaited') this.#ready = deferred();
    this.#state = 'gone';
    this.#ready.reject(error);
    this.#stream?.destroy();
  }
}
