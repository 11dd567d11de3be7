import { boolean, descriptor, invalid, object, string } from '../is.js';
import type { NativeFile } from '../jail/native.js';
import type { PlannedTap } from '../jail/profiles.js';
import type { LaunchFiles } from './files.js';
import { type Network, parseNetworkOptions } from './network.js';
import { parseRateLimit, type RateLimit, rateLimitParameters } from './rate-limit.js';
import { type DeviceEntry, wire } from './wire.js';

/** A disk of a Linux guest: a file, or a block device, whose bytes are the disk's. */
export interface DiskOptions {
  /** A regular file or a block device; this or `fd`. */
  path?: string;
  /** A descriptor of one, open for what the guest may do; it stays the caller's. */
  fd?: number;
  /** The guest cannot write to it. Default false. */
  readOnly?: boolean;
  /** What the guest knows it by, at most 20 bytes: `/sys/block/vda/serial`. Default: nothing. */
  serial?: string;
  /** Default: no limit. */
  rateLimit?: RateLimit;
}

/** How a Linux guest gives memory back to its host. */
export interface BalloonOptions {
  /** A guest that runs out of memory takes what it needs out of the balloon. Default true. */
  deflateOnOom?: boolean;
  /** The guest gives back memory that it does not use, by itself. Default true. */
  reporting?: boolean;
}

/**
 * A device of a Linux guest: checked options. Its descriptors are opened when it is launched, by functions, or made by
 * the launch itself, and then the name of a slot of its plan.
 */
export interface Device extends Omit<DeviceEntry, 'descriptors'> {
  /** The option that it comes from: for errors. */
  readonly option: string;
  readonly descriptors: readonly (string | ((files: LaunchFiles) => NativeFile | number))[];
  /** The monitor writes to a file of it. */
  readonly writesFile?: boolean;
  /** What the plan makes of it: the descriptor of that name. */
  readonly tap?: PlannedTap;
}

/** What a guest has though nobody asks for it: its entropy comes from the host. */
const rng: Device = { option: 'rng', type: 'rng', flags: 0, parameters: [], descriptors: [] };

const vsock: Device = { option: 'options.vsock', type: 'vsock', flags: 0, parameters: [], descriptors: [] };

/** Instead of the serial port what {@link Vm.console} is the other end of. */
const hvc: Device = { option: 'options.console', type: 'console', flags: 0, parameters: [], descriptors: [] };

/** The devices of a Linux guest, in the order in which it finds them. */
export function parseDevices(given: Readonly<Record<string, unknown>>): readonly Device[] {
  // The network has the first descriptor of all: the monitor's filters know its number.
  const { network, disks = [], vsock: hasVsock = false, balloon = false, console } = given;
  const before = [rng, ...(network === undefined ? [] : [networkDevice(parseNetworkOptions(network))])];
  const behind = boolean('options.vsock', hasVsock) ? [vsock] : [];
  const parsed = parseDisks(disks);
  const devices = [...before, ...parsed, ...behind, ...parseBalloon(balloon), ...(console === 'virtio' ? [hvc] : [])];
  if (devices.length > wire.maxDevices) {
    const most = wire.maxDevices - before.length - behind.length;
    throw invalid('options.disks', `at most ${most} disks`, `${parsed.length} disks`);
  }
  return devices;
}

function networkDevice({ mac, mtu, receive, send, tap, stream }: Network): Device {
  const address = Buffer.alloc(8);
  address.set(mac);
  const device = {
    option: 'options.network',
    type: 'net',
    flags: tap === undefined ? wire.netFlags.stream : 0,
    parameters: [
      address.readBigUInt64LE(),
      BigInt(mtu),
      ...[...rateLimitParameters(receive), ...rateLimitParameters(send)].map(BigInt),
    ],
  } as const;
  if (tap !== undefined) {
    const { namespace, ...settings } = tap;
    return { ...device, descriptors: ['tap'], tap: { ...settings, mtu, inHost: namespace === 'host' } };
  }
  return {
    ...device,
    descriptors: [(files) => ('fd' in stream ? stream.fd : files.connect('options.network.stream', stream.path))],
  };
}

function parseBalloon(value: unknown): Device[] {
  const option = 'options.balloon';
  if (value === false) return [];
  const given = value === true ? {} : object(option, value, ['deflateOnOom', 'reporting'], 'a boolean or an object');
  const { deflateOnOom = true, reporting = true } = given as Record<string, unknown>;
  const flags =
    (boolean(`${option}.deflateOnOom`, deflateOnOom) ? wire.balloonFlags.deflateOnOom : 0) |
    (boolean(`${option}.reporting`, reporting) ? wire.balloonFlags.reporting : 0);
  return [{ option, type: 'balloon', flags, parameters: [], descriptors: [] }];
}

function parseDisks(value: unknown): Device[] {
  if (!Array.isArray(value)) throw invalid('options.disks', 'an array of disks', value);
  // Not value.map(), which leaves out the holes of a sparse array.
  return Array.from(value, (disk, index) => parseDisk(`options.disks[${index}]`, disk));
}

function parseDisk(option: string, value: unknown): Device {
  const given = object(option, value, ['path', 'fd', 'readOnly', 'serial', 'rateLimit']);
  const { path, fd, readOnly = false, serial = '', rateLimit } = given;
  if ((path === undefined) === (fd === undefined)) throw invalid(option, 'a disk with either path or fd', value);
  if (path === '') throw invalid(`${option}.path`, 'a path', path);
  const source = path === undefined ? descriptor(`${option}.fd`, fd) : string(`${option}.path`, path);
  const isReadOnly = boolean(`${option}.readOnly`, readOnly);
  return {
    option,
    type: 'block',
    flags: isReadOnly ? wire.blockFlags.readOnly : 0,
    parameters: [
      ...parseSerial(`${option}.serial`, serial),
      ...rateLimitParameters(parseRateLimit(`${option}.rateLimit`, rateLimit)).map(BigInt),
    ],
    descriptors: [(files) => files.openDisk(option, source, isReadOnly)],
    writesFile: !isReadOnly,
  };
}

/** 20 bytes in three parameters. */
function parseSerial(name: string, value: unknown): bigint[] {
  const text = string(name, value);
  if (Buffer.byteLength(text) > 20) throw invalid(name, 'a string of at most 20 bytes', text);
  const bytes = Buffer.alloc(24);
  bytes.write(text);
  return [0, 8, 16].map((at) => bytes.readBigUInt64LE(at));
}
