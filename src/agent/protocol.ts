/**
 * What is said to the agent in a guest (native/guest/agent-abi.h), as Node speaks it. A test compiles that header and
 * compares every number here with it.
 */

/** @internal */
export const agentAbi = {
  magic: 0x676d6d63,
  version: 1,
  port: 1003,
  window: 262144,
  maxPayload: 262144,
  maxStrings: 16384,
  path: '/casemate/agent',
  modules: '/casemate/modules',
  types: {
    exec: 1,
    read: 2,
    write: 3,
    powerOff: 4,
    data: 16,
    close: 17,
    credit: 18,
    signal: 32,
    resize: 33,
    hello: 48,
    started: 49,
    exited: 50,
    failed: 51,
  },
  streams: { stdin: 0, stdout: 1, stderr: 2 },
  execFlags: { tty: 1, userName: 2, userIds: 4 },
  roles: { init: 1, beside: 2 },
  sizes: { frame: 8, exec: 24, write: 8, credit: 4, signal: 4, size: 4, hello: 12, started: 4, exited: 8, failed: 32 },
} as const;

const { types, streams, sizes, roles, execFlags } = agentAbi;

/** Whether the agent is process 1 of its guest, or runs beside the guest's own. */
export type AgentRole = keyof typeof agentAbi.roles;

/** A frame from an agent. */
export type AgentFrame =
  | { readonly type: 'data'; readonly stream: number; readonly bytes: Buffer }
  | { readonly type: 'close'; readonly stream: number }
  | { readonly type: 'credit'; readonly bytes: number }
  | { readonly type: 'hello'; readonly version: number; readonly role: AgentRole }
  | { readonly type: 'started'; readonly pid: number }
  | { readonly type: 'exited'; readonly code: number; readonly signal: number }
  | { readonly type: 'failed'; readonly errno: number; readonly call: string };

/** Sizes of what a frame from an agent carries, by type; undefined for what an agent may not send. */
function allowed(type: number, size: number): boolean {
  switch (type) {
    case types.data:
      return size > 0 && size <= agentAbi.maxPayload;
    case types.close:
      return size === 0;
    case types.credit:
      return size === sizes.credit;
    case types.hello:
      return size === sizes.hello;
    case types.started:
      return size === sizes.started;
    case types.exited:
      return size === sizes.exited;
    case types.failed:
      return size === sizes.failed;
    default:
      return false;
  }
}

/** Undefined for numbers that cannot be. */
function decode(type: number, stream: number, payload: Buffer): AgentFrame | undefined {
  const isOutput = stream === streams.stdout || stream === streams.stderr;
  switch (type) {
    case types.data:
      return isOutput ? { type: 'data', stream, bytes: payload } : undefined;
    case types.close:
      return isOutput || stream === streams.stdin ? { type: 'close', stream } : undefined;
    case types.credit: {
      const bytes = payload.readUInt32LE(0);
      const fits = bytes > 0 && bytes <= agentAbi.window;
      return fits && stream === streams.stdin ? { type: 'credit', bytes } : undefined;
    }
    default:
      return stream === 0 ? decodeEvent(type, payload) : undefined;
  }
}

function decodeEvent(type: number, payload: Buffer): AgentFrame | undefined {
  switch (type) {
    case types.hello: {
      const role = (Object.keys(roles) as AgentRole[]).find((name) => roles[name] === payload.readUInt32LE(8));
      if (payload.readUInt32LE(0) !== agentAbi.magic || role === undefined) return undefined;
      return { type: 'hello', version: payload.readUInt32LE(4), role };
    }
    case types.started: {
      const pid = payload.readUInt32LE(0);
      return pid > 0 && pid < 2 ** 31 ? { type: 'started', pid } : undefined;
    }
    case types.exited: {
      const [code, signal] = [payload.readUInt32LE(0), payload.readUInt32LE(4)];
      if (code > 255 || signal > 64 || (code !== 0 && signal !== 0)) return undefined;
      return { type: 'exited', code, signal };
    }
    case types.failed: {
      const errno = payload.readUInt32LE(0);
      const end = payload.indexOf(0, 4);
      const call = payload.toString('latin1', 4, end < 0 ? undefined : end);
      if (errno === 0 || errno > 4095 || end < 0 || !/^[\x20-\x7e]+$/.test(call)) return undefined;
      return { type: 'failed', errno, call };
    }
    default:
      return undefined;
  }
}

/**
 * Takes what an agent sends apart, however it was cut. It holds one frame at most, and that only once its head has been
 * found possible.
 */
export class FrameDecoder {
  readonly #onFrame: (frame: AgentFrame) => void;
  #parts: Buffer[] = [];
  #have = 0;
  /** How much has to be there to go on: a head, or a head and what it announces. */
  #needed: number = sizes.frame;
  #broken = false;

  /** @param onFrame - gets one after the other; it may throw, and then that is the last one. */
  constructor(onFrame: (frame: AgentFrame) => void) {
    this.#onFrame = onFrame;
  }

  /** False, from then on, where the protocol was broken. */
  write(chunk: Buffer): boolean {
    if (this.#broken) return false;
    this.#parts.push(chunk);
    this.#have += chunk.length;
    while (this.#have >= this.#needed) {
      const bytes = this.#parts.length === 1 ? (this.#parts[0] as Buffer) : Buffer.concat(this.#parts);
      const used = this.#take(bytes);
      if (used === undefined) {
        this.#broken = true;
        this.#parts = [];
        return false;
      }
      this.#parts = [bytes.subarray(used)];
      this.#have -= used;
    }
    return true;
  }

  /** How many bytes make a frame; 0 where its head says that there is more to come. */
  #take(bytes: Buffer): number | undefined {
    const type = bytes.readUInt16LE(0);
    const stream = bytes.readUInt16LE(2);
    const size = bytes.readUInt32LE(4);
    if (!allowed(type, size)) return undefined;
    const whole = sizes.frame + size;
    if (bytes.length < whole) {
      this.#needed = whole;
      return 0;
    }
    this.#needed = sizes.frame;
    const frame = decode(type, stream, bytes.subarray(sizes.frame, whole));
    if (frame === undefined) return undefined;
    this.#onFrame(frame);
    return whole;
  }
}

function frame(type: number, stream: number, ...payload: Uint8Array[]): Buffer {
  const head = Buffer.alloc(sizes.frame);
  head.writeUInt16LE(type, 0);
  head.writeUInt16LE(stream, 2);
  head.writeUInt32LE(
    payload.reduce((sum, { length }) => sum + length, 0),
    4,
  );
  return Buffer.concat([head, ...payload]);
}

function numbers(...values: number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length);
  for (const [index, value] of values.entries()) bytes.writeUInt32LE(value, 4 * index);
  return bytes;
}

const strings = (...texts: readonly string[]): Buffer => Buffer.from(texts.map((text) => `${text}\0`).join(''));

/** Columns and rows of a terminal, as struct casemate_agent_size. */
const sizeNumber = ({ columns, rows }: TerminalSize): number => columns + rows * 0x10000;

/** Size of a terminal, in characters. */
export interface TerminalSize {
  readonly columns: number;
  readonly rows: number;
}

/** A command, checked. */
export interface ExecRequest {
  readonly argv: readonly string[];
  readonly cwd: string;
  /** `NAME=value` */
  readonly env: readonly string[];
  readonly user: string | { readonly uid: number; readonly gid: number } | undefined;
  readonly tty: TerminalSize | undefined;
}

/** Frames to an agent. */
export const encode = {
  exec({ argv, cwd, env, user, tty }: ExecRequest): Buffer {
    const isName = typeof user === 'string';
    const ids = typeof user === 'object' ? user : { uid: 0, gid: 0 };
    const flags =
      (tty === undefined ? 0 : execFlags.tty) |
      (isName ? execFlags.userName : 0) |
      (typeof user === 'object' ? execFlags.userIds : 0);
    const size = sizeNumber(tty ?? { columns: 0, rows: 0 });
    return frame(
      types.exec,
      0,
      numbers(flags, ids.uid, ids.gid, size, argv.length, env.length),
      strings(cwd, isName ? user : '', ...argv, ...env),
    );
  },
  read: (path: string): Buffer => frame(types.read, 0, strings(path)),
  write: (path: string, mode: number | undefined): Buffer =>
    frame(types.write, 0, numbers(mode === undefined ? 0 : 1, mode ?? 0), strings(path)),
  powerOff: (): Buffer => frame(types.powerOff, 0),
  data: (stream: number, bytes: Uint8Array): Buffer => frame(types.data, stream, bytes),
  close: (stream: number): Buffer => frame(types.close, stream),
  credit: (stream: number, bytes: number): Buffer => frame(types.credit, stream, numbers(bytes)),
  signal: (number: number): Buffer => frame(types.signal, 0, numbers(number)),
  resize: (size: TerminalSize): Buffer => frame(types.resize, 0, numbers(sizeNumber(size))),
};
