import { type ParseArgsConfig, parseArgs } from 'node:util';
import { CasemateError } from '../errors.js';
import type { NetworkOptions } from '../vm/network.js';

/** A command line, understood. */
export type Command =
  | { readonly name: 'help'; readonly topic: Topic }
  | { readonly name: 'version' }
  | { readonly name: 'doctor'; readonly json: boolean }
  | ({ readonly name: 'bench' } & BenchOptions)
  | ({ readonly name: 'image' } & ImageCommand)
  | ({ readonly name: 'selinux' } & SelinuxCommand)
  | ({ readonly name: 'run' } & RunOptions);

export type Topic = (typeof topics)[number];

const topics = ['casemate', 'run', 'image', 'doctor', 'selinux', 'bench'] as const;

const selinuxActions = ['status', 'install', 'remove', 'check', 'restore', 'denials'] as const;

/** What `casemate selinux` was asked for. */
export interface SelinuxCommand {
  readonly action: (typeof selinuxActions)[number];
  readonly json: boolean;
}

/** What `casemate image` was asked for. Absent: the default of the library. */
export interface ImageCommand {
  readonly from: string;
  readonly to: string;
  readonly format?: string;
  readonly ownership?: 'keep';
  readonly sizeMib?: number;
}

/** What `casemate bench` was asked for. */
export interface BenchOptions {
  /** How many launches are measured. */
  readonly launches: number;
  /** Absent: the default of the library. */
  readonly memoryMib?: number;
  readonly json: boolean;
}

/** What `casemate run` was asked for. Absent: the default of the library. */
export interface RunOptions {
  /** Path of the guest's image; absent: the built-in guest. */
  readonly guest?: string;
  /** Paths of a Linux kernel, `'auto'` for the host's, and its initrds, and its command line. */
  readonly kernel?: string;
  readonly initrd?: readonly string[];
  readonly disks?: readonly { readonly path: string; readonly readOnly?: true }[];
  readonly cmdline?: string;
  /** What a Linux guest runs, instead of being talked to on its console; who as; and modules of its kernel. */
  readonly command?: readonly string[];
  readonly user?: string;
  readonly modules?: string;
  /** The guest's own arguments. */
  readonly args: readonly string[];
  readonly memoryMib?: number;
  readonly vcpus?: number;
  /** What the VM may take of the host. */
  readonly limits?: { readonly memoryMib?: number; readonly cpus?: number; readonly pids?: number };
  readonly cpl?: 0 | 3;
  /** Path of the file that the guest finds in its memory. */
  readonly input?: string;
  readonly timeoutMs?: number;
  readonly network?: NetworkOptions;
  readonly json: boolean;
  readonly timeline: boolean;
  readonly evidence: boolean;
}

type OptionTable = NonNullable<ParseArgsConfig['options']>;

const HELP = { help: { type: 'boolean', short: 'h' } } as const satisfies OptionTable;
const TOP_OPTIONS = { ...HELP, version: { type: 'boolean', short: 'v' } } as const satisfies OptionTable;
const DOCTOR_OPTIONS = { ...HELP, json: { type: 'boolean' } } as const satisfies OptionTable;
const IMAGE_OPTIONS = {
  ...HELP,
  format: { type: 'string', short: 'f' },
  size: { type: 'string', short: 's' },
  'keep-owners': { type: 'boolean' },
} as const satisfies OptionTable;
const BENCH_OPTIONS = {
  ...HELP,
  launches: { type: 'string', short: 'n' },
  memory: { type: 'string', short: 'm' },
  json: { type: 'boolean' },
} as const satisfies OptionTable;
const RUN_OPTIONS = {
  ...HELP,
  kernel: { type: 'string', short: 'k' },
  initrd: { type: 'string', multiple: true },
  disk: { type: 'string', multiple: true },
  cmdline: { type: 'string' },
  user: { type: 'string', short: 'u' },
  modules: { type: 'string' },
  memory: { type: 'string', short: 'm' },
  vcpus: { type: 'string' },
  'memory-limit': { type: 'string' },
  cpus: { type: 'string' },
  pids: { type: 'string' },
  cpl: { type: 'string' },
  input: { type: 'string', short: 'i' },
  timeout: { type: 'string', short: 't' },
  network: { type: 'string' },
  address: { type: 'string', multiple: true },
  mac: { type: 'string' },
  json: { type: 'boolean' },
  timeline: { type: 'boolean' },
  evidence: { type: 'boolean' },
} as const satisfies OptionTable;

/** Understands the arguments behind `casemate`. Ranges of numbers are the library's to check. */
export function parseCommand(argv: readonly string[]): Command {
  const { values, rest } = parse('casemate', argv, TOP_OPTIONS);
  if (values.version) return { name: 'version' };
  if (values.help) return { name: 'help', topic: 'casemate' };
  const [command, ...args] = rest;
  switch (command) {
    case undefined:
      return { name: 'help', topic: 'casemate' };
    case 'help':
      return parseHelp(args);
    case 'doctor':
      return parseDoctor(args);
    case 'bench':
      return parseBench(args);
    case 'image':
      return parseImage(args);
    case 'selinux':
      return parseSelinux(args);
    case 'run':
      return parseRun(args);
    default:
      throw usage('casemate', `There is no command '${command}'`);
  }
}

function parseHelp(args: readonly string[]): Command {
  const [topic = 'casemate', ...more] = args;
  if (more.length > 0) throw usage('casemate', `Unexpected argument '${more[0]}'`);
  const known = topics.find((one) => one === topic);
  if (known === undefined) throw usage('casemate', `There is no help on '${topic}'`);
  return { name: 'help', topic: known };
}

function parseDoctor(args: readonly string[]): Command {
  const { values, rest } = parse('doctor', args, DOCTOR_OPTIONS);
  if (values.help) return { name: 'help', topic: 'doctor' };
  if (rest.length > 0) throw usage('doctor', `Unexpected argument '${rest[0]}'`);
  return { name: 'doctor', json: values.json ?? false };
}

function parseBench(args: readonly string[]): Command {
  const { values, rest } = parse('bench', args, BENCH_OPTIONS);
  if (values.help) return { name: 'help', topic: 'bench' };
  if (rest.length > 0) throw usage('bench', `Unexpected argument '${rest[0]}'`);
  const launches = wholeNumber('bench', '--launches', values.launches ?? '100');
  if (launches < 1 || launches > 100_000) throw usage('bench', `--launches takes 1 to 100000, not '${launches}'`);
  return {
    name: 'bench',
    launches,
    json: values.json ?? false,
    ...(values.memory !== undefined && { memoryMib: wholeNumber('bench', '--memory', values.memory) }),
  };
}

/** Options may stand behind the action, too. */
function parseSelinux(argv: readonly string[]): Command {
  const { values, rest } = parse('selinux', argv, DOCTOR_OPTIONS);
  if (values.help) return { name: 'help', topic: 'selinux' };
  const [given = 'status', ...more] = rest;
  const action = selinuxActions.find((one) => one === given);
  if (action === undefined) throw usage('selinux', `It takes ${selinuxActions.join(', ')}, not '${given}'`);
  const behind = parse('selinux', more, DOCTOR_OPTIONS);
  if (behind.rest.length > 0) throw usage('selinux', `Unexpected argument '${behind.rest[0]}'`);
  return { name: 'selinux', action, json: values.json ?? behind.values.json ?? false };
}

function parseImage(argv: readonly string[]): Command {
  const { values, rest } = parse('image', argv, IMAGE_OPTIONS);
  if (values.help) return { name: 'help', topic: 'image' };
  const [from, to, ...more] = rest;
  if (from === undefined || to === undefined) throw usage('image', 'It takes a directory or an archive, and the image');
  if (more.length > 0) throw usage('image', `Unexpected argument '${more[0]}'`);
  return {
    name: 'image',
    from,
    to,
    ...(values.format !== undefined && { format: values.format }),
    ...(values['keep-owners'] && { ownership: 'keep' }),
    ...(values.size !== undefined && { sizeMib: wholeNumber('image', '--size', values.size) }),
  };
}

/** `PATH` or `PATH,ro`. */
function diskOf(text: string): { path: string; readOnly?: true } {
  const [, path] = /^(.*),ro$/s.exec(text) ?? [];
  return path === undefined ? { path: text } : { path, readOnly: true };
}

function parseRun(argv: readonly string[]): Command {
  const { values, rest } = parse('run', argv, RUN_OPTIONS);
  if (values.help) return { name: 'help', topic: 'run' };
  const isLinux = values.kernel !== undefined;
  const [guest, ...args] = isLinux ? [] : rest;
  const command = isLinux && rest.length > 0 ? rest : undefined;
  if (command === undefined && (values.user ?? values.modules) !== undefined) {
    throw usage('run', '--user and --modules are for a command that runs with --kernel');
  }
  const limits = parseLimits(values);
  if (values.network === undefined && (values.address !== undefined || values.mac !== undefined)) {
    throw usage('run', '--address and --mac are for --network');
  }
  return {
    name: 'run',
    args,
    json: values.json ?? false,
    timeline: values.timeline ?? false,
    evidence: values.evidence ?? false,
    ...(guest !== undefined && { guest }),
    ...(values.kernel !== undefined && { kernel: values.kernel }),
    ...(values.initrd !== undefined && { initrd: values.initrd }),
    ...(values.disk !== undefined && { disks: values.disk.map(diskOf) }),
    ...(values.cmdline !== undefined && { cmdline: values.cmdline }),
    ...(command !== undefined && { command }),
    ...(values.user !== undefined && { user: values.user }),
    ...(values.modules !== undefined && { modules: values.modules }),
    ...(values.memory !== undefined && { memoryMib: wholeNumber('run', '--memory', values.memory) }),
    ...(values.vcpus !== undefined && { vcpus: wholeNumber('run', '--vcpus', values.vcpus) }),
    ...(limits !== undefined && { limits }),
    ...(values.cpl !== undefined && { cpl: privilegeLevel(values.cpl) }),
    ...(values.input !== undefined && { input: values.input }),
    ...(values.timeout !== undefined && { timeoutMs: wholeNumber('run', '--timeout', values.timeout) }),
    ...(values.network !== undefined && { network: network(values.network, values.address, values.mac) }),
  };
}

function parseLimits(values: { 'memory-limit'?: string; cpus?: string; pids?: string }): RunOptions['limits'] {
  const { 'memory-limit': memory, cpus, pids } = values;
  if (memory === undefined && cpus === undefined && pids === undefined) return undefined;
  return {
    ...(memory !== undefined && { memoryMib: wholeNumber('run', '--memory-limit', memory) }),
    ...(cpus !== undefined && { cpus: decimalNumber('run', '--cpus', cpus) }),
    ...(pids !== undefined && { pids: wholeNumber('run', '--pids', pids) }),
  };
}

/** `tap`, `tap=NAME` of one that exists here, `stream=SOCKET`. */
function network(text: string, addresses: readonly string[] | undefined, mac: string | undefined): NetworkOptions {
  const [kind, ...rest] = text.split('=');
  const value = rest.join('=');
  const common = mac === undefined ? {} : { mac };
  if (addresses !== undefined && text !== 'tap') throw usage('run', '--address is for --network tap');
  if (text === 'tap') return { ...common, tap: addresses === undefined ? {} : { addresses } };
  if (kind === 'tap' && value !== '') return { ...common, tap: { name: value, existing: true, namespace: 'host' } };
  if (kind === 'stream' && value !== '') return { ...common, stream: { path: value } };
  throw usage('run', `--network takes tap, tap=NAME or stream=SOCKET, not '${text}'`);
}

/**
 * Parses options up to the first positional argument: that one and all behind it belong to somebody else (the
 * command, or the guest), dashes or not. `--` ends the options as well.
 */
function parse<const T extends OptionTable>(topic: Topic, argv: readonly string[], options: T) {
  const { tokens } = parseArgs({ args: [...argv], options, strict: false, allowPositionals: true, tokens: true });
  const first = tokens.find((token) => token.kind === 'positional' || token.kind === 'option-terminator');
  const end = first?.index ?? argv.length;
  const rest = argv.slice(first?.kind === 'option-terminator' ? end + 1 : end);
  try {
    const { values } = parseArgs({ args: argv.slice(0, end), options, strict: true });
    return { values, rest };
  } catch (cause) {
    throw usage(topic, (cause as Error).message, cause);
  }
}

function wholeNumber(topic: Topic, option: string, text: string): number {
  if (!/^\d{1,15}$/.test(text)) throw usage(topic, `${option} takes a whole number, not '${text}'`);
  return Number(text);
}

function decimalNumber(topic: Topic, option: string, text: string): number {
  if (!/^\d{1,9}(\.\d{1,9})?$/.test(text)) throw usage(topic, `${option} takes a number, not '${text}'`);
  return Number(text);
}

function privilegeLevel(text: string): 0 | 3 {
  if (text === '0') return 0;
  if (text === '3') return 3;
  throw usage('run', `--cpl takes 0 or 3, not '${text}'`);
}

function usage(topic: Topic, message: string, cause?: unknown): CasemateError {
  const help = topic === 'casemate' ? 'casemate --help' : `casemate help ${topic}`;
  return new CasemateError('ERR_CASEMATE_INVALID_OPTION', message, {
    step: 'command line',
    remedy: `See ${help}.`,
    ...(cause !== undefined && { cause }),
  });
}
