/**
 * The control protocol of native/vmm/wire.h, as Node speaks it. A test compiles that header and compares every
 * number here with it.
 */

/** @internal */
export const wire = {
  magic: 0x766d6d63,
  version: 1,
  descriptors: {
    control: 3,
    kvm: 4,
    guest: 5,
    consoleOut: 6,
    consoleIn: 7,
    inputs: [8, 10, 11, 12, 13, 14, 15],
    lease: 9,
    categories: 16,
    devices: 17,
  },
  commands: {
    configure: 1,
    run: 2,
    pause: 3,
    resume: 4,
    streamConnect: 16,
    streamAccept: 17,
    streamRefuse: 18,
    balloon: 32,
    memory: 33,
  },
  formats: { auto: 0, elf: 1, flat: 2, linux: 3, pvh: 4 },
  flags: {
    console: 1,
    lease: 2,
    landlock: 4,
    seccomp: 8,
    noNewPrivs: 16,
    parentDeath: 32,
    paused: 64,
    categories: 128,
  },
  deviceTypes: { net: 1, block: 2, console: 3, rng: 4, balloon: 5, vsock: 19 },
  blockFlags: { readOnly: 1 },
  netFlags: { stream: 1 },
  netParameters: { mac: 0, mtu: 1, receiveLimit: 2, sendLimit: 6 },
  balloonFlags: { deflateOnOom: 1, reporting: 2 },
  configureSize: 72,
  deviceSize: 128,
  deviceParameters: 14,
  maxDevices: 16,
  maxDeviceDescriptors: 64,
  cpuidEntrySize: 40,
  maxVcpus: 32,
  maxInitrds: 7,
  maxCpuid: 256,
  maxArgumentsSize: 65536,
  maxCommandLine: 2048,
  events: {
    jailed: 1,
    doorbell: 2,
    paused: 3,
    resumed: 4,
    exited: 5,
    failed: 6,
    blocked: 7,
    deviceError: 8,
    streamRequested: 16,
    streamConnected: 17,
    streamRefused: 18,
    streamEnded: 19,
    streamClosed: 20,
    memory: 32,
  },
  sizes: { doorbell: 96, exited: 232, failed: 64, blocked: 24, deviceError: 24, stream: 16, memory: 152 },
  maxStreams: 1024,
  ampleStreams: 64,
  firstGuestStream: 2 ** 31,
  exits: { guest: 1, fault: 2, shutdown: 3, internal: 4, protocol: 5, host: 6, poweroff: 7, reboot: 8, panic: 9 },
} as const;

/** The monitor's steps, in the order of enum casemate_stamp. */
export const stampNames = [
  'exec',
  'configure',
  'jail',
  'createVm',
  'memory',
  'irqchip',
  'vcpu',
  'confine',
  'load',
  'awaitRun',
  'guest',
] as const;

/** enum casemate_setup_step, from 1. */
const setupSteps = [
  'configure',
  'descriptors',
  'jail',
  'createVm',
  'memory',
  'irqchip',
  'vcpu',
  'guest',
  'devices',
] as const;

/** Where a monitor's set-up failed. */
export type SetupStep = (typeof setupSteps)[number];

/** enum casemate_image_error, from 1. */
const imageErrors = [
  'the file is shorter than its headers say',
  'it is not a 64-bit little-endian x86-64 ELF file',
  'it is not a static executable (ET_EXEC without an interpreter)',
  'its headers are of sizes, counts or offsets that cannot be',
  'a segment is of impossible size or overlaps another',
  'a segment lies outside the memory of the guest, or below 2 MiB',
  'its entry point lies outside every segment to run from',
  'it is empty',
  'image, input, arguments and stack do not fit into the memory of the guest',
  'it is a compressed kernel (bzImage), and the uncompressed one in it is wanted (vmlinux)',
  'a segment lies outside the memory of the guest, or below 1 MiB',
  'kernel and initrd do not fit into the memory of the guest',
  'it has no entry for PVH (CONFIG_PVH)',
] as const;

const registerNames = [
  'rax',
  'rbx',
  'rcx',
  'rdx',
  'rsi',
  'rdi',
  'rsp',
  'rbp',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
  'rip',
  'rflags',
  'cr0',
  'cr2',
  'cr3',
  'cr4',
  'efer',
] as const;

/** The registers of a vCPU at the moment its guest ended. */
export type GuestRegisters = Readonly<Record<(typeof registerNames)[number], bigint>>;

/** enum casemate_device_operation, from 1: what failed behind a device. */
export const deviceOperations = ['setup', 'read', 'write', 'flush', 'discard', 'write zeroes'] as const;

/** What failed behind a device. */
export type DeviceOperation = (typeof deviceOperations)[number];

/** struct casemate_device. */
export interface DeviceEntry {
  readonly type: keyof typeof wire.deviceTypes;
  readonly flags: number;
  /** How many it has. */
  readonly descriptors: number;
  readonly parameters: readonly bigint[];
}

/** The table of devices, as it stands in a configuration. */
export function encodeDevices(devices: readonly DeviceEntry[]): Uint8Array {
  const bytes = Buffer.alloc(devices.length * wire.deviceSize);
  for (const [index, { type, flags, descriptors, parameters }] of devices.entries()) {
    const at = index * wire.deviceSize;
    bytes.writeUInt32LE(wire.deviceTypes[type], at);
    bytes.writeUInt32LE(flags, at + 4);
    bytes.writeUInt32LE(descriptors, at + 8);
    for (const [i, parameter] of parameters.entries()) bytes.writeBigUInt64LE(parameter, at + 16 + 8 * i);
  }
  return bytes;
}

/** A monitor's configuration. */
export interface Configuration {
  memorySize: number;
  flags: number;
  format: keyof typeof wire.formats;
  vcpus: number;
  cpl: 0 | 3;
  /** struct kvm_cpuid_entry2[]. */
  cpuid: Uint8Array;
  /** Of a vCPU's mapping, in bytes. */
  runSize: number;
  inputs: number;
  /** Of huge pages that its memory is made of; 0: of whatever pages the kernel finds best. */
  pageShift: 0 | 21 | 30;
  /** From {@link encodeDevices}. */
  devices: Uint8Array;
  args: readonly string[];
}

/**
 * struct casemate_configure with what follows it, in memory that the next call overwrites: to write all of it anew
 * would be a quarter of the JavaScript before a launch.
 */
export function encodeConfiguration(configuration: Configuration): Uint8Array {
  const { cpuid, devices, args, memorySize } = configuration;
  if (scratch.cpuid !== cpuid || scratch.devices !== devices || !isSame(scratch.args, args)) {
    scratch = makeScratch(cpuid, devices, args);
  }
  const { words } = scratch;
  words[4] = memorySize % 2 ** 32;
  words[5] = Math.floor(memorySize / 2 ** 32);
  words[6] = configuration.flags;
  words[7] = wire.formats[configuration.format];
  words[8] = configuration.vcpus;
  words[9] = configuration.cpl;
  words[13] = configuration.runSize;
  words[14] = configuration.inputs;
  words[15] = configuration.pageShift;
  return scratch.bytes;
}

function isSame(left: readonly string[], right: readonly string[]): boolean {
  if (left === right) return true;
  if (left.length !== right.length) return false;
  for (let i = 0; i < left.length; i += 1) if (left[i] !== right[i]) return false;
  return true;
}

/** A configuration, whole but for what every launch sets. Most have the arguments of the one before, if any. */
interface Scratch {
  readonly bytes: Uint8Array;
  /** The same memory, in the machine's byte order, as the monitor reads it. */
  readonly words: Uint32Array;
  readonly cpuid: Uint8Array;
  readonly devices: Uint8Array;
  readonly args: readonly string[];
}

function makeScratch(cpuid: Uint8Array, devices: Uint8Array, args: readonly string[]): Scratch {
  const text = Buffer.from(`${args.join('\0')}\0`);
  const bytes = new Uint8Array(wire.configureSize + cpuid.length + devices.length + text.length);
  bytes.set(cpuid, wire.configureSize);
  bytes.set(devices, wire.configureSize + cpuid.length);
  bytes.set(text, wire.configureSize + cpuid.length + devices.length);
  const words = new Uint32Array(bytes.buffer, 0, wire.configureSize / 4);
  words[0] = wire.commands.configure;
  words[1] = bytes.length;
  words[2] = wire.magic;
  words[3] = wire.version;
  words[10] = cpuid.length / wire.cpuidEntrySize;
  words[11] = args.length;
  words[12] = text.length;
  words[16] = devices.length / wire.deviceSize;
  return { bytes, words, cpuid, devices, args };
}

let scratch = makeScratch(new Uint8Array(), new Uint8Array(), []);

/** A message of eight bytes: a command, or an event without a body. */
export function bare(type: number): Uint8Array {
  const bytes = Buffer.alloc(8);
  bytes.writeUInt32LE(type, 0);
  bytes.writeUInt32LE(8, 4);
  return bytes;
}

/** struct casemate_stream_command. */
export function encodeStreamCommand(type: number, id: number, port: number): Uint8Array {
  const bytes = Buffer.alloc(wire.sizes.stream);
  bytes.writeUInt32LE(type, 0);
  bytes.writeUInt32LE(bytes.length, 4);
  bytes.writeUInt32LE(id, 8);
  bytes.writeUInt32LE(port, 12);
  return bytes;
}

/** What a monitor says of a stream, from enum casemate_event_type. */
const streamEvents = [
  'streamRequested',
  'streamConnected',
  'streamRefused',
  'streamEnded',
  'streamClosed',
] as const satisfies readonly (keyof typeof wire.events)[];

/** enum casemate_stream_break. */
export const streamBreaks = ['none', 'guest', 'driver', 'violation', 'host'] as const;

/** What a monitor says of a stream. */
export type StreamEvent =
  | { type: 'streamConnected' | 'streamRefused' | 'streamEnded'; id: number }
  | { type: 'streamRequested'; id: number; port: number }
  | { type: 'streamClosed'; id: number; broken: (typeof streamBreaks)[number] };

/** struct casemate_balloon_command. */
export function balloonCommand(pages: number): Uint8Array {
  const bytes = Buffer.alloc(16);
  bytes.writeUInt32LE(wire.commands.balloon, 0);
  bytes.writeUInt32LE(bytes.length, 4);
  bytes.writeUInt32LE(pages, 8);
  return bytes;
}

/** How a guest ended, as its monitor tells it. */
export interface ExitedEvent {
  type: 'exited';
  reason: keyof typeof wire.exits;
  code: number;
  vector: number;
  errorCode: number;
  address: bigint;
  at: bigint;
  registers: GuestRegisters | undefined;
}

/** CLOCK_MONOTONIC in nanoseconds, in the order of {@link stampNames}; 0 for what has not been. */
export type MonitorStamps = () => bigint[];

/** What a monitor says. */
export type MonitorEvent =
  | { type: 'jailed' | 'paused' | 'resumed' }
  | { type: 'doorbell'; stamps: MonitorStamps }
  | ExitedEvent
  | StreamEvent
  | { type: 'failed'; step: SetupStep; errno: number; call: string; detail: number; image: string | undefined }
  | { type: 'blocked'; syscall: number; arch: number; argument: bigint }
  | { type: 'deviceError'; device: number; operation: DeviceOperation; errno: number }
  | { type: 'memory'; memory: GuestMemory };

/**
 * A monitor's message, or undefined where it is none of the protocol's: wrong size for its type, numbers out of
 * range. The monitor may have been taken over by its guest, so nothing of it is taken on trust.
 */
export function decodeEvent(bytes: Buffer, size: number): MonitorEvent | undefined {
  if (size !== bytes.length || size < 8 || bytes.readUInt32LE(4) !== size) return undefined;
  const { events, sizes } = wire;
  switch (bytes.readUInt32LE(0)) {
    case events.jailed:
      return size === 8 ? { type: 'jailed' } : undefined;
    case events.paused:
      return size === 8 ? { type: 'paused' } : undefined;
    case events.resumed:
      return size === 8 ? { type: 'resumed' } : undefined;
    case events.doorbell: {
      if (size !== sizes.doorbell) return undefined;
      // Decoded when somebody asks for the timeline: this is on every launch's way.
      return { type: 'doorbell', stamps: () => stampNames.map((_, i) => bytes.readBigUInt64LE(8 + i * 8)) };
    }
    case events.exited:
      return size === sizes.exited ? decodeExited(bytes) : undefined;
    case events.failed:
      return size === sizes.failed ? decodeFailed(bytes) : undefined;
    case events.blocked: {
      if (size !== sizes.blocked) return undefined;
      const argument = bytes.readBigUInt64LE(16);
      return { type: 'blocked', syscall: bytes.readUInt32LE(8), arch: bytes.readUInt32LE(12), argument };
    }
    case events.deviceError: {
      if (size !== sizes.deviceError) return undefined;
      const device = bytes.readUInt32LE(8);
      const operation = deviceOperations[bytes.readUInt32LE(12) - 1];
      const errno = bytes.readUInt32LE(16);
      if (device >= wire.maxDevices || operation === undefined || errno === 0 || errno > 4095) return undefined;
      return { type: 'deviceError', device, operation, errno };
    }
    case events.memory:
      return size === sizes.memory ? { type: 'memory', memory: decodeMemory(bytes) } : undefined;
    default: {
      const type = streamEvents.find((name) => events[name] === bytes.readUInt32LE(0));
      if (type === undefined || size !== sizes.stream) return undefined;
      const id = bytes.readUInt32LE(8);
      const detail = bytes.readUInt32LE(12);
      if (type === 'streamRequested') return { type, id, port: detail };
      if (type !== 'streamClosed') return { type, id };
      const broken = streamBreaks[detail];
      return broken && { type, id, broken };
    }
  }
}

/** VIRTIO_BALLOON_S_*, in their order. */
const memoryStatistics = [
  'swappedInBytes',
  'swappedOutBytes',
  'majorFaults',
  'minorFaults',
  'freeBytes',
  'totalBytes',
  'availableBytes',
  'cachesBytes',
  'hugePageAllocations',
  'hugePageFailures',
  'oomKills',
  'allocationStalls',
  'asyncScans',
  'directScans',
  'asyncReclaims',
  'directReclaims',
] as const satisfies readonly (keyof MemoryStatistics)[];

/**
 * What the kernel of a guest counts; which of them depends on its version. Any number may stand here: it is the guest's.
 */
export interface MemoryStatistics {
  readonly swappedInBytes?: number;
  readonly swappedOutBytes?: number;
  readonly majorFaults?: number;
  readonly minorFaults?: number;
  readonly freeBytes?: number;
  readonly totalBytes?: number;
  /** What it could use without swapping. */
  readonly availableBytes?: number;
  /** What it could give back at once. */
  readonly cachesBytes?: number;
  readonly hugePageAllocations?: number;
  readonly hugePageFailures?: number;
  readonly oomKills?: number;
  readonly allocationStalls?: number;
  readonly asyncScans?: number;
  readonly directScans?: number;
  readonly asyncReclaims?: number;
  readonly directReclaims?: number;
}

/** What a guest says of its memory. */
export interface GuestMemory {
  /** What its balloon is to hold, in bytes. */
  readonly balloonTargetBytes: number;
  /** What it holds. */
  readonly balloonBytes: number;
  /** Undefined where the guest has not answered within a second: it has no driver for its balloon, or is paused. */
  readonly statistics: MemoryStatistics | undefined;
}

const balloonPage = 4096;

function decodeMemory(bytes: Buffer): GuestMemory {
  const known = bytes.readUInt32LE(16);
  const there = [...memoryStatistics.entries()].filter(([tag]) => ((known >>> tag) & 1) === 1);
  const statistics = there.map(([tag, name]) => [name, Number(bytes.readBigUInt64LE(24 + 8 * tag))]);
  return {
    balloonTargetBytes: bytes.readUInt32LE(8) * balloonPage,
    balloonBytes: bytes.readUInt32LE(12) * balloonPage,
    statistics: there.length === 0 ? undefined : Object.fromEntries(statistics),
  };
}

function decodeExited(bytes: Buffer): ExitedEvent | undefined {
  const number = bytes.readUInt32LE(8);
  const reason = (Object.keys(wire.exits) as (keyof typeof wire.exits)[]).find((name) => wire.exits[name] === number);
  const code = bytes.readUInt32LE(12);
  const vector = bytes.readUInt32LE(16);
  if (reason === undefined || vector > 31 || (reason === 'guest' && code > 255)) return undefined;
  const registers = bytes.readUInt32LE(40) === 0 ? undefined : decodeRegisters(bytes.subarray(48));
  return {
    type: 'exited',
    reason,
    code,
    vector,
    errorCode: bytes.readUInt32LE(20),
    address: bytes.readBigUInt64LE(24),
    at: bytes.readBigUInt64LE(32),
    registers,
  };
}

function decodeRegisters(bytes: Buffer): GuestRegisters {
  return Object.fromEntries(
    registerNames.map((name, i) => [name, bytes.readBigUInt64LE(i * 8)]),
  ) as unknown as GuestRegisters;
}

function decodeFailed(bytes: Buffer): MonitorEvent | undefined {
  const step = setupSteps[bytes.readUInt32LE(8) - 1];
  const errno = bytes.readUInt32LE(12);
  const detail = bytes.readUInt32LE(16);
  const end = bytes.indexOf(0, 24);
  if (step === undefined || errno > 4095 || end < 0) return undefined;
  const image = step === 'guest' && detail > 0 ? imageErrors[detail - 1] : undefined;
  const call = bytes.toString('latin1', 24, end).replace(/[^\x20-\x7e]/g, '?');
  return { type: 'failed', step, errno, call, detail, image };
}
