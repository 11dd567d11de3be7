import { integer, invalid, object, string } from '../is.js';

/** One level of a range: a sensitivity (`s0`) and its categories. */
export interface SelinuxLevel {
  /** The number of the sensitivity, 0 under the usual MCS policies. */
  readonly sensitivity: number;
  /** Category numbers, each once, in rising order. */
  readonly categories: readonly number[];
}

/** A range of levels. A range of one level has twice the same. */
export interface SelinuxRange {
  readonly low: SelinuxLevel;
  readonly high: SelinuxLevel;
}

/** A security context, `user:role:type:range`, taken apart. */
export interface SelinuxContext {
  readonly user: string;
  readonly role: string;
  readonly type: string;
  /** Absent under a policy without MLS and MCS. */
  readonly range?: SelinuxRange;
}

/** The highest category of an MCS policy: c0 to c1023. */
export const MAX_CATEGORY = 1023;
const MAX_SENSITIVITY = 1023;

/**
 * Takes a context in the kernel's raw form apart: `system_u:system_r:casemate_vmm_t:s0:c12,c700`.
 *
 * Translated ranges (`SystemLow`, as mcstransd shows them) are not understood. Whether the loaded policy
 * knows the context is not asked here but of {@link checkContext}.
 *
 * @throws CasemateError `ERR_CASEMATE_INVALID_OPTION` where the text is no context.
 */
export function parseContext(context: string): SelinuxContext {
  // The range holds colons of its own, so only the first three separate.
  const match = /^([^:\s]+):([^:\s]+):([^:\s]+)(?::(.*))?$/s.exec(string('context', context));
  if (!match) throw invalid('context', "a context of the form 'user:role:type:range'", context);
  const [, user, role, type, range] = match as unknown as [string, string, string, string, string?];
  return range === undefined ? { user, role, type } : { user, role, type, range: parseRange(range) };
}

/** The raw form of a context, its range as the kernel writes it. The reverse of {@link parseContext}. */
export function formatContext(context: SelinuxContext): string {
  const { user, role, type, range } = object('context', context, ['user', 'role', 'type', 'range']);
  const names = Object.entries({ user, role, type }).map(([key, value]) => name(`context.${key}`, value));
  return [...names, ...(range === undefined ? [] : [formatRange(range as SelinuxRange)])].join(':');
}

/** Takes a range apart: `s0`, `s0:c1,c2`, `s0-s0:c0.c1023`. */
export function parseRange(range: string): SelinuxRange {
  const [low, high, ...rest] = string('range', range).split('-');
  if (rest.length > 0) throw invalid('range', 'one level, or two with a hyphen between', range);
  const lowest = parseLevel(low as string);
  return { low: lowest, high: high === undefined ? lowest : parseLevel(high) };
}

/** The reverse of {@link parseRange}. */
export function formatRange(range: SelinuxRange): string {
  const { low, high } = object('range', range, ['low', 'high']);
  const lowest = formatLevel('range.low', low as SelinuxLevel);
  const highest = formatLevel('range.high', high as SelinuxLevel);
  return lowest === highest ? lowest : `${lowest}-${highest}`;
}

/**
 * The type of a context; a text that is no context itself.
 * @internal
 */
export const typeOf = (context: string): string => context.split(':')[2] ?? context;

/**
 * The categories of a context's high level; none of a text that is no context.
 * @internal
 */
export function categoriesOf(context: string): readonly number[] {
  try {
    return parseContext(context).range?.high.categories ?? [];
  } catch {
    return [];
  }
}

function parseLevel(level: string): SelinuxLevel {
  const match = /^s(\d{1,4})(?::(.+))?$/s.exec(level);
  if (!match) throw invalid('level', "a level of the form 's0' or 's0:c1,c2.c5'", level);
  const [, sensitivity, categories] = match as unknown as [string, string, string?];
  return {
    sensitivity: integer('sensitivity', Number(sensitivity), 0, MAX_SENSITIVITY),
    categories: categories === undefined ? [] : parseCategories(categories),
  };
}

/** @internal */
export function parseCategories(text: string): number[] {
  const numbers = new Set<number>();
  for (const part of text.split(',')) {
    const match = /^c(\d{1,4})(?:\.c(\d{1,4}))?$/.exec(part);
    if (!match) throw invalid('categories', "categories of the form 'c1,c2.c5'", text);
    const first = integer('category', Number(match[1]), 0, MAX_CATEGORY);
    const last = match[2] === undefined ? first : integer('category', Number(match[2]), first, MAX_CATEGORY);
    for (let category = first; category <= last; category++) numbers.add(category);
  }
  return [...numbers].sort((a, b) => a - b);
}

function formatLevel(option: string, value: SelinuxLevel): string {
  const { sensitivity, categories } = object(option, value, ['sensitivity', 'categories']);
  const level = `s${integer(`${option}.sensitivity`, sensitivity, 0, MAX_SENSITIVITY)}`;
  if (!Array.isArray(categories)) throw invalid(`${option}.categories`, 'an array of category numbers', categories);
  const checked = categories.map((category) => integer(`${option}.categories`, category, 0, MAX_CATEGORY));
  return checked.length === 0 ? level : `${level}:${formatCategories(checked)}`;
}

/** As the kernel writes them: a run of three or more with a dot, all others with commas. */
function formatCategories(categories: number[]): string {
  const sorted = [...new Set(categories)].sort((a, b) => a - b);
  const runs: [first: number, last: number][] = [];
  for (const category of sorted) {
    const run = runs.at(-1);
    if (run && run[1] === category - 1) run[1] = category;
    else runs.push([category, category]);
  }
  return runs
    .map(([first, last]) => {
      if (first === last) return `c${first}`;
      return `c${first}${last - first > 1 ? '.' : ','}c${last}`;
    })
    .join(',');
}

function name(option: string, value: unknown): string {
  const text = string(option, value);
  if (!/^[^:\s]+$/.test(text)) throw invalid(option, 'a name without colons and spaces', value);
  return text;
}
