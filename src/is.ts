import { CasemateError } from './errors.js';

/** Refuses an option: names it, says what was expected and what came. */
export function invalid(name: string, expected: string, actual: unknown): CasemateError {
  return new CasemateError(
    'ERR_CASEMATE_INVALID_OPTION',
    `Expected ${expected} for ${name} but received ${describe(actual)}`,
    { step: name, remedy: `Pass ${expected} as ${name}.` },
  );
}

/** `value` as a person would name it, cut short. */
export function describe(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  const type = typeof value;
  if (type === 'string') return `${JSON.stringify((value as string).slice(0, 60))} of type string`;
  if (type === 'object') return `an instance of ${(value as object).constructor?.name ?? 'Object'}`;
  if (type === 'function') return 'a function';
  return `${String(value)} of type ${type}`;
}

/** An integer within [min, max]. */
export function integer(name: string, value: unknown, min: number, max: number): number {
  if (!Number.isSafeInteger(value) || (value as number) < min || (value as number) > max) {
    throw invalid(name, `an integer between ${min} and ${max}`, value);
  }
  return value as number;
}

/** A string without NUL bytes (the kernel and the guest would cut it there). */
export function string(name: string, value: unknown): string {
  if (typeof value !== 'string') throw invalid(name, 'a string', value);
  if (value.includes('\0')) throw invalid(name, 'a string without NUL bytes', value);
  return value;
}

export function boolean(name: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw invalid(name, 'a boolean', value);
  return value;
}

/** One of a list of words. */
export function oneOf<const T extends string>(name: string, value: unknown, words: readonly T[]): T {
  if (!words.includes(value as T)) throw invalid(name, `one of ${words.map((word) => `'${word}'`).join(', ')}`, value);
  return value as T;
}

/** A plain object whose keys are all known: a misspelt option is an error, not a default. */
export function object(
  name: string,
  value: unknown,
  known: readonly string[],
  expected = 'an object',
): Record<string, unknown> {
  // A Promise or a Map, say, has no keys of its own either, and would pass for an object without options.
  if (Object.prototype.toString.call(value) !== '[object Object]') throw invalid(name, expected, value);
  for (const key of Object.keys(value as object)) {
    if (!known.includes(key)) {
      throw invalid(`${name}.${key}`, `no such option (known are: ${known.join(', ')})`, (value as never)[key]);
    }
  }
  return value as Record<string, unknown>;
}

/** A file descriptor number. Whether it is open is for the kernel to say. */
export function descriptor(name: string, value: unknown): number {
  return integer(name, value, 0, 0x7fffffff);
}
