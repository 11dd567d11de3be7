import { kvmCall } from './common.js';
import { decodeEntries, encodeTable } from './layout.js';
import { type Msr, msr } from './state.js';

/**
 * Reads MSRs by a call that stops at the first one it cannot read and says how many it did: goes on behind
 * each of those.
 */
export function readMsrs(indices: readonly number[], read: (msrs: Uint8Array) => number): Msr[] {
  const values: Msr[] = [];
  let rest = indices.map((index) => ({ index, value: 0n }));
  while (rest.length > 0) {
    const memory = encodeTable(msr, rest, 'indices');
    const count = kvmCall(() => read(memory));
    values.push(...decodeEntries(msr, memory, 8).slice(0, count));
    rest = rest.slice(count + 1);
  }
  return values;
}
