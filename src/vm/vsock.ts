import { EventEmitter } from 'node:events';
import { constants } from 'node:os';
import { Duplex } from 'node:stream';
import { onAbort } from '../abort.js';
import { abortError, CasemateError, isSystemError, type SystemErrorCause, wrapSystemError } from '../errors.js';
import { integer, invalid, object } from '../is.js';
import type { NativeChild, NativeStream } from '../jail/native.js';
import { native } from '../native.js';
import { encodeStreamCommand, type StreamEvent, wire } from './wire.js';

/** What {@link Vm.connect} takes. */
export interface ConnectOptions {
  /** Gives up. Without it {@link Vm.connect} waits for as long as the guest takes to answer. */
  signal?: AbortSignal;
}

/** Why a stream broke off; docs/vsock.md has what each means. */
export type StreamBreak = 'guest' | 'driver' | 'violation' | 'host' | 'vm';

/** The `'error'` of a stream that broke off before the guest had ended it. */
export interface StreamError extends SystemErrorCause {
  code: 'ECONNRESET';
  reason: StreamBreak;
}

/** What a {@link VsockServer} emits. */
export interface VsockServerEvents {
  /** The guest has connected. */
  connection: [stream: Duplex];
  /** No more connections come. Last event. */
  close: [];
}

/** VMADDR_PORT_ANY, the one that is no port, is behind it. */
const maxPort = 0xffff_fffe;

/**
 * Takes a guest's connections to one port of its host. Made by {@link Vm.listen}. A connection that nobody listens for,
 * by the event or by iterating, is refused. It ends with its VM.
 *
 * @example
 * ```ts
 * for await (const stream of vm.listen(1234)) stream.pipe(process.stdout);
 * ```
 */
export class VsockServer extends EventEmitter<VsockServerEvents> implements AsyncIterable<Duplex> {
  /** Of the host, as the guest knows it: CID 2, VMADDR_CID_HOST. */
  readonly port: number;
  readonly #closed: () => void;
  #isOpen = true;

  /** @internal */
  constructor(port: number, closed: () => void) {
    super();
    this.port = port;
    this.#closed = closed;
  }

  /** Takes no more connections; those that there are go on. Harmless on one that is closed. */
  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#closed();
    this.emit('close');
  }

  /** The connections, until the server is closed. To leave the loop does not close it. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Duplex, void> {
    const waiting: Duplex[] = [];
    let wake = () => {};
    const take = (stream: Duplex) => {
      waiting.push(stream);
      wake();
    };
    const close = () => wake();
    this.on('connection', take);
    this.on('close', close);
    try {
      while (this.#isOpen || waiting.length > 0) {
        const stream = waiting.shift();
        if (stream !== undefined) yield stream;
        else {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      }
    } finally {
      this.off('connection', take);
      this.off('close', close);
      for (const stream of waiting) stream.destroy(); // nobody has ever seen them
    }
  }
}

/** What waits of each stream, here as in the kernel, once many are open: one that nobody reads costs little. */
const littleBytes = 4096;

const breaks: Readonly<Record<StreamBreak, string>> = {
  guest: 'the guest has reset the stream',
  driver: "the guest's driver has begun anew",
  violation: 'what the guest sent on the stream breaks the protocol',
  host: 'the host has no memory to watch its socket',
  vm: 'the VM has ended',
};

function readError(reason: StreamBreak): StreamError {
  const error = native.systemError(constants.errno.ECONNRESET, 'read') as StreamError;
  error.message += `: ${breaks[reason]}`;
  return Object.assign(error, { reason });
}

/**
 * Node's end of a stream. That its socket is at its end says nothing: the monitor tells what it means, and a monitor that
 * was killed tells nothing.
 */
class VsockStream extends Duplex {
  readonly #socket: NativeStream;
  #isAtEnd = false;
  #guestEnded = false;
  #guestClosed = false;
  #broken: StreamBreak = 'vm';

  constructor(child: NativeChild, message: Uint8Array, label: string | undefined, isAmple: boolean) {
    super({ allowHalfOpen: true, ...(!isAmple && { readableHighWaterMark: littleBytes }) });
    this.#socket = new native.Stream(
      child,
      message,
      (chunk) => {
        if (chunk === null) {
          this.#isAtEnd = true;
          this.#settle();
        } else if (!this.push(chunk)) {
          this.#socket.pause();
        }
      },
      label,
      isAmple ? undefined : littleBytes,
    );
    this.once('end', () => this.#settle());
  }

  /** The inode of the monitor's end. */
  get peer(): number {
    return this.#socket.peer;
  }

  /** It has an owner now, who is to hear of its end though he only writes. */
  start(): this {
    this.read(0);
    return this;
  }

  /** All that the guest will ever send is in the socket. False where that was said before. */
  guestEnded(): boolean {
    const isNew = !this.#guestEnded;
    this.#guestEnded = true;
    this.#settle();
    return isNew;
  }

  /** Nothing more happens in either direction; why, matters where the guest has not ended it. */
  guestClosed(broken: StreamBreak): void {
    this.#guestClosed = true;
    this.#broken = broken;
    this.#settle();
  }

  /** Likewise, and what is in the socket is taken into memory: a VM that has ended holds no descriptors. */
  guestIsGone(): void {
    if (this.destroyed) return;
    this.#socket.drain();
    this.#socket.close();
    // What was said of it before is why.
    this.guestClosed(this.#broken);
  }

  #settle(): void {
    if (this.destroyed || !this.#isAtEnd) return;
    if (this.#guestEnded) {
      if (this.readableEnded) {
        // What is written now nobody can read.
        if (this.#guestClosed) this.destroy();
      } else {
        this.push(null);
      }
    } else if (this.#guestClosed) {
      this.destroy(readError(this.#broken));
    }
  }

  override _read(): void {
    if (!this.#isAtEnd) this.#socket.resume();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#socket.write(chunk, (errno) => done(errno === 0 ? null : native.systemError(errno, 'write')));
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#socket.finish();
    done();
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#socket.close();
    done(error);
  }
}

/** A stream that the monitor knows of. */
interface Known {
  readonly stream: VsockStream;
  /** Of connect(), until it is answered. */
  answer: ((error?: CasemateError) => void) | undefined;
}

/** The streams between a VM and Node, and what the monitor says of them. @internal */
export class Vsock {
  readonly #child: NativeChild;
  readonly #label: string | undefined;
  /** By their ids, until the monitor has said its last word about them. */
  readonly #known = new Map<number, Known>();
  /** Closed by the guest, and not read to their end. */
  readonly #unread = new Set<VsockStream>();
  readonly #servers = new Map<number, VsockServer>();
  /** The monitor's end of the stream that it said its last word about last: it closes that right after. */
  #lastPeer = 0;
  #lastId = 0;
  #isOver = false;

  constructor(child: NativeChild, label: string | undefined) {
    this.#child = child;
    this.#label = label;
  }

  /** The inodes of all sockets that the monitor may have for them. */
  peers(): ReadonlySet<number> {
    return new Set([...Array.from(this.#known.values(), ({ stream }) => stream.peer), this.#lastPeer]);
  }

  async connect(port: number, options: ConnectOptions = {}): Promise<Duplex> {
    const { signal } = parseConnectOptions(options);
    integer('port', port, 0, maxPort);
    if (signal?.aborted) throw abortError(signal);
    if (this.#isOver) throw closed();
    if (this.#known.size >= wire.maxStreams) {
      throw new CasemateError('ERR_CASEMATE_TOO_MANY_STREAMS', `The VM has ${wire.maxStreams} streams already`, {
        step: 'connect',
        remedy: 'End some of them first: a stream counts until both its ends are closed.',
      });
    }
    const id = this.#nextId();
    const stream = this.#open(wire.commands.streamConnect, id, port);
    return new Promise((resolve, reject) => {
      const unlisten = onAbort(signal, () => {
        // The monitor sees that its end hangs up, and answers all the same.
        stream.destroy();
        reject(abortError(signal as AbortSignal));
      });
      const answer = (error?: CasemateError) => {
        unlisten();
        if (error !== undefined) {
          stream.destroy();
          reject(error);
        } else if (!stream.destroyed) {
          resolve(stream.start());
        }
      };
      this.#known.set(id, { stream, answer });
    });
  }

  listen(port: number): VsockServer {
    integer('port', port, 0, maxPort);
    if (this.#isOver) throw closed();
    if (this.#servers.has(port)) {
      throw new CasemateError('ERR_CASEMATE_STATE', `There is a server for port ${port} already`, {
        step: 'listen',
        remedy: 'Close it first, or use another port.',
      });
    }
    const server = new VsockServer(port, () => this.#servers.delete(port));
    this.#servers.set(port, server);
    return server;
  }

  /** What the monitor says; where that cannot be, what is wrong with it. */
  handle(event: StreamEvent): string | undefined {
    const { type, id } = event;
    if (type === 'streamRequested') return this.#answer(id, event.port);
    const known = this.#known.get(id);
    if (known === undefined) return 'news of a stream that there is not';
    const { stream, answer } = known;
    const isAnswer = type === 'streamConnected' || type === 'streamRefused';
    if (isAnswer !== (answer !== undefined)) return `a '${type}' out of its turn`;
    switch (event.type) {
      case 'streamConnected':
        known.answer = undefined;
        answer?.();
        return;
      case 'streamRefused':
        this.#known.delete(id);
        this.#lastPeer = stream.peer;
        answer?.(refused());
        return;
      case 'streamEnded':
        return stream.guestEnded() ? undefined : 'a second end of a stream';
      case 'streamClosed':
        this.#known.delete(id);
        this.#lastPeer = stream.peer;
        // What Node has closed is destroyed, and nobody asks of it.
        stream.guestClosed(event.broken === 'none' ? 'guest' : event.broken);
        if (stream.destroyed) return;
        // What it has sent is in the socket still, until somebody reads it or the VM ends.
        this.#unread.add(stream);
        stream.once('close', () => this.#unread.delete(stream));
    }
  }

  /** The VM has ended. */
  guestIsGone(): void {
    this.#isOver = true;
    for (const { stream, answer } of this.#known.values()) {
      if (answer === undefined) stream.guestIsGone();
      else answer(closed());
    }
    this.#known.clear();
    for (const stream of this.#unread) stream.guestIsGone();
    for (const server of [...this.#servers.values()]) server.close();
  }

  /** The guest wants to connect: answered at once, so nothing of that can gather here. */
  #answer(id: number, port: number): string | undefined {
    const index = id - wire.firstGuestStream;
    if (index < 0 || index >= wire.maxStreams || this.#known.has(id)) return 'a request with an id that cannot be';
    const server = this.#servers.get(port);
    if (server === undefined || server.listenerCount('connection') === 0 || this.#known.size >= wire.maxStreams) {
      return this.#refuse(id);
    }
    let stream: VsockStream;
    try {
      stream = this.#open(wire.commands.streamAccept, id, port);
    } catch {
      return this.#refuse(id); // no descriptors are left, or the VM is ending
    }
    this.#known.set(id, { stream, answer: undefined });
    server.emit('connection', stream.start());
    return undefined;
  }

  #refuse(id: number): undefined {
    try {
      this.#child.send(encodeStreamCommand(wire.commands.streamRefuse, id, 0));
    } catch {
      // It has hung up: its end is on the way.
    }
  }

  #open(command: number, id: number, port: number): VsockStream {
    try {
      return wrapSystemError(
        'ERR_CASEMATE_SYSTEM',
        () => {
          const isAmple = this.#known.size < wire.ampleStreams;
          return new VsockStream(this.#child, encodeStreamCommand(command, id, port), this.#label, isAmple);
        },
        { step: 'connect', remedy: 'Are there descriptors left for this process (ulimit -n)?' },
      );
    } catch (error) {
      if (error instanceof CasemateError && isSystemError(error.cause) && error.cause.code === 'EPIPE') throw closed();
      throw error;
    }
  }

  #nextId(): number {
    do this.#lastId = (this.#lastId + 1) % wire.firstGuestStream;
    while (this.#known.has(this.#lastId));
    return this.#lastId;
  }
}

function parseConnectOptions(options: unknown): ConnectOptions {
  const { signal } = object('options', options, ['signal']);
  if (signal !== undefined && !(signal instanceof AbortSignal))
    throw invalid('options.signal', 'an AbortSignal', signal);
  return signal === undefined ? {} : { signal };
}

const closed = () =>
  new CasemateError('ERR_CASEMATE_CLOSED', 'The VM has ended', { step: 'vm', remedy: 'Launch another one.' });

const refused = () =>
  new CasemateError('ERR_CASEMATE_CONNECTION_REFUSED', 'The guest refuses the connection', {
    step: 'connect',
    remedy:
      'Does a program in the guest listen on this port, and is its vsock driver loaded? Or let the guest connect.',
  });
