import { isIPv4, isIPv6 } from 'node:net';
import { invalid, string } from '../is.js';

/** An address with the size of its network, as plan.h has it. */
export interface Network {
  readonly family: 4 | 6;
  /** Bits of the network. */
  readonly prefix: number;
  /** 4 or 16 of them. */
  readonly bytes: Uint8Array;
}

/** An IPv4 or IPv6 address. */
export function parseAddress(name: string, value: unknown): Omit<Network, 'prefix'> {
  const text = string(name, value);
  if (isIPv4(text)) return { family: 4, bytes: Uint8Array.from(text.split('.'), Number) };
  // One with a zone is no address by itself.
  if (isIPv6(text) && !text.includes('%')) return { family: 6, bytes: bytesOf(text) };
  throw invalid(name, 'an IPv4 or IPv6 address', value);
}

/** `'10.0.0.1/24'`, `'fd00::1/64'`. */
export function parseNetwork(name: string, value: unknown): Network {
  const [address, prefix = '', rest] = string(name, value).split('/');
  const expected = "an address with the bits of its network, such as '10.0.0.1/24' or 'fd00::1/64'";
  if (!/^\d{1,3}$/.test(prefix) || rest !== undefined || !(isIPv4(address ?? '') || isIPv6(address ?? ''))) {
    throw invalid(name, expected, value);
  }
  const network = { ...parseAddress(name, address), prefix: Number(prefix) };
  if (network.prefix > network.bytes.length * 8) throw invalid(name, expected, value);
  return network;
}

/** Of an IPv6 address, whichever way it is written. */
function bytesOf(text: string): Uint8Array {
  // URL writes it in its one canonical form: groups of hexadecimal digits, and one `::` at most.
  const canonical = new URL(`http://[${text}]`).hostname.slice(1, -1);
  const [head = [], tail = []] = canonical.split('::').map((part) => (part === '' ? [] : part.split(':')));
  const groups = [...head, ...Array(8 - head.length - tail.length).fill('0'), ...tail];
  return Uint8Array.from(
    groups.flatMap((group) => [Number.parseInt(group, 16) >> 8, Number.parseInt(group, 16) & 0xff]),
  );
}

/** What Linux takes as the name of a network device, and takes literally; at most 15 bytes. */
export function interfaceName(name: string, value: unknown): string {
  const text = string(name, value);
  // A % would be a template for the kernel to fill in.
  if (!/^[^\s/:%\p{Cc}]+$/u.test(text) || Buffer.byteLength(text) > 15 || text === '.' || text === '..') {
    throw invalid(name, "a device's name of 1 to 15 bytes without spaces, '/', ':' and '%'", value);
  }
  return text;
}
