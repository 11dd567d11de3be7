import type { Unit } from '../results.js';

/** A number of a metric, in words: three or four digits and the unit. */
export function quantity(value: number, unit: Unit): string {
  switch (unit) {
    case 'ns':
      return value >= 1e7 ? `${(value / 1e6).toFixed(1)} ms` : `${Math.round(value / 1000)} µs`;
    case 'bytes':
      return value >= 2 ** 20 ? `${(value / 2 ** 20).toFixed(1)} MiB` : `${(value / 1024).toFixed(0)} KiB`;
    case 'share':
      return `${(value * 100).toFixed(1)} %`;
    case 'perSecond':
      return `${value.toFixed(0)} /s`;
    case 'count':
      return value.toFixed(0);
  }
}

/** A ratio, or the plain value of a target that is none: bytes and the like are large. */
export function number(value: number): string {
  return value >= 1000 ? Math.round(value).toString() : value.toFixed(value < 0.1 ? 3 : 2);
}
