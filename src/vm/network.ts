import { randomBytes } from 'node:crypto';
import { boolean, descriptor, integer, invalid, object, oneOf, string } from '../is.js';
import { interfaceName, parseAddress, parseNetwork } from '../jail/address.js';
import type { TapRoute } from '../jail/steps.js';
import { type ParsedRateLimit, parseRateLimit, type RateLimit } from './rate-limit.js';

/** The network device of a Linux guest: a tap, or a stream. */
export interface NetworkOptions {
  /** A tap(4), made for this VM or there already. */
  tap?: TapOptions;
  /**
   * The Unix socket of a program that speaks passt's protocol, a stream of frames each behind its length (`passt`, or one
   * of yours): by its path, which is connected to at launch, or a descriptor that is connected already.
   */
  stream?: { path: string } | { fd: number };
  /** Address of the guest's device, `'02:…'`. Default: a random one, administered locally. */
  mac?: string;
  /** What the guest, and a tap that is made, take as their MTU: 68 to 65535. Default: nothing is said, which is 1500. */
  mtu?: number;
  /** Limits of what the guest sends and receives, each for itself; an operation is a frame. Default: none. */
  rateLimit?: { send?: RateLimit; receive?: RateLimit };
}

/** The host's end of a VM's network. */
export interface TapOptions {
  /** Name of the device. Default `'tap0'`. */
  name?: string;
  /**
   * Whether the device is there already, made to stay by `ip tuntap add dev NAME mode tap user USER`: nothing of it is
   * changed, and it must be up. Default false: it is made, and gone with the VM.
   */
  existing?: boolean;
  /**
   * Where the device is. `'jail'`, the default: in the network namespace of the VM, its own or that of
   * `jail.networkNamespace`. `'host'`: in the one that Node is in; only for one that exists.
   */
  namespace?: 'jail' | 'host';
  /** Addresses of the host's end, each with its network: `'10.0.0.1/24'`, `'fd00::1/64'`. Default: none. */
  addresses?: readonly string[];
  /** Networks behind the guest: `{ to: '10.1.0.0/16', via: '10.0.0.2' }`. Default: none. */
  routes?: readonly TapRoute[];
  /** Name of a bridge in that namespace, which the device becomes a port of. */
  bridge?: string;
}

/** Of {@link TapOptions}, checked, with defaults. */
export type Tap = Readonly<Required<Omit<TapOptions, 'bridge'>> & Pick<TapOptions, 'bridge'>>;

/** Checked options, with their defaults. */
export type Network = {
  readonly mac: Uint8Array;
  /** 0: nothing is said of it. */
  readonly mtu: number;
  readonly send: ParsedRateLimit;
  readonly receive: ParsedRateLimit;
} & (
  | { readonly tap: Tap; readonly stream?: undefined }
  | { readonly tap?: undefined; readonly stream: { readonly path: string } | { readonly fd: number } }
);

const known = ['tap', 'stream', 'mac', 'mtu', 'rateLimit'] as const satisfies readonly (keyof NetworkOptions)[];

/** The network that these options ask for. */
export function parseNetworkOptions(options: unknown): Network {
  const name = 'options.network';
  const { tap, stream, mac, mtu, rateLimit = {} } = object(name, options, known);
  if ((tap === undefined) === (stream === undefined)) {
    throw invalid(name, 'either tap or stream', tap === undefined ? undefined : options);
  }
  const { send, receive } = object(`${name}.rateLimit`, rateLimit, ['send', 'receive']);
  const size = mtu === undefined ? 0 : integer(`${name}.mtu`, mtu, 68, 65535);
  const parsed = {
    mac: mac === undefined ? randomMac() : parseMac(`${name}.mac`, mac),
    mtu: size,
    send: parseRateLimit(`${name}.rateLimit.send`, send),
    receive: parseRateLimit(`${name}.rateLimit.receive`, receive),
  };
  return tap === undefined
    ? { ...parsed, stream: parseStream(`${name}.stream`, stream) }
    : { ...parsed, tap: parseTap(`${name}.tap`, tap) };
}

function parseTap(name: string, options: unknown): Tap {
  const known = ['name', 'existing', 'namespace', 'addresses', 'routes', 'bridge'] as const;
  const given = object(name, options, known);
  const { name: device = 'tap0', existing = false, namespace = 'jail', addresses = [], routes = [], bridge } = given;
  const tap = {
    name: interfaceName(`${name}.name`, device),
    existing: boolean(`${name}.existing`, existing),
    namespace: oneOf(`${name}.namespace`, namespace, ['jail', 'host']),
    addresses: list(`${name}.addresses`, addresses, (at, value) => {
      parseNetwork(at, value);
      return value as string;
    }),
    routes: list(`${name}.routes`, routes, parseRoute),
    ...(bridge !== undefined && { bridge: interfaceName(`${name}.bridge`, bridge) }),
  };
  for (const setting of ['addresses', 'routes', 'bridge'] as const) {
    if (tap.existing && given[setting] !== undefined) {
      throw invalid(`${name}.${setting}`, 'nothing, as the tap exists', given[setting]);
    }
  }
  if (tap.namespace === 'host' && !tap.existing) {
    throw invalid(`${name}.namespace`, "'jail', unless the tap exists", tap.namespace);
  }
  return tap;
}

function parseRoute(name: string, value: unknown): TapRoute {
  const { to, via } = object(name, value, ['to', 'via']);
  const { family } = parseNetwork(`${name}.to`, to);
  if (via === undefined) return { to: to as string };
  if (parseAddress(`${name}.via`, via).family !== family) {
    throw invalid(`${name}.via`, `an IPv${family} address, as ${to} is`, via);
  }
  return { to: to as string, via: via as string };
}

/** At most as many as a plan takes. */
function list<T>(name: string, value: unknown, parse: (name: string, value: unknown) => T): T[] {
  if (!Array.isArray(value) || value.length > 16) throw invalid(name, 'an array of at most 16', value);
  return Array.from(value, (item, index) => parse(`${name}[${index}]`, item));
}

function parseStream(name: string, value: unknown): { path: string } | { fd: number } {
  const { path, fd } = object(name, value, ['path', 'fd']);
  if ((path === undefined) === (fd === undefined)) throw invalid(name, 'either a path or a fd', value);
  if (path === undefined) return { fd: descriptor(`${name}.fd`, fd) };
  const text = string(`${name}.path`, path);
  // sun_path of unix(7), with its NUL.
  if (text === '' || Buffer.byteLength(text) > 107) throw invalid(`${name}.path`, 'a path of 1 to 107 bytes', text);
  return { path: text };
}

/** One device's, not a group's. */
function parseMac(name: string, value: unknown): Uint8Array {
  const text = string(name, value);
  const bytes = Uint8Array.from(text.split(':'), (part) => Number.parseInt(part, 16));
  const isOne = /^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i.test(text) && ((bytes[0] ?? 1) & 1) === 0;
  if (!isOne || bytes.every((byte) => byte === 0)) {
    throw invalid(name, "the address of a device, such as '02:00:00:00:00:01'", value);
  }
  return bytes;
}

function randomMac(): Uint8Array {
  const bytes = randomBytes(6);
  bytes[0] = ((bytes[0] ?? 0) & 0xfc) | 2; // one device's, administered locally
  return bytes;
}
