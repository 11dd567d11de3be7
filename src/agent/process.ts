import { finished, type Readable, type Writable } from 'node:stream';
import { deferred } from './deferred.js';
import { guestError, tooMuch } from './errors.js';
import { type Connect, Exchange } from './exchange.js';
import { type ParsedExec, signalName, signalNumber, terminalSize } from './options.js';
import { type AgentFrame, agentAbi, encode } from './protocol.js';
import { cutOff, Gathered, Inlet, Outlet } from './streams.js';

/** How a process in a guest ended: as Node has it of its own, one of the two is null. */
export interface GuestExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** What a process in a guest did: what awaiting it gives. */
export interface ExecResult extends GuestExit {
  readonly stdout: Buffer;
  readonly stderr: Buffer;
}

/**
 * A process in a guest, as {@link Vm.exec} starts one. It is much like a ChildProcess: streams, a signal, an end. To
 * await it gathers its output:
 *
 * ```ts
 * const { code, stdout } = await vm.exec(['uname', '-a']);
 * ```
 *
 * What could not be started, or is not heard of again, makes {@link GuestProcess.exited} and the result reject; a code
 * that is not 0 does not. An unread {@link GuestProcess.stdout} stops a process that writes, once 300 KB or so wait.
 */
export class GuestProcess implements PromiseLike<ExecResult> {
  /** What it reads. `end()` is its end of file, with a terminal Ctrl-D. What it does not read is dropped. */
  readonly stdin: Writable;
  /** What it writes; with a terminal all of it. */
  readonly stdout: Readable;
  readonly stderr: Readable;
  /** Its process id in the guest, once it runs. */
  readonly started: Promise<number>;
  /** How it ended; by then not all of its output needs to have been read. */
  readonly exited: Promise<GuestExit>;

  readonly #exchange: Exchange;
  readonly #maxBytes: number;
  readonly #program: string;
  readonly #cwd: string;
  readonly #user: string | undefined;
  readonly #outputs: readonly [Inlet, Inlet];
  readonly #stdin: Outlet;
  readonly #started = deferred<number>();
  readonly #exited = deferred<GuestExit>();
  #state: 'starting' | 'running' | 'exited' = 'starting';
  #failure: Error | undefined;
  #result: Promise<ExecResult> | undefined;

  /** @internal */
  constructor(connect: Connect, options: ParsedExec) {
    const { argv, cwd, user, stdin, tty, maxBytes, signal, timeoutMs } = options;
    this.started = this.#started.promise;
    this.exited = this.#exited.promise;
    this.#maxBytes = maxBytes;
    this.#program = argv[0] as string;
    this.#cwd = cwd;
    this.#user = typeof user === 'string' ? user : undefined;
    const tell = (frame: Buffer) => this.#exchange.send(frame);
    const { stdout, stderr } = agentAbi.streams;
    this.#outputs = [new Inlet(tell, stdout), new Inlet(tell, stderr)];
    [this.stdout, this.stderr] = this.#outputs;
    this.#stdin = new Outlet(tell);
    this.stdin = this.#stdin;
    this.#exchange = new Exchange({
      step: 'exec',
      connect,
      request: encode.exec(options),
      signal,
      timeoutMs,
      onFrame: (frame) => this.#onFrame(frame),
      onEnd: (error) => this.#onEnd(error),
    });
    // What nobody wants any more is not waited for.
    for (const stream of this.#outputs) stream.on('close', () => this.#endIfDone());
    if (tty !== undefined) this.#outputs[1].finish();
    if (stdin === 'ignore') this.#stdin.end();
    else if (stdin instanceof Uint8Array) this.#stdin.end(stdin);
    else if (stdin !== 'pipe') {
      finished(stdin, { writable: false }, (error) => error && this.#exchange.fail(error));
      stdin.pipe(this.#stdin);
    }
  }

  /**
   * Sends a signal to it and to what it has started, as Ctrl-C would: its process group. Nothing where it has ended.
   */
  kill(signal: NodeJS.Signals | number = 'SIGTERM'): void {
    const number = signalNumber(signal);
    if (this.#state !== 'exited') this.#exchange.send(encode.signal(number));
  }

  /** Sets the size of its terminal, where it has one. */
  resize(columns: number, rows: number): void {
    this.#exchange.send(encode.resize(terminalSize('size', { columns, rows })));
  }

  /**
   * Its result, once it has ended and all that it wrote has come.
   */
  // biome-ignore lint/suspicious/noThenProperty: to be awaited is what it is for; until then it is a process
  then<T = ExecResult, E = never>(
    onResult?: ((result: ExecResult) => T | PromiseLike<T>) | null,
    onError?: ((error: unknown) => E | PromiseLike<E>) | null,
  ): Promise<T | E> {
    this.#result ??= this.#gather();
    return this.#result.then(onResult, onError);
  }

  async #gather(): Promise<ExecResult> {
    const output = [new Gathered(this.#maxBytes), new Gathered(this.#maxBytes)] as const;
    const ends = this.#outputs.map(
      (stream, index) =>
        new Promise<void>((resolve) => {
          stream.on('data', (chunk: Buffer) => {
            if (!output[index]?.add(chunk)) this.#exchange.fail(tooMuch('exec', this.#maxBytes));
          });
          stream.on('error', () => {}); // exited says it
          stream.on('close', resolve);
          stream.resume(); // whoever read some of it may have paused it
        }),
    );
    const exit = await this.exited;
    await Promise.all(ends);
    if (this.#failure !== undefined) throw this.#failure;
    return { ...exit, stdout: output[0].bytes, stderr: output[1].bytes };
  }

  #onFrame(frame: AgentFrame): boolean {
    switch (frame.type) {
      case 'started':
        if (this.#state !== 'starting') return false;
        this.#state = 'running';
        this.#started.resolve(frame.pid);
        return true;
      case 'failed':
        if (this.#state !== 'starting') return false;
        this.#exchange.fail(this.#startError(frame.errno, frame.call));
        return true;
      case 'exited': {
        if (this.#state !== 'running') return false;
        this.#state = 'exited';
        const signal = frame.signal === 0 ? null : signalName(frame.signal);
        this.#exited.resolve({ code: signal === null ? frame.code : null, signal });
        return this.#endIfDone();
      }
      case 'data':
        return this.#state !== 'starting' && this.#outputs[frame.stream - 1]?.receive(frame.bytes) === true;
      case 'close':
        if (frame.stream === agentAbi.streams.stdin) {
          this.#stdin.drop();
          return true;
        }
        return this.#outputs[frame.stream - 1]?.finish() === true && this.#endIfDone();
      case 'credit':
        return this.#stdin.addCredit(frame.bytes);
      default:
        return false;
    }
  }

  #startError(errno: number, call: string): Error {
    const path = { execve: this.#program, chdir: this.#cwd, user: this.#user }[call];
    return guestError('exec', errno, call, path);
  }

  /** Once it has ended and nothing of its output is still to come. */
  #endIfDone(): true {
    const complete = this.#outputs.every((stream) => stream.complete || stream.destroyed);
    if (this.#state === 'exited' && complete) this.#exchange.done();
    return true;
  }

  #onEnd(error: Error | undefined): void {
    this.#failure = error;
    this.#state = 'exited';
    if (error !== undefined) {
      this.#started.reject(error);
      this.#exited.reject(error);
    }
    this.#stdin.drop();
    for (const stream of this.#outputs) if (!stream.complete) cutOff(stream, error);
  }
}
