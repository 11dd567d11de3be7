/**
 * The kernel's structures as plain objects, and back: fields in C's order, at C's natural alignment.
 * Integers of up to 32 bits are numbers, those of 64 bits are bigints.
 */
import { integer, invalid, object } from '../is.js';

/** How a value of type T lies in memory. */
export interface Layout<T> {
  readonly size: number;
  readonly alignment: number;
  /** Where a field must lie that C would put elsewhere, because reserved bytes stand before it. */
  readonly at?: number;
  read(view: DataView, offset: number): T;
  /** `name` is what the user calls the value, for the error if it is not one. */
  write(view: DataView, offset: number, value: unknown, name: string): void;
}

function unsigned(size: 1 | 2 | 4): Layout<number> {
  const bits = (size * 8) as 8 | 16 | 32;
  return {
    size,
    alignment: size,
    read: (view, offset) => view[`getUint${bits}`](offset, true),
    write: (view, offset, value, name) => view[`setUint${bits}`](offset, integer(name, value, 0, 2 ** bits - 1), true),
  };
}

export const u8 = unsigned(1);
export const u16 = unsigned(2);
export const u32 = unsigned(4);

/** A value of 64 bits, unsigned. */
export function bigint64(name: string, value: unknown): bigint {
  if (typeof value !== 'bigint' || BigInt.asUintN(64, value) !== value) {
    throw invalid(name, 'a bigint between 0n and 2n ** 64n - 1n', value);
  }
  return value;
}

export const u64: Layout<bigint> = {
  size: 8,
  alignment: 8,
  read: (view, offset) => view.getBigUint64(offset, true),
  write: (view, offset, value, name) => view.setBigUint64(offset, bigint64(name, value), true),
};

/** A size or a guest-physical address: 64 bits in the kernel, of which at most 52 are used. */
export const address: Layout<number> = {
  size: 8,
  alignment: 8,
  read: (view, offset) => Number(view.getBigUint64(offset, true)),
  write: (view, offset, value, name) =>
    view.setBigUint64(offset, BigInt(integer(name, value, 0, Number.MAX_SAFE_INTEGER)), true),
};

export const s32: Layout<number> = {
  size: 4,
  alignment: 4,
  read: (view, offset) => view.getInt32(offset, true),
  write: (view, offset, value, name) => view.setInt32(offset, integer(name, value, -(2 ** 31), 2 ** 31 - 1), true),
};

export function bytes(size: number): Layout<Uint8Array> {
  return {
    size,
    alignment: 1,
    read: (view, offset) => new Uint8Array(view.buffer, view.byteOffset + offset, size).slice(),
    write: (view, offset, value, name) =>
      new Uint8Array(view.buffer, view.byteOffset + offset, size).set(byteArray(name, value, size)),
  };
}

/** A Uint8Array of a certain size. */
export function byteArray(name: string, value: unknown, size: number): Uint8Array {
  if (!(value instanceof Uint8Array) || value.byteLength !== size) {
    throw invalid(name, `a Uint8Array of ${size} bytes`, value);
  }
  return value;
}

export function array<T>(element: Layout<T>, length: number): Layout<T[]> {
  return {
    size: element.size * length,
    alignment: element.alignment,
    read: (view, offset) => Array.from({ length }, (_, i) => element.read(view, offset + i * element.size)),
    write(view, offset, value, name) {
      if (!Array.isArray(value) || value.length !== length)
        throw invalid(name, `an array of ${length} elements`, value);
      value.forEach((item, i) => {
        element.write(view, offset + i * element.size, item, `${name}[${i}]`);
      });
    },
  };
}

/** A field at a certain offset of its structure. */
export function at<T>(offset: number, layout: Layout<T>): Layout<T> {
  return { ...layout, at: offset };
}

const aligned = (offset: number, alignment: number): number => Math.ceil(offset / alignment) * alignment;

/** `size`: where reserved bytes at the end make it bigger than its fields. */
export function struct<T extends object>(fields: { [K in keyof T]: Layout<T[K]> }, size = 0): Layout<T> {
  const placed: { key: string; layout: Layout<unknown>; offset: number }[] = [];
  let end = 0;
  let alignment = 1;
  for (const [key, layout] of Object.entries<Layout<unknown>>(fields)) {
    const offset = layout.at ?? aligned(end, layout.alignment);
    placed.push({ key, layout, offset });
    end = offset + layout.size;
    alignment = Math.max(alignment, layout.alignment);
  }
  const keys = placed.map(({ key }) => key);
  return {
    size: Math.max(size, aligned(end, alignment)),
    alignment,
    read: (view, base) =>
      Object.fromEntries(placed.map(({ key, layout, offset }) => [key, layout.read(view, base + offset)])) as T,
    write(view, base, value, name) {
      const given = object(name, value, keys);
      for (const { key, layout, offset } of placed) layout.write(view, base + offset, given[key], `${name}.${key}`);
    },
  };
}

/** The value as the kernel's bytes. */
export function encode<T>(layout: Layout<T>, value: T, name: string): Uint8Array {
  const memory = new Uint8Array(layout.size);
  layout.write(new DataView(memory.buffer), 0, value, name);
  return memory;
}

/** What the kernel writes when `fill` hands it the memory. */
export function decode<T>(layout: Layout<T>, fill: (memory: Uint8Array) => void): T {
  const memory = new Uint8Array(layout.size);
  fill(memory);
  return layout.read(new DataView(memory.buffer), 0);
}

/** One of the kernel's structures that end in an array: a 32-bit count, 32 bits that are 0, the entries. */
export function encodeTable<T>(entry: Layout<T>, values: readonly T[], name: string): Uint8Array {
  if (!Array.isArray(values)) throw invalid(name, 'an array', values);
  const head = 8;
  const memory = new Uint8Array(head + values.length * entry.size);
  const view = new DataView(memory.buffer);
  view.setUint32(0, values.length, true);
  values.forEach((value, i) => {
    entry.write(view, head + i * entry.size, value, `${name}[${i}]`);
  });
  return memory;
}

/** The entries that `memory` holds, one after the other, from `offset` on. */
export function decodeEntries<T>(entry: Layout<T>, memory: Uint8Array, offset = 0): T[] {
  const view = new DataView(memory.buffer, memory.byteOffset + offset, memory.byteLength - offset);
  return Array.from({ length: view.byteLength / entry.size }, (_, i) => entry.read(view, i * entry.size));
}
