import { directoryForLimits } from '../jail/cgroup.js';
import { Capability, Kvm } from '../kvm/index.js';
import { builtFile, native } from '../native.js';
import { launch, warmUp } from '../vm/launch.js';

/** What only trying tells, through the addon. */
export interface LiveFacts {
  /** Why the addon does not load; undefined where it does. */
  readonly addon: Error | undefined;
  /** Why there is no monitor to start; undefined where there is one. */
  readonly monitor: Error | undefined;
  /** Which of the capabilities that a monitor uses KVM lacks, or why it cannot be asked. */
  readonly kvm: { readonly missing: readonly string[] } | Error;
  /** 0 without Landlock; undefined where the addon cannot ask. */
  readonly landlockAbi: number | undefined;
  /** The cgroup in which VMs with limits get theirs, or why they cannot. */
  readonly limits: string | Error;
}

/** What the monitor sets a VM up with, by the kernel's names. */
const CAPABILITIES = {
  KVM_CAP_USER_MEMORY: Capability.userMemory,
  KVM_CAP_SET_TSS_ADDR: Capability.setTssAddr,
  KVM_CAP_SPLIT_IRQCHIP: Capability.splitIrqchip,
  KVM_CAP_IMMEDIATE_EXIT: Capability.immediateExit,
};

/** Tries what a launch will need, each by itself. Nothing is left behind. */
export function probe(): LiveFacts {
  const landlockAbi = attempt(() => native.landlockAbi());
  return {
    addon: landlockAbi instanceof Error ? landlockAbi : undefined,
    monitor: errorOf(() => builtFile('casemate-vmm')),
    kvm: attempt(askKvm),
    landlockAbi: landlockAbi instanceof Error ? undefined : landlockAbi,
    limits: attempt(() => directoryForLimits(['cpu', 'memory', 'pids'])),
  };
}

function askKvm(): { missing: string[] } {
  using kvm = Kvm.open();
  const missing = Object.entries(CAPABILITIES).filter(([, capability]) => kvm.checkExtension(capability) === 0);
  return { missing: missing.map(([name]) => name) };
}

/**
 * Launches the built-in guest in the strict jail: how long that took until its first hypercall, or why it failed.
 * Warmed up, for it is the time of every launch but a process's first that tells about the host.
 */
export async function tryLaunch(): Promise<{ readonly microseconds: number } | Error> {
  try {
    await warmUp();
    await using vm = await launch({ console: 'ignore' });
    return { microseconds: Math.round(Number(vm.timeline.t1 - vm.timeline.t0) / 1000) };
  } catch (error) {
    return error as Error;
  }
}

function attempt<T>(call: () => T): T | Error {
  try {
    return call();
  } catch (error) {
    return error as Error;
  }
}

function errorOf(call: () => unknown): Error | undefined {
  const outcome = attempt(call);
  return outcome instanceof Error ? outcome : undefined;
}
