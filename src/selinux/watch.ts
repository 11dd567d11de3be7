import { CasemateError, isSystemError } from '../errors.js';
import { native } from '../native.js';
import { type Denial, followDenials } from './denials.js';
import type { VmLabel } from './label.js';
import type { KernelMessages } from './native.js';

/** As much of a VM as this needs. */
interface Labelled {
  readonly pid: number;
  readonly exited: Promise<unknown>;
  denied(denial: Denial): void;
  emit(event: 'selinux-mode', mode: 'enforcing' | 'permissive'): unknown;
  end(reason: { reason: 'killed' }): void;
}

interface Watched {
  readonly vm: Labelled;
  readonly onModeChange: 'report' | 'end';
}

/** Living VMs with a label, by their contexts: those with a pair of their own are alone there. */
const watched = new Map<string, Set<Watched>>();
let denials: { close(): void } | undefined;
let modes: KernelMessages | undefined;

/** How long after its end a VM may still hear of denials: they come by a way of their own. */
const lastWordsMs = 200;

/**
 * Has a VM hear of what its label is denied, and of changes of the host's mode. One descriptor for each, for all VMs, as long
 * as there are any.
 *
 * @param forgotten - called when it hears no more: from then on what its label is denied is not for it.
 * @internal
 */
export function watchLabelled(
  vm: Labelled,
  { context }: VmLabel,
  onModeChange: 'report' | 'end',
  forgotten: () => void,
): void {
  denials ??= listen(() => followDenials(onDenial));
  modes ??= listen(() => new native.KernelMessages('selinux', onMode));
  const one = { vm, onModeChange };
  const set = watched.get(context) ?? new Set();
  watched.set(context, set.add(one));
  const forgetOne = () => {
    forget(context, one);
    forgotten();
  };
  vm.exited.then(() => setTimeout(forgetOne, lastWordsMs).unref());
}

/** Who may not hear of them launches nevertheless: what is denied stays denied. */
function listen<T>(begin: () => T): T | undefined {
  try {
    return begin();
  } catch (error) {
    if (isSystemError(error) || error instanceof CasemateError) return undefined;
    throw error;
  }
}

function forget(context: string, one: Watched): void {
  const set = watched.get(context);
  set?.delete(one);
  if (set?.size === 0) watched.delete(context);
  if (watched.size > 0) return;
  denials?.close();
  modes?.close();
  denials = undefined;
  modes = undefined;
}

function onDenial(denial: Denial): void {
  const candidates = [...(watched.get(denial.source) ?? [])];
  // Those who share a context are told apart by their processes, where these are known.
  const own = candidates.filter(({ vm }) => vm.pid === denial.pid);
  for (const { vm } of own.length > 0 ? own : candidates) vm.denied(denial);
}

/** struct nlmsghdr: length, type; then struct selnl_msg_setenforce, linux/selinux_netlink.h. */
const setEnforce = 0x10;

function onMode(bytes: Buffer): void {
  if (bytes.length < 20 || bytes.readUInt16LE(4) !== setEnforce) return;
  const mode = bytes.readInt32LE(16) === 0 ? 'permissive' : 'enforcing';
  for (const { vm, onModeChange } of [...watched.values()].flatMap((set) => [...set])) {
    vm.emit('selinux-mode', mode);
    if (onModeChange === 'end') vm.end({ reason: 'killed' });
  }
}
