import { constants } from 'node:os';
import { Readable } from 'node:stream';
import { integer, invalid, object, oneOf, string } from '../is.js';
import { agentAbi, type ExecRequest, type TerminalSize } from './protocol.js';

/** What any request to a guest's agent takes. */
export interface RequestOptions {
  /** Aborts it: an AbortError. */
  signal?: AbortSignal;
  /** How long it may take in all, in milliseconds; also to wait for the agent. Default: no limit. */
  timeoutMs?: number;
}

/** What {@link Vm.exec} takes. */
export interface ExecOptions extends RequestOptions {
  /** Its working directory. Default `/`. */
  cwd?: string;
  /**
   * Variables of its environment. PATH, HOME and USER are set as its user has them where they are not given, with a
   * terminal TERM too.
   */
  env?: Readonly<Record<string, string>>;
  /**
   * Who it runs as: a name of the guest's /etc/passwd, with its groups, or ids, without further groups. Default: the
   * agent's own user, root.
   */
  user?: string | { uid: number; gid: number };
  /** Gives it a terminal, of a size. Its output is all of it {@link GuestProcess.stdout} then. Default: none. */
  tty?: boolean | TerminalSize;
  /**
   * What it reads: `'pipe'` is {@link GuestProcess.stdin}; or nothing, bytes, or a stream. Default `'ignore'`, with a
   * terminal `'pipe'`.
   */
  stdin?: 'pipe' | 'ignore' | Uint8Array | Readable;
  /** The most that is gathered of stdout and of stderr for a result, in bytes. Default 16 MiB. */
  maxBytes?: number;
}

/** What {@link Vm.readFile} takes. */
export interface ReadFileOptions extends RequestOptions {
  /** The most that is read, in bytes. Default 64 MiB. */
  maxBytes?: number;
}

/** What {@link Vm.writeFile} takes. */
export interface WriteFileOptions extends RequestOptions {
  /** Permissions that the file gets, whether it was there or not. Default: 0644 for one that was not. */
  mode?: number;
}

/** Checked, with defaults. */
export interface ParsedExec extends ExecRequest {
  readonly stdin: 'pipe' | 'ignore' | Uint8Array | Readable;
  readonly maxBytes: number;
  readonly signal: AbortSignal | undefined;
  readonly timeoutMs: number | undefined;
}

const mib = 1024 * 1024;
const maxDelayMs = 0x7fffffff;

const execOptions = [
  'cwd',
  'env',
  'user',
  'tty',
  'stdin',
  'maxBytes',
  'signal',
  'timeoutMs',
] as const satisfies readonly (keyof ExecOptions)[];

export function parseExec(argv: unknown, options: unknown): ParsedExec {
  const given = object('options', options, execOptions);
  const { cwd = '/', env = {}, user, tty = false, maxBytes = 16 * mib } = given;
  const terminal = parseTty(tty);
  const { stdin = terminal === undefined ? 'ignore' : 'pipe' } = given;
  const parsed = {
    argv: parseArgv(argv),
    cwd: absolute('options.cwd', cwd),
    env: parseEnv(env, terminal !== undefined),
    user: user === undefined ? undefined : parseUser(user),
    tty: terminal,
    stdin: parseStdin(stdin),
    maxBytes: integer('options.maxBytes', maxBytes, 0, Number.MAX_SAFE_INTEGER),
    ...parseRequest(given),
  };
  const size = [parsed.cwd, ...parsed.argv, ...parsed.env].reduce((sum, text) => sum + Buffer.byteLength(text) + 1, 0);
  // Room for the rest of the request.
  const most = agentAbi.maxPayload - 4096;
  if (size > most) throw invalid('argv', `arguments and variables of at most ${most} bytes in all`, `${size} bytes`);
  return parsed;
}

function parseArgv(argv: unknown): string[] {
  const expected = 'an array of strings, the program first';
  if (!Array.isArray(argv) || argv.length === 0) throw invalid('argv', expected, argv);
  if (argv.length > agentAbi.maxStrings) throw invalid('argv', `at most ${agentAbi.maxStrings} strings`, argv);
  const strings = Array.from(argv, (arg, index) => string(`argv[${index}]`, arg));
  if (strings[0] === '') throw invalid('argv[0]', 'the name or path of a program', '');
  return strings;
}

function parseEnv(env: unknown, hasTerminal: boolean): string[] {
  const given = env as Record<string, unknown>;
  object('options.env', env, typeof env === 'object' && env !== null ? Object.keys(env) : []);
  const names = Object.keys(given);
  if (names.length >= agentAbi.maxStrings) throw invalid('options.env', 'fewer variables', env);
  const variables = names.map((name) => {
    if (name === '' || name.includes('=') || name.includes('\0')) {
      throw invalid('options.env', 'names of variables without = in them', name);
    }
    return `${name}=${string(`options.env.${name}`, given[name])}`;
  });
  if (hasTerminal && given.TERM === undefined) variables.push('TERM=xterm-256color');
  return variables;
}

function parseUser(user: unknown): ParsedExec['user'] {
  if (typeof user === 'string') {
    if (user === '' || user.includes(':') || Buffer.byteLength(user) > 255) {
      throw invalid('options.user', 'the name of a user', user);
    }
    return string('options.user', user);
  }
  const { uid, gid } = object('options.user', user, ['uid', 'gid'], 'a name or { uid, gid }');
  // The highest one says "unchanged" to the kernel.
  const id = (name: string, value: unknown) => integer(name, value, 0, 0xfffffffe);
  return { uid: id('options.user.uid', uid), gid: id('options.user.gid', gid) };
}

function parseTty(tty: unknown): TerminalSize | undefined {
  if (tty === false) return undefined;
  if (tty === true) return { columns: 80, rows: 24 };
  return terminalSize('options.tty', object('options.tty', tty, ['columns', 'rows'], 'a boolean or { columns, rows }'));
}

/** Both in range. */
export function terminalSize(name: string, { columns, rows }: { columns?: unknown; rows?: unknown }): TerminalSize {
  return {
    columns: integer(`${name}.columns`, columns, 0, 0xffff),
    rows: integer(`${name}.rows`, rows, 0, 0xffff),
  };
}

function parseStdin(stdin: unknown): ParsedExec['stdin'] {
  if (stdin instanceof Uint8Array || stdin instanceof Readable) return stdin;
  return oneOf('options.stdin', stdin, ['pipe', 'ignore']);
}

/** A path that means the same whoever uses it. */
export function absolute(name: string, path: unknown): string {
  const text = string(name, path);
  if (!text.startsWith('/')) throw invalid(name, 'an absolute path', path);
  if (Buffer.byteLength(text) > 4095) throw invalid(name, 'a path of at most 4095 bytes', path);
  return text;
}

export function parseRequest({ signal, timeoutMs }: Record<string, unknown>): {
  signal: AbortSignal | undefined;
  timeoutMs: number | undefined;
} {
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw invalid('options.signal', 'an AbortSignal', signal);
  }
  return {
    signal,
    timeoutMs: timeoutMs === undefined ? undefined : integer('options.timeoutMs', timeoutMs, 1, maxDelayMs),
  };
}

export function parseReadFile(path: unknown, options: unknown) {
  const given = object('options', options, ['maxBytes', 'signal', 'timeoutMs'] satisfies (keyof ReadFileOptions)[]);
  return {
    path: absolute('path', path),
    maxBytes: integer('options.maxBytes', given.maxBytes ?? 64 * mib, 0, Number.MAX_SAFE_INTEGER),
    ...parseRequest(given),
  };
}

export function parseWriteFile(path: unknown, data: unknown, options: unknown) {
  const given = object('options', options, ['mode', 'signal', 'timeoutMs'] satisfies (keyof WriteFileOptions)[]);
  if (typeof data !== 'string' && !(data instanceof Uint8Array) && !(data instanceof Readable)) {
    throw invalid('data', 'a string, a Uint8Array or a Readable', data);
  }
  return {
    path: absolute('path', path),
    data,
    mode: given.mode === undefined ? undefined : integer('options.mode', given.mode, 0, 0o7777),
    ...parseRequest(given),
  };
}

/** The number of a signal: Linux' names are the same in the guest. */
export function signalNumber(signal: unknown): number {
  if (typeof signal === 'number') return integer('signal', signal, 0, 64);
  const number = constants.signals[signal as NodeJS.Signals];
  if (typeof signal !== 'string' || number === undefined) throw invalid('signal', "a signal's name or number", signal);
  return number;
}

const signalNames = Object.entries(constants.signals) as [NodeJS.Signals, number][];

/** Its name; those without one have their number in it: `SIG34`. */
export function signalName(number: number): NodeJS.Signals {
  return signalNames.find(([, value]) => value === number)?.[0] ?? (`SIG${number}` as NodeJS.Signals);
}
