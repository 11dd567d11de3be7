import { invalid, object, oneOf, string } from '../is.js';
import { parseCategories, parseContext } from './context.js';

/**
 * What a VM's label depends on the host for.
 *
 * - `'enforcing'`: a host that does not enforce its policy is an error, and so is one without casemate's module.
 * - `'permissive-ok'`: the same label, also where rules are only logged.
 * - `'auto'`: as much as the host has, down to nothing; the evidence of a VM says what that was.
 * - `'off'`: no label.
 */
export type SelinuxRequirement = 'enforcing' | 'permissive-ok' | 'auto' | 'off';

/** What `launch({ jail: { selinux } })` takes besides a bare {@link SelinuxRequirement}. */
export interface SelinuxOptions {
  /** Default `'enforcing'`. */
  mode?: Exclude<SelinuxRequirement, 'off'>;
  /**
   * The monitor's whole context, `'system_u:system_r:casemate_vmm_t:s0:c1,c2'`, instead of the caller's user and role
   * with a pair of categories that no other VM has. VMs that are given the same pair share it.
   */
  context?: string;
  /** The categories that the pair is taken from, `'c0.c99'`; of those that the caller has, which are the default. */
  categories?: string;
  /** Whether a change of the host's mode, which is an event, also ends the VM. Default `'report'`. */
  onModeChange?: 'report' | 'end';
}

/** {@link SelinuxOptions}, checked. */
export interface SelinuxRequest {
  readonly mode: SelinuxRequirement;
  readonly context: string | undefined;
  readonly categories: readonly number[] | undefined;
  readonly onModeChange: 'report' | 'end';
}

const words = ['enforcing', 'permissive-ok', 'auto', 'off'] as const;
const bare = (mode: SelinuxRequirement): SelinuxRequest =>
  Object.freeze({ mode, context: undefined, categories: undefined, onModeChange: 'report' });
const bareRequests = Object.fromEntries(words.map((mode) => [mode, bare(mode)])) as Record<
  SelinuxRequirement,
  SelinuxRequest
>;

/** What is wrong with a part is said of the option that it is in. */
function named<T>(name: string, value: unknown, parse: (text: string) => T): T {
  try {
    return parse(string(name, value));
  } catch {
    throw invalid(name, 'what the kernel writes of it (docs/selinux.md)', value);
  }
}

/** @internal */
export function parseSelinux(value: unknown): SelinuxRequest {
  const name = 'options.jail.selinux';
  if (typeof value === 'string') return bareRequests[oneOf(name, value, words)];
  const options = object(name, value, ['mode', 'context', 'categories', 'onModeChange']);
  const { mode = 'enforcing', context, categories, onModeChange = 'report' } = options;
  if (context !== undefined && categories !== undefined) {
    throw invalid(`${name}.categories`, 'no categories besides a whole context', categories);
  }
  if (context !== undefined) named(`${name}.context`, context, parseContext);
  const numbers = categories === undefined ? undefined : named(`${name}.categories`, categories, parseCategories);
  if (numbers !== undefined && numbers.length < 2) {
    throw invalid(`${name}.categories`, 'two categories at least', categories);
  }
  return {
    mode: oneOf(`${name}.mode`, mode, ['enforcing', 'permissive-ok', 'auto']),
    context: context as string | undefined,
    categories: numbers,
    onModeChange: oneOf(`${name}.onModeChange`, onModeChange, ['report', 'end']),
  };
}
