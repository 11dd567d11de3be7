import { createHash } from 'node:crypto';
import { type Entry, sizeOf } from './tree.js';

/**
 * A UUID that an image of the same tree has again, and no other one: made images can be told apart, and made again.
 * RFC 9562, version 8.
 */
export function identifier(tree: readonly Entry[]): string {
  const shape = tree.map((entry) => (entry.type === 'file' ? { ...entry, contents: sizeOf(entry) } : entry));
  const hex = createHash('sha256').update(JSON.stringify(shape)).digest('hex');
  const variant = ((Number.parseInt(hex.slice(16, 18), 16) & 0x3f) | 0x80).toString(16);
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-${variant}${hex.slice(18, 20)}-${hex.slice(20, 32)}`;
}
