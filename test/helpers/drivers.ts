/**
 * Drivers of virtio devices as kernels of a few instructions, of which each does one thing to memory or to a register:
 * whatever a driver may do wrong, one that is written like this does. VIRTIO 1.2, sections 2.7 and 4.2
 */

/** Of all of a kernel's own things: rings, tables and data are up to the test. */
export const scratch = 0x200_0000;

/** Little-endian, of `size` bytes. */
function number(value: number | bigint, size: number): string {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)));
  return bytes.toString('hex', 0, size);
}

/** mov $address, %ebx */
const at = (address: number): string => `bb${number(address, 4)}`;

/** Stores of 1, 2, 4 and 8 bytes, each as one access; the largest by way of %rax. */
export const write8 = (address: number, value: number): string => `${at(address)}c603${number(value, 1)}`;
export const write16 = (address: number, value: number): string => `${at(address)}66c703${number(value, 2)}`;
export const write32 = (address: number, value: number): string => `${at(address)}c703${number(value, 4)}`;
export const write64 = (address: number, value: number | bigint): string =>
  `${at(address)}48b8${number(value, 8)}488903`;

/** Loads of 1, 2, 4 and 8 bytes, whose value goes nowhere. */
export const read8 = (address: number): string => `${at(address)}8a03`;
export const read16 = (address: number): string => `${at(address)}668b03`;
export const read32 = (address: number): string => `${at(address)}8b03`;
export const read64 = (address: number): string => `${at(address)}488b03`;

/** Prints what a register or memory has there, 4 bytes: mov (%rbx), %eax; mov $serial, %edx; four times out and shr. */
export const show32 = (address: number): string => `${at(address)}8b03baf8030000${'eec1e808'.repeat(3)}ee`;

/** again: pause; cmpw $value, (%rbx); jne again */
export const await16 = (address: number, value: number): string => `${at(address)}f39066813b${number(value, 2)}75f7`;

/** `code`, again and again: mov $count, %ecx; code; dec %ecx; jnz. */
export function repeat(count: number, code: string): string {
  return `b9${number(count, 4)}${code}ffc90f85${number(-(code.length / 2 + 8), 4)}`;
}

/**
 * Page tables of the kernel's own, for the first 64 MiB and the windows of devices; mov $tables, %eax; mov %rax, %cr3.
 * Nothing of what is above these may be lost: a driver of a balloon gives all kinds of memory away.
 */
export const mapDevices = ((tables: number) => {
  const [directories, ram, devices] = [tables + 0x1000, tables + 0x2000, tables + 0x3000];
  const [present, large, uncached] = [3, 0x83, 0x93];
  const pages = Array.from({ length: 32 }, (_, i) => write64(ram + 8 * i, (i * 2 ** 21) | large));
  return [
    write64(tables, directories | present),
    write64(directories, ram | present),
    write64(directories + 8 * 3, devices | present),
    ...pages,
    write64(devices + 8 * 0x80, 0xd000_0000 + uncached),
    `b8${number(tables, 4)}0f22d8`,
  ].join('');
})(scratch - 0x10_0000);

/** Offsets of registers in a device's window. */
export const register = {
  magic: 0x00,
  deviceFeaturesSelect: 0x14,
  driverFeatures: 0x20,
  driverFeaturesSelect: 0x24,
  queueSelect: 0x30,
  queueSize: 0x38,
  queueReady: 0x44,
  notify: 0x50,
  interruptAcknowledge: 0x64,
  status: 0x70,
  descriptors: 0x80,
  available: 0x90,
  used: 0xa0,
  config: 0x100,
} as const;

/** Of a descriptor. */
export const next = 1;
export const writable = 2;
export const indirect = 4;

/** Where a queue's rings are. */
export interface Rings {
  readonly size: number;
  readonly descriptors: number | bigint;
  readonly available: number | bigint;
  readonly used: number | bigint;
}

/** Somewhere sensible, 64 KiB for each queue. */
export function ringsOf(queue: number, size = 16): Rings & Record<'descriptors' | 'available' | 'used', number> {
  const start = scratch + queue * 0x1_0000;
  return { size, descriptors: start, available: start + 0x4000, used: start + 0x8000 };
}

/** Memory that no ring is in. */
export const data = scratch + 0x10_0000;

/** One device, by its place among all of them. */
export class Device {
  readonly window: number;

  constructor(index: number) {
    this.window = 0xd000_0000 + 0x1000 * index;
  }

  set(offset: number, value: number): string {
    return write32(this.window + offset, value);
  }

  show(offset: number): string {
    return show32(this.window + offset);
  }

  reset(): string {
    return this.set(register.status, 0);
  }

  kick(queue: number): string {
    return this.set(register.notify, queue);
  }

  setQueue(queue: number, rings: Rings): string {
    const halves = (offset: number, value: number | bigint) =>
      this.set(offset, Number(BigInt(value) & 0xffff_ffffn)) + this.set(offset + 4, Number(BigInt(value) >> 32n));
    return [
      this.set(register.queueSelect, queue),
      this.set(register.queueSize, rings.size),
      halves(register.descriptors, rings.descriptors),
      halves(register.available, rings.available),
      halves(register.used, rings.used),
      this.set(register.queueReady, 1),
    ].join('');
  }

  /** Up to FEATURES_OK: of the device's own features `features`, and version 1. */
  negotiate(features: number): string {
    return [
      this.reset(),
      this.set(register.status, 1),
      this.set(register.status, 3),
      this.set(register.driverFeaturesSelect, 0),
      this.set(register.driverFeatures, features),
      this.set(register.driverFeaturesSelect, 1),
      this.set(register.driverFeatures, 1),
      this.set(register.status, 11),
    ].join('');
  }

  /** Brings it up as a driver should, with empty rings. */
  start(queues: number, features = 0): string {
    const all = Array.from({ length: queues }, (_, queue) => ringsOf(queue));
    return [
      this.negotiate(features),
      ...all.flatMap(({ available, used }) => [write64(available, 0), write64(used, 0)]),
      ...all.map((rings, queue) => this.setQueue(queue, rings)),
      this.set(register.status, 15),
    ].join('');
  }
}

/** A descriptor, at its place in a table. */
export function descriptor(
  table: number,
  index: number,
  {
    address = data,
    length = 4096,
    flags = 0,
    next = 0,
  }: Partial<Record<'length' | 'flags' | 'next', number>> & {
    address?: number | bigint;
  },
): string {
  const to = table + 16 * index;
  return write64(to, address) + write32(to + 8, length) + write16(to + 12, flags) + write16(to + 14, next);
}

/** Makes chains available that begin with these descriptors, the first ones since the queue began. */
export function offer(queue: number, heads: readonly number[]): string {
  const { available, size } = ringsOf(queue);
  return (
    heads.map((head, i) => write16(available + 4 + 2 * (i % size), head)).join('') +
    write16(available + 2, heads.length)
  );
}
