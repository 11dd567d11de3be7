import { finished, Readable } from 'node:stream';
import { guestError, tooMuch } from './errors.js';
import { type Connect, Exchange, type ExchangeOptions } from './exchange.js';
import {
  type ExecOptions,
  parseExec,
  parseReadFile,
  parseWriteFile,
  type ReadFileOptions,
  type WriteFileOptions,
} from './options.js';
import { GuestProcess } from './process.js';
import { type AgentFrame, agentAbi, encode } from './protocol.js';
import { Gathered, Outlet } from './streams.js';

/** The agent of a guest, wherever it is to be reached. @internal */
export class Agent {
  readonly #connect: Connect;

  constructor(connect: Connect) {
    this.#connect = connect;
  }

  exec(argv: readonly string[], options: ExecOptions = {}): GuestProcess {
    return new GuestProcess(this.#connect, parseExec(argv, options));
  }

  async readFile(path: string, options: ReadFileOptions = {}): Promise<Buffer> {
    const parsed = parseReadFile(path, options);
    const { stdout } = agentAbi.streams;
    const gathered = new Gathered(parsed.maxBytes);
    let credit = 0;
    await this.#request({ ...parsed, step: 'readFile', request: encode.read(parsed.path) }, (frame, exchange) => {
      if (frame.type !== 'data') return frame.type === 'exited' || (frame.type === 'close' && frame.stream === stdout);
      if (!gathered.add(frame.bytes)) exchange.fail(tooMuch('readFile', parsed.maxBytes));
      credit += frame.bytes.length;
      if (credit >= agentAbi.window / 2) {
        exchange.send(encode.credit(stdout, credit));
        credit = 0;
      }
      return frame.stream === stdout;
    });
    return gathered.bytes;
  }

  async writeFile(path: string, data: string | Uint8Array | Readable, options: WriteFileOptions = {}): Promise<void> {
    const parsed = parseWriteFile(path, data, options);
    const request = encode.write(parsed.path, parsed.mode);
    const source = parsed.data;
    let outlet: Outlet | undefined;
    await this.#request(
      { ...parsed, step: 'writeFile', request },
      (frame) =>
        frame.type === 'exited'
          ? outlet?.writableFinished === true
          : frame.type === 'credit' && outlet?.addCredit(frame.bytes) === true,
      (exchange) => {
        outlet = new Outlet((bytes) => exchange.send(bytes));
        outlet.on('error', () => {}); // a source that fails is told of below
        if (!(source instanceof Readable)) return outlet.end(source);
        // A stream that breaks off makes no file: the agent hears of no end of it.
        finished(source, { writable: false }, (error) => error && exchange.fail(error));
        source.pipe(outlet);
      },
    );
  }

  /** Asks an agent that is init to end its guest in order: it answers before that begins. */
  async powerOff(): Promise<void> {
    await this.#request(
      { step: 'powerOff', request: encode.powerOff(), signal: undefined, timeoutMs: undefined },
      (frame) => frame.type === 'exited',
    );
  }

  /** A request that ends with EXITED, or FAILED. */
  #request(
    options: Omit<ExchangeOptions, 'connect' | 'onFrame' | 'onEnd'> & { readonly path?: string },
    onFrame: (frame: AgentFrame, exchange: Exchange) => boolean,
    begin?: (exchange: Exchange) => void,
  ): Promise<void> {
    const { step, path } = options;
    return new Promise((resolve, reject) => {
      const exchange = new Exchange({
        ...options,
        connect: this.#connect,
        onFrame: (frame) => {
          if (frame.type === 'failed') {
            exchange.fail(guestError(step, frame.errno, frame.call, path));
            return true;
          }
          const expected = onFrame(frame, exchange);
          if (expected && frame.type === 'exited') exchange.done();
          return expected;
        },
        onEnd: (error) => (error === undefined ? resolve() : reject(error)),
      });
      begin?.(exchange);
    });
  }
}
