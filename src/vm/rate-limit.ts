import { integer, invalid, object } from '../is.js';

/** How much a guest may do with a device in a time: bytes, operations, or both. */
export interface RateLimit {
  /** Bytes in a second, at least 1. Default: no limit. */
  bytesPerSecond?: number;
  /** Bytes that may go at once after a rest, up to 4 GiB. Default: a tenth of a second's. */
  burstBytes?: number;
  /** Operations in a second (requests of a disk, frames of a network), at least 1. Default: no limit. */
  operationsPerSecond?: number;
  /** Operations that may be done at once after a rest. Default: a tenth of a second's. */
  burstOperations?: number;
}

/** Of {@link RateLimit}, with defaults; 0 per second is no limit. */
export type ParsedRateLimit = Readonly<Required<RateLimit>>;

export const unlimited: ParsedRateLimit = {
  bytesPerSecond: 0,
  burstBytes: 0,
  operationsPerSecond: 0,
  burstOperations: 0,
};

/** A limit, or none where that is undefined. */
export function parseRateLimit(name: string, value: unknown): ParsedRateLimit {
  if (value === undefined) return unlimited;
  const given = object(name, value, Object.keys(unlimited));
  const pair = (rateName: string, burstName: string): [number, number] => {
    const { [rateName]: rate, [burstName]: burst } = given;
    if (rate === undefined) {
      if (burst !== undefined) throw invalid(`${name}.${burstName}`, `nothing without ${rateName}`, burst);
      return [0, 0];
    }
    const perSecond = integer(`${name}.${rateName}`, rate, 1, Number.MAX_SAFE_INTEGER);
    const most = 2 ** 32;
    if (burst === undefined) return [perSecond, Math.min(most, Math.ceil(perSecond / 10))];
    return [perSecond, integer(`${name}.${burstName}`, burst, 0, most)];
  };
  const [bytesPerSecond, burstBytes] = pair('bytesPerSecond', 'burstBytes');
  const [operationsPerSecond, burstOperations] = pair('operationsPerSecond', 'burstOperations');
  if (bytesPerSecond === 0 && operationsPerSecond === 0) {
    throw invalid(name, 'bytesPerSecond, operationsPerSecond or both', value);
  }
  return { bytesPerSecond, burstBytes, operationsPerSecond, burstOperations };
}

/** In the order of struct RateLimitOptions in native/machine/rate_limit.hpp. */
export function rateLimitParameters(limit: ParsedRateLimit): readonly number[] {
  return [limit.bytesPerSecond, limit.burstBytes, limit.operationsPerSecond, limit.burstOperations];
}
