import { CasemateError, wrapSystemError } from '../errors.js';
import { invalid } from '../is.js';

/** Runs a call of the addon; what the kernel refuses becomes `ERR_CASEMATE_KVM`. */
export function kvmCall<T>(call: () => T): T {
  return wrapSystemError('ERR_CASEMATE_KVM', call);
}

/** The error of a use after close. */
export function closed(what: string): CasemateError {
  return new CasemateError('ERR_CASEMATE_CLOSED', `This ${what} is closed`, {
    remedy: `Open or create another ${what}.`,
  });
}

export function signalOption(value: unknown): AbortSignal | undefined {
  if (value === undefined || value instanceof AbortSignal) return value;
  throw invalid('options.signal', 'an AbortSignal', value);
}

export const maxU32 = 2 ** 32 - 1;
export const pageSize = 4096;
