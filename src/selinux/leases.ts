import { chmodSync, closeSync, mkdirSync, openSync } from 'node:fs';
import { CasemateError, isSystemError } from '../errors.js';
import type { NativeFile } from '../jail/native.js';
import { native } from '../native.js';

/** What lasts longer than a VM; in policy/casemate.cil, too. */
export const stateFolder = '/var/lib/casemate';

/** A byte of it for each pair of categories: whoever has a lock on it has the pair. */
export const leasesPath = `${stateFolder}/categories`;

/**
 * What was relabelled for VMs. Each user has entries of his own, as in /tmp: nobody relabels anything that another one has
 * written there.
 */
export const journal = `${stateFolder}/relabelled`;

/** A pair of categories, the lower one first, that is ours as long as the file is open anywhere. */
export interface Lease {
  readonly pair: readonly [number, number];
  readonly file: NativeFile;
}

const byteOf = ([low, high]: readonly [number, number]): number => low * 1024 + high;

/**
 * Pairs whose VMs were ours and are gone, with all that they left: the next VMs of this process have them, as long as nobody
 * else does. A context that is new to the kernel is looked up in the policy from the start, and never forgotten by it.
 */
const spare: (readonly [number, number])[] = [];
const maxSpare = 1024;

/** Adds a pair that is free again. */
export function sparePair(pair: readonly [number, number]): void {
  if (spare.length < maxSpare) spare.push(pair);
}

/** How often chance is tried before every pair is looked at in turn. */
const chances = 32;

/**
 * A pair out of `categories`, rising numbers, that no other VM of this host has: not of this process, nor of another one, nor
 * of another user. The lock belongs to the open file, which the monitor inherits, so it is free again when both are gone,
 * however they went.
 */
export function leasePair(categories: readonly number[], path = leasesPath): Lease {
  const file = openLeases(path);
  try {
    for (let i = spare.length - 1; i >= 0; i -= 1) {
      const pair = spare[i] as readonly [number, number];
      if (!categories.includes(pair[0]) || !categories.includes(pair[1])) continue;
      spare.splice(i, 1);
      if (file.lease(byteOf(pair), false)) return { pair, file };
    }
    const pairAt = (low: number, high: number) => [categories[low], categories[high]] as [number, number];
    const { length } = categories;
    for (let i = 0; length > 2 && i < chances; i += 1) {
      const one = Math.floor(Math.random() * length);
      const other = (one + 1 + Math.floor(Math.random() * (length - 1))) % length;
      const pair = pairAt(Math.min(one, other), Math.max(one, other));
      if (file.lease(byteOf(pair), false)) return { pair, file };
    }
    for (let low = 0; low < length - 1; low += 1) {
      for (let high = low + 1; high < length; high += 1) {
        const pair = pairAt(low, high);
        if (file.lease(byteOf(pair), false)) return { pair, file };
      }
    }
  } catch (error) {
    file.close();
    throw error;
  }
  file.close();
  throw new CasemateError('ERR_CASEMATE_SELINUX', 'Every pair of the categories that may be used is in use', {
    step: 'categories',
    remedy: 'End VMs, or widen jail.selinux.categories or the range of the context that Node runs in.',
  });
}

/** A pair that was asked for: shared with those who asked for it, too, and with nobody who was given it. */
export function leaseGiven(pair: readonly [number, number], path = leasesPath): Lease {
  const file = openLeases(path);
  if (file.lease(byteOf(pair), true)) return { pair, file };
  file.close();
  throw new CasemateError('ERR_CASEMATE_SELINUX', `The categories c${pair[0]},c${pair[1]} are those of another VM`, {
    step: 'categories',
    remedy: 'Leave jail.selinux.context out, and each VM has categories of its own.',
  });
}

/** Whether a VM, or a launch, has this pair now. */
export function isLeased(pair: readonly [number, number], path = leasesPath): boolean {
  const file = openLeases(path);
  const isFree = file.lease(byteOf(pair), false);
  file.close();
  return !isFree;
}

function openLeases(path: string): NativeFile {
  try {
    return new native.File(path, 'leases');
  } catch (error) {
    if (!isSystemError(error) || error.code !== 'ENOENT') throw unopened(error);
  }
  try {
    if (path === leasesPath) makeState();
    return new native.File(path, 'leases');
  } catch (error) {
    throw unopened(error);
  }
}

/** For all users of this host: what can be done to leases is to take some, and these only while that lasts. */
export function makeState(): void {
  mkdirSync(stateFolder, { recursive: true, mode: 0o755 });
  closeSync(openSync(leasesPath, 'a', 0o666));
  chmodSync(leasesPath, 0o666); // whatever the umask
  mkdirSync(journal, { recursive: true });
  chmodSync(journal, 0o1777);
}

function unopened(cause: unknown): unknown {
  if (!isSystemError(cause)) return cause;
  return new CasemateError('ERR_CASEMATE_SELINUX', `The leases of categories cannot be had: ${cause.message}`, {
    step: 'categories',
    remedy: 'Run `casemate selinux install` as root: it makes them for all users of this host.',
    cause,
  });
}
