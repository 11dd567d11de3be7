import { agentAbi } from '../agent/protocol.js';
import { boolean, descriptor, integer, invalid, object, oneOf, string } from '../is.js';
import type { CgroupSettings } from '../jail/cgroup.js';
import { type Jail, type JailOptions, parseJail } from '../jail/profiles.js';
import { type BalloonOptions, type Device, type DiskOptions, parseDevices } from './devices.js';
import type { FileSource } from './files.js';
import { type Limits, parseLimits } from './limits.js';
import type { NetworkOptions } from './network.js';
import { wire } from './wire.js';

/** What casemate's agent in a guest may need. */
export interface AgentOptions {
  /**
   * The modules of the guest's kernel, `/lib/modules/<version>`: of them it gets what the agent and the VM's devices
   * need. Default: none, for kernels that have these built in, and initrds that bring them.
   */
  modules?: string;
  /** How long it may take from the launch until the agent answers, in milliseconds. Default 60000. */
  startTimeoutMs?: number;
}

/** What {@link launch} takes. Every option has a default. */
export interface LaunchOptions {
  /**
   * The guest: a flat binary or a static ELF64 executable for bare metal (docs/guest-abi.md). Default: the built-in
   * guest, which says hello.
   */
  guest?: FileSource;
  /**
   * Instead of `guest`: a Linux kernel for x86-64, a bzImage as distributions install it or the `vmlinux` in that. A
   * bzImage is unpacked once for all launches of this process, in a jail; {@link warmUp} does it ahead. It finds a serial
   * port, which is {@link Vm.console}, and hardware-reduced ACPI.
   */
  kernel?: FileSource;
  /**
   * The initial RAM file system of `kernel`: a cpio archive, compressed as the kernel can, or several in one file. Up to
   * seven files are unpacked one over the other.
   */
  initrd?: FileSource | readonly FileSource[];
  /**
   * The command line of `kernel`, all of it; at most 2047 bytes. Default `'console=ttyS0 quiet panic=-1 pci=off'`: the
   * console is {@link Vm.console}; each byte on it costs an exit, hence only what matters; a kernel that panics ends its
   * VM; and there is no PCI to look for. With disks and without an initrd also `root=/dev/vda rw`, or `ro` where that
   * disk is read-only.
   */
  cmdline?: string;
  /**
   * The disks of `kernel`, in the order in which it finds them: `/dev/vda`, `/dev/vdb` and so on, for a kernel with the
   * driver (virtio_blk and virtio_mmio, built in or from its initrd). At most 15. docs/devices.md
   */
  disks?: readonly DiskOptions[];
  /**
   * Memory that `kernel` does not use goes back to the host, and {@link Vm.balloon} asks for more of it: for a kernel with
   * the driver (virtio_balloon and virtio_mmio). Default false. docs/linux.md
   */
  balloon?: boolean | BalloonOptions;
  /** How `kernel` is started: by the 64-bit boot protocol of Linux, `'linux'`, the default, or by `'pvh'`. */
  bootProtocol?: 'linux' | 'pvh';
  /**
   * Whether the guest has a vsock device: {@link Vm.connect} and {@link Vm.listen}. Its CID is 3. Default false,
   * with `agent` true.
   */
  vsock?: boolean;
  /**
   * Runs casemate's agent in the guest of `kernel`: {@link Vm.exec}, {@link Vm.readFile}, {@link Vm.writeFile},
   * {@link Vm.powerOff}; docs/agent.md. It comes in an initrd of its own, in front of `initrd`. Default false.
   */
  agent?: boolean | AgentOptions;
  /** What `guest` is. Default `'auto'`: ELF by its first bytes, flat otherwise. */
  format?: 'auto' | 'elf' | 'flat';
  /** The guest's arguments. `argv[0]` is its name, as everywhere; it is {@link LaunchOptions.name} and not given here. */
  args?: readonly string[];
  /** A buffer that the guest finds in its memory, read-write, a private copy. */
  input?: FileSource;
  /** Memory of the guest in MiB, even, 8 to 65536. Default 16, with `kernel` 256. */
  memoryMib?: number;
  /**
   * Of which of the host's huge pages (hugetlbfs) the memory of `kernel` is: `'2M'`, or `'1G'` with a multiple of 1024
   * for `memoryMib`. They are set apart for it at the launch, which fails where there are too few. Default: whatever
   * pages the host's kernel finds best, huge ones where it has them (transparent huge pages).
   */
  hugePages?: '2M' | '1G';
  /** How many vCPUs `kernel` has, 1 to 32. Default 1. Each is a thread of the monitor. */
  vcpus?: number;
  /** Privilege level that the guest runs at: 3, native on every kind of KVM (the default), or 0. */
  cpl?: 0 | 3;
  /** The network of `kernel`: by a tap, or by a stream to a program such as passt; docs/network.md. Default: none. */
  network?: NetworkOptions;
  /**
   * `'pipe'` (the default): {@link Vm.console} must be read, or a guest that writes will wait. `'ignore'`: none.
   * `'virtio'`: the console of `kernel` is `hvc0` instead of its serial port, which takes a buffer at a time where that
   * takes a byte; for a kernel with the driver (virtio_console and virtio_mmio). docs/linux.md
   */
  console?: 'pipe' | 'virtio' | 'ignore';
  /** What it may take of the host; docs/limits.md. Default: as much as Node may. */
  limits?: Limits;
  /** The jail of the monitor. Default: the strict profile. */
  jail?: JailOptions;
  /** An open `/dev/kvm` to use instead of opening it; it stays the caller's. */
  kvm?: { fd: number };
  /**
   * The guest is paused at its first hypercall, or a Linux guest's first access to a device, and goes on at {@link Vm.resume}: time to look at
   * {@link Vm.evidence}, or to connect {@link Vm.console}, before it does anything. Default false.
   */
  startPaused?: boolean;
  /** A name for this VM, in `argv[0]` of the guest and in tracing. Default `'guest'`. */
  name?: string;
  /** Ends the VM, with reason `'timeout'`, this many milliseconds after `launch()`. Default: never. */
  timeoutMs?: number;
  /** How long the guest may take until {@link launch} resolves, in milliseconds. Default 10000. */
  startTimeoutMs?: number;
  /** Aborts the launch; once the VM runs, kills it. */
  signal?: AbortSignal;
}

/** Likewise checked. */
export interface ParsedAgent {
  readonly modules: string | undefined;
  readonly startTimeoutMs: number;
}

/** Checked options, with their defaults. */
export interface ParsedOptions {
  /** Of a Linux guest its kernel. Undefined: the built-in one. */
  readonly guest: FileSource | undefined;
  readonly format: 'auto' | 'elf' | 'flat' | 'linux' | 'pvh';
  /** Of a Linux guest its command line. */
  readonly args: readonly string[];
  /** Of a Linux guest its initrds. */
  readonly inputs: readonly FileSource[];
  /** Of a Linux guest, in the order in which it finds them. */
  readonly devices: readonly Device[];
  readonly memoryMib: number;
  readonly agent: ParsedAgent | undefined;
  readonly hugePages: '2M' | '1G' | undefined;
  readonly vcpus: number;
  readonly cpl: 0 | 3;
  readonly console: boolean;
  readonly limits: CgroupSettings | undefined;
  readonly jail: Jail;
  readonly kvmFd: number | undefined;
  readonly startPaused: boolean;
  readonly timeoutMs: number | undefined;
  readonly startTimeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

const known = [
  'guest',
  'kernel',
  'initrd',
  'cmdline',
  'bootProtocol',
  'disks',
  'balloon',
  'format',
  'args',
  'input',
  'memoryMib',
  'hugePages',
  'vcpus',
  'vsock',
  'agent',
  'cpl',
  'console',
  'limits',
  'network',
  'jail',
  'kvm',
  'startPaused',
  'name',
  'timeoutMs',
  'startTimeoutMs',
  'signal',
] as const satisfies readonly (keyof LaunchOptions)[];

/** The largest delay that Node's timers take. */
const maxDelayMs = 0x7fffffff;

/** Without an initrd that would know better, the first disk is the root. */
function defaultCmdlineOf({ console, initrd }: Record<string, unknown>, devices: readonly Device[]): string {
  const defaultCmdline = `console=${console === 'virtio' ? 'hvc0' : 'ttyS0'} quiet panic=-1 pci=off`;
  const disk = devices.find(({ type }) => type === 'block');
  if (disk === undefined || initrd !== undefined) return defaultCmdline;
  return `${defaultCmdline} root=/dev/vda ${disk.writesFile ? 'rw' : 'ro'}`;
}

/** Options that only bare-metal guests have, and those that only Linux guests have. */
const bareMetalOnly = ['guest', 'format', 'args', 'input', 'cpl', 'name'] as const;
const linuxOnly = [
  'initrd',
  'cmdline',
  'bootProtocol',
  'agent',
  'disks',
  'network',
  'balloon',
  'hugePages',
  'vcpus',
  'vsock',
] as const;

/** Refuses bad options before anything is created. */
export function parseOptions(options: unknown): ParsedOptions {
  const given = object('options', options, known);
  const isLinux = given.kernel !== undefined;
  // Only what is undefined has a default: null is as wrong as any other value.
  const {
    memoryMib = isLinux ? 256 : 16,
    console = 'pipe',
    limits,
    jail,
    kvm,
    startPaused = false,
    timeoutMs,
    startTimeoutMs = 10_000,
    signal,
  } = given;
  const size = integer('options.memoryMib', memoryMib, isLinux ? 16 : 8, 65536);
  if (size % 2 !== 0) throw invalid('options.memoryMib', 'an even number (pages are of 2 MiB)', size);
  const parsedJail = parseJail(jail);
  const parsedLimits = limits === undefined ? undefined : parseLimits(limits);
  if (parsedLimits !== undefined && parsedJail.cgroupFd !== undefined) {
    throw invalid('options.limits', "nothing with options.jail.cgroup, whose limits are its owner's", limits);
  }
  if (given.hugePages === '1G' && size % 1024 !== 0) {
    throw invalid('options.memoryMib', "a multiple of 1024 with hugePages: '1G'", size);
  }
  const guest = isLinux ? parseLinux(given) : parseBareMetal(given);
  // One by one: this is on the way of a launch, and to spread another object takes longer than to check all of it.
  return {
    guest: guest.guest,
    format: guest.format,
    args: guest.args,
    inputs: guest.inputs,
    agent: guest.agent,
    devices: guest.devices,
    hugePages: guest.hugePages,
    vcpus: guest.vcpus,
    cpl: guest.cpl,
    memoryMib: size,
    console:
      oneOf('options.console', console, isLinux ? ['pipe', 'virtio', 'ignore'] : ['pipe', 'ignore']) !== 'ignore',
    limits: parsedLimits,
    jail: parsedJail,
    kvmFd: kvm === undefined ? undefined : descriptor('options.kvm.fd', object('options.kvm', kvm, ['fd']).fd),
    startPaused: boolean('options.startPaused', startPaused),
    timeoutMs: timeoutMs === undefined ? undefined : integer('options.timeoutMs', timeoutMs, 1, maxDelayMs),
    startTimeoutMs: integer('options.startTimeoutMs', startTimeoutMs, 1, maxDelayMs),
    signal: parseSignal(signal),
  };
}

type GuestOptions = Pick<
  ParsedOptions,
  'guest' | 'format' | 'args' | 'inputs' | 'agent' | 'devices' | 'hugePages' | 'vcpus' | 'cpl'
>;

/** One array for all launches without any: such are alike at a glance. */
const defaultArgs = ['guest'];

function parseBareMetal(given: Record<string, unknown>): GuestOptions {
  refuse(given, linuxOnly, 'without options.kernel');
  const { guest, format = 'auto', args = [], input, cpl = 3, name = 'guest' } = given;
  const argv0 = string('options.name', name);
  if (cpl !== 0 && cpl !== 3) throw invalid('options.cpl', '0 or 3', cpl);
  return {
    guest: guest === undefined ? undefined : parseFile('options.guest', guest),
    format: oneOf('options.format', format, ['auto', 'elf', 'flat']),
    args: given.args === undefined && given.name === undefined ? defaultArgs : [argv0, ...parseArgs(args, argv0)],
    inputs: input === undefined ? [] : [parseFile('options.input', input)],
    hugePages: undefined,
    agent: undefined,
    devices: [],
    vcpus: 1,
    cpl,
  };
}

function parseLinux(given: Record<string, unknown>): GuestOptions {
  refuse(given, bareMetalOnly, 'with options.kernel');
  const agent = parseAgent(given.agent ?? false);
  if (agent !== undefined && given.vsock === false) {
    throw invalid('options.vsock', 'true with options.agent, which is reached by it', false);
  }
  const devices = parseDevices({ ...given, vsock: given.vsock ?? agent !== undefined });
  if (given.hugePages !== undefined && devices.some(({ type }) => type === 'balloon')) {
    throw invalid('options.balloon', 'nothing with options.hugePages, which are set apart for this VM', given.balloon);
  }
  const { kernel, initrd, cmdline = defaultCmdlineOf(given, devices) } = given;
  const { bootProtocol = 'linux', hugePages, vcpus = 1 } = given;
  const line =
    agent === undefined ? string('options.cmdline', cmdline) : startingAgent(string('options.cmdline', cmdline));
  const most = wire.maxCommandLine - 1;
  if (Buffer.byteLength(line) > most) {
    throw invalid('options.cmdline', `a string of at most ${most} bytes`, `${Buffer.byteLength(line)} bytes`);
  }
  return {
    guest: parseFile('options.kernel', kernel),
    format: oneOf('options.bootProtocol', bootProtocol, ['linux', 'pvh']),
    args: [line],
    inputs: parseInitrds(initrd, wire.maxInitrds - (agent === undefined ? 0 : 1)),
    agent,
    hugePages: hugePages === undefined ? undefined : oneOf('options.hugePages', hugePages, ['2M', '1G']),
    devices,
    vcpus: integer('options.vcpus', vcpus, 1, wire.maxVcpus),
    cpl: 0,
  };
}

function parseAgent(value: unknown): ParsedAgent | undefined {
  if (value === false) return undefined;
  const expected = 'a boolean or an object';
  const given = object('options.agent', value === true ? {} : value, ['modules', 'startTimeoutMs'], expected);
  const { modules, startTimeoutMs = 60_000 } = given;
  return {
    modules: modules === undefined ? undefined : string('options.agent.modules', modules),
    startTimeoutMs: integer('options.agent.startTimeoutMs', startTimeoutMs, 1, maxDelayMs),
  };
}

/** The agent starts first, and then what would have been: in front, as words behind `--` are init's. */
function startingAgent(line: string): string {
  if (/(^|\s)rdinit=/.test(line)) throw invalid('options.cmdline', 'no rdinit= with options.agent', line);
  return `rdinit=${agentAbi.path} ${line}`;
}

function parseInitrds(value: unknown, most: number): FileSource[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) return [parseFile('options.initrd', value)];
  if (value.length === 0 || value.length > most) {
    throw invalid('options.initrd', `an array of 1 to ${most} files`, `one of ${value.length}`);
  }
  // Not value.map(), which leaves out the holes of a sparse array.
  return Array.from(value, (file, i) => parseFile(`options.initrd[${i}]`, file));
}

/** An option of the other kind of guest is a mistake, not something to leave out of account. */
function refuse(given: Record<string, unknown>, names: readonly string[], where: string): void {
  for (const name of names) {
    if (given[name] !== undefined) throw invalid(`options.${name}`, `nothing ${where}`, given[name]);
  }
}

function parseArgs(value: unknown, name: string): string[] {
  if (!Array.isArray(value)) throw invalid('options.args', 'an array of strings', value);
  // Not value.map(), which leaves out the holes of a sparse array.
  const args = Array.from(value, (arg, index) => string(`options.args[${index}]`, arg));
  const size = [name, ...args].reduce((sum, arg) => sum + Buffer.byteLength(arg) + 1, 0);
  if (size > wire.maxArgumentsSize) {
    throw invalid('options.args', `arguments of at most ${wire.maxArgumentsSize} bytes in all`, `${size} bytes`);
  }
  return args;
}

function parseFile(name: string, value: unknown): FileSource {
  if (value instanceof Uint8Array) {
    if (value.length === 0) throw invalid(name, 'bytes, at least one', value);
    return value;
  }
  const expected = 'a path, a Uint8Array or { fd }';
  if (typeof value === 'string') {
    if (value === '') throw invalid(name, expected, value);
    return string(name, value);
  }
  return { fd: descriptor(`${name}.fd`, object(name, value, ['fd'], expected).fd) };
}

function parseSignal(value: unknown): AbortSignal | undefined {
  if (value === undefined || value instanceof AbortSignal) return value;
  throw invalid('options.signal', 'an AbortSignal', value);
}
