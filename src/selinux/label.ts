import { CasemateError, isSystemError, wrapSystemError } from '../errors.js';
import type { NativeFile } from '../jail/native.js';
import { native } from '../native.js';
import { deniedOf } from './access.js';
import { formatContext, parseContext, type SelinuxContext } from './context.js';
import { asked, checkContext, isKnown, selinuxError } from './host.js';
import { leaseGiven, leasePair, sparePair } from './leases.js';
import type { SelinuxRequest } from './request.js';

/** Types of policy/casemate.cil. */
export const types = {
  monitor: 'casemate_vmm_t',
  executable: 'casemate_vmm_exec_t',
  image: 'casemate_image_t',
  content: 'casemate_content_t',
} as const;

/** What the labels of a caller's VMs have in common: all but the categories. */
interface Common {
  /** Up to the categories: `user:role:type:s0:`. */
  readonly monitor: string;
  readonly image: string;
  readonly content: string;
  readonly stream: string;
  /** The caller's own categories, of which VMs have theirs. */
  readonly categories: readonly number[];
}

/** The label of a VM. */
export interface VmLabel {
  /** Of its monitor and its sockets. */
  readonly context: string;
  /** Its pair, where it has one: leased to it alone, or given. */
  readonly categories: readonly [number, number] | undefined;
  readonly isLeased: boolean;
  /** Keeps the pair; a launch takes it. */
  readonly lease: NativeFile | undefined;
  /** Of what it reads and writes, and of what it shares with others. */
  readonly image: string;
  readonly content: string;
  /**
   * Of sockets that the caller connects for it: the caller's own, for it is the caller who connects them, with no
   * categories, for those of the caller's that the VM has not would keep it from using them.
   */
  readonly stream: string;
}

let isHere: boolean | undefined;

/**
 * Whether this kernel runs with SELinux: that does not change while it runs.
 * @throws CasemateError `ERR_CASEMATE_SELINUX` where the policy keeps that from this process.
 * @internal
 */
export function isSelinuxHere(): boolean {
  isHere ??= asked('The mode of SELinux', () => native.selinuxStatus() >= 0);
  return isHere;
}

/** Why a launch with `'auto'` has no label. */
export type Unlabelled = { readonly unlabelled: string };

/** @internal */
export const labelOf = (found: VmLabel | Unlabelled): VmLabel | undefined => ('context' in found ? found : undefined);

/**
 * The label of a VM to be, or why it has none, where the request allows that. Its lease is the caller's to close or to hand
 * on.
 *
 * @throws CasemateError `ERR_CASEMATE_SELINUX`, with what the host lacks.
 * @internal
 */
export function labelFor(request: SelinuxRequest): VmLabel | Unlabelled {
  if (request.mode === 'off') return off;
  try {
    return isSelinuxHere() || request.mode !== 'auto' ? requiredLabel(request) : disabled;
  } catch (error) {
    if (request.mode !== 'auto' || !(error instanceof CasemateError)) throw error;
    return { unlabelled: `${error.message} (selinux: 'auto')` };
  }
}

function requiredLabel(request: SelinuxRequest): VmLabel {
  if (!isSelinuxHere()) {
    throw selinuxError('SELinux is not enabled on this host', {
      step: 'selinux',
      remedy: "Boot with security=selinux and a policy, or launch with selinux: 'auto' or 'off' (docs/selinux.md).",
    });
  }
  if (request.mode === 'enforcing' && native.selinuxStatus() !== 1) {
    throw selinuxError('SELinux is permissive: its rules are logged, not enforced', {
      step: 'mode',
      remedy: "Run `setenforce 1`, or launch with selinux: 'permissive-ok'.",
    });
  }
  return request.context === undefined ? ownLabel(request) : givenLabel(request.context);
}

const off: Unlabelled = { unlabelled: 'off' };
const disabled: Unlabelled = { unlabelled: 'SELinux is disabled on this host' };

let own: SelinuxContext | undefined;

/** This process's own context; read once, for who changes it does so before anything else. */
function ownContext(): SelinuxContext {
  own ??= parseContext(wrapSystemError('ERR_CASEMATE_SYSTEM', () => native.selinuxContext()));
  return own;
}

let common: Common | undefined;

/** The caller's user and role: to change them would take rights of their own. */
function commonLabel(): Common {
  if (common !== undefined) return common;
  const { user, role, range } = ownContext();
  const base = formatContext({ user, role, type: types.monitor, range: single(0, []) });
  requireModule(base);
  checkTransition(base);
  const level = `s${range?.low.sensitivity ?? 0}:`;
  common = {
    monitor: `${user}:${role}:${types.monitor}:${level}`,
    image: `${user}:object_r:${types.image}:${level}`,
    content: contentOf(user),
    stream: streamOfCaller(),
    categories: range?.high.categories ?? [],
  };
  return common;
}

/** On the way of every launch: what is the same for all of them is not made again. */
function ownLabel({ categories }: SelinuxRequest): VmLabel {
  const { monitor, image, content, stream, categories: mine } = commonLabel();
  const allowed = categories === undefined ? mine : categories.filter((category) => mine.includes(category));
  if (allowed.length < 2) {
    throw selinuxError(
      `The context that Node runs in has ${mine.length} categories, of which ${allowed.length} may be used`,
      {
        step: 'categories',
        remedy: 'Run Node with a range: runcon -l s0-s0:c0.c1023, or SELinuxContext= of its systemd unit.',
      },
    );
  }
  const { pair, file } = leasePair(allowed);
  const level = `c${pair[0]},c${pair[1]}`;
  return {
    context: monitor + level,
    categories: pair,
    isLeased: true,
    lease: file,
    image: image + level,
    content,
    stream,
  };
}

/**
 * Has another VM of this process use the pair of one that has left nothing behind, of which nothing is heard any more, or
 * that never was.
 * @internal
 */
export function giveBack({ lease, isLeased, categories }: VmLabel): void {
  lease?.close();
  if (isLeased && categories !== undefined) sparePair(categories);
}

const contentOf = (user: string): string =>
  formatContext({ user, role: 'object_r', type: types.content, range: single(0, []) });

function givenLabel(context: string): VmLabel {
  checkContext(context);
  checkTransition(context);
  const { range } = parseContext(context);
  const { user } = ownContext();
  const [low, high, ...more] = range?.high.categories ?? [];
  const isPair = low !== undefined && high !== undefined && more.length === 0;
  const lease = isPair ? leaseGiven([low, high]) : undefined;
  return {
    context,
    categories: lease?.pair,
    isLeased: false,
    lease: lease?.file,
    image: formatContext({
      user,
      role: 'object_r',
      type: types.image,
      ...(range && { range: { low: range.high, high: range.high } }),
    }),
    content: contentOf(user),
    stream: streamOfCaller(),
  };
}

function streamOfCaller(): string {
  const { range, ...caller } = ownContext();
  return formatContext({ ...caller, ...(range && { range: single(range.low.sensitivity, []) }) });
}

function single(sensitivity: number, categories: readonly number[]) {
  const level = { sensitivity, categories };
  return { low: level, high: level };
}

/** One that is removed while we run makes the launch fail at its first step. */
function requireModule(base: string): void {
  if (isKnown(base)) return;
  throw selinuxError(`The loaded policy knows no ${base}: casemate's module is not in it, or not for this caller`, {
    step: 'policy',
    remedy: 'Run `casemate selinux install` as root, and `casemate selinux check`.',
  });
}

/** Contexts that the policy has let us start: a policy that changes makes a launch fail at its execve. */
const startable = new Set<string>();

function checkTransition(context: string): void {
  if (startable.has(context)) return;
  const caller = formatContext(ownContext());
  const denied = asked('What the policy grants', () => [
    ...deniedOf(caller, context, 'process', ['transition']),
    ...deniedOf(caller, caller, 'process', ['setexec', 'setsockcreate']),
  ]);
  if (denied.length === 0) {
    if (startable.size < 64) startable.add(context);
    return;
  }
  throw selinuxError(`The policy does not let ${caller} start a process as ${context}: ${denied.join(', ')}`, {
    step: 'transition',
    remedy: 'Run Node in a domain of the attribute casemate_caller (docs/selinux.md).',
  });
}

/**
 * Labels a memory file, or another one that nobody else has.
 * @internal
 */
export function setLabel(file: NativeFile, context: string): void {
  try {
    file.setContext(context);
  } catch (cause) {
    if (!isSystemError(cause)) throw cause;
    throw selinuxError(`A memory file cannot be labelled ${context}: ${cause.message}`, {
      step: 'label',
      remedy: 'May this caller relabel files to that type? See `casemate selinux denials`.',
      cause,
    });
  }
}
