import { constants, fstatSync, openSync } from 'node:fs';
import { CasemateError, isSystemError, type SystemErrorCause, wrapSystemError } from '../errors.js';
import { type CpuidEntry, decodeCpuid, encodeCpuid, guestCpuid } from '../kvm/cpuid.js';
import type { KvmHandle, VmHandle } from '../kvm/native.js';
import { native } from '../native.js';

const path = '/dev/kvm';

/** MISC_MAJOR, KVM_MINOR of linux/miscdevice.h, as stat(2) has them. */
const kvmDeviceNumber = (10 << 8) | 232;

let opened: number | undefined;

/** This environment's `/dev/kvm`, or the one handed in; refused unless it is one. */
export function kvmDevice(given: number | undefined): number {
  if (given === undefined) {
    opened ??= openKvm();
    return opened;
  }
  try {
    // Its device number is the kernel's for it (10:232).
    if (fstatSync(given).rdev !== kvmDeviceNumber) throw new TypeError('it is not device 10:232');
  } catch (cause) {
    throw new CasemateError('ERR_CASEMATE_KVM_UNAVAILABLE', `options.kvm.fd: descriptor ${given} is not /dev/kvm`, {
      step: 'options.kvm.fd',
      remedy: 'Pass a descriptor of /dev/kvm that is open for reading and writing.',
      cause,
    });
  }
  return given;
}

function openKvm(): number {
  try {
    return openSync(path, constants.O_RDWR);
  } catch (cause) {
    if (!isSystemError(cause)) throw cause;
    throw kvmOpenError(cause);
  }
}

const kvmRemedy =
  'Switch virtualization on in the firmware, load kvm_intel or kvm_amd, or use a machine or a cloud instance ' +
  'with (nested) virtualization; in a container pass --device /dev/kvm.';

/** What it means that `/dev/kvm` cannot be opened. */
export function kvmOpenError(cause: SystemErrorCause): CasemateError {
  if (cause.code === 'EACCES' || cause.code === 'EPERM') {
    return new CasemateError('ERR_CASEMATE_KVM_FORBIDDEN', `This user may not open ${path}`, {
      step: path,
      remedy: 'Join the group that owns it, usually: sudo usermod -aG kvm $USER, then log in again.',
      cause,
    });
  }
  return new CasemateError('ERR_CASEMATE_KVM_UNAVAILABLE', `${path} cannot be opened: ${cause.message}`, {
    step: path,
    remedy: kvmRemedy,
    cause,
  });
}

/** What a monitor is told of its guest's vCPUs, so that it need not ask KVM. */
export interface VcpuFacts {
  /** struct kvm_cpuid_entry2[], of the first one. */
  readonly cpuid: Uint8Array;
  /** Of the mapping of each, in bytes. */
  readonly runSize: number;
}

/** What KVM says, whatever the guest. */
interface KvmFacts {
  readonly supported: readonly CpuidEntry[];
  readonly runSize: number;
  /**
   * A VM without memory and vCPUs, open for as long as this environment lives. The first VM of a host and the last one
   * have KVM switch a static key, which interrupts every processor several times: 100 µs of a launch where there is no
   * other VM, and as much of its end. Before Linux 6.12 it switches the processors' virtualization on and off, too.
   */
  readonly vm: VmHandle | undefined;
}

let kvmFacts: KvmFacts | undefined;

/**
 * What programs ask CPUID for: vendor and features, caches and topology, frequencies, names. The leaves left out are a
 * kernel's: how to wait, count, trace, and switch on state that is off at CPL 3. KVM looks through all entries again and
 * again, and computes sizes for each subleaf of 0xd: with these alone KVM_SET_CPUID2 takes 90 µs instead of 180.
 */
const programLeaves: ReadonlySet<number> = new Set([
  ...[0x0, 0x1, 0x4, 0x7, 0xb, 0xd, 0x15, 0x16],
  ...[0x40000000, 0x40000001],
  ...[0x80000000, 0x80000001, 0x80000002, 0x80000003, 0x80000004, 0x80000005, 0x80000006, 0x80000007, 0x80000008],
  ...[0x8000001d, 0x8000001e],
]);

const isForPrograms = ({ function: leaf, index }: CpuidEntry) =>
  programLeaves.has(leaf) && (leaf !== 0xd || index === 0);

/** By CPL and the number of vCPUs. */
const facts = new Map<string, VcpuFacts>();

/** Asked once: the CPUID table alone takes KVM 350 µs. */
export function vcpuFacts(kvm: number, { cpl, vcpus }: { readonly cpl: 0 | 3; readonly vcpus: number }): VcpuFacts {
  const key = `${cpl} ${vcpus}`;
  let known = facts.get(key);
  if (known === undefined) {
    kvmFacts ??= askKvm(kvm);
    const { supported, runSize } = kvmFacts;
    const all = guestCpuid(supported, { vcpu: 0, vcpus });
    // Without the head of struct kvm_cpuid2: the configuration has its own count.
    known = { cpuid: encodeCpuid(cpl === 3 ? all.filter(isForPrograms) : all).subarray(8), runSize };
    facts.set(key, known);
  }
  return known;
}

/** KVM_CAP_SYNC_REGS: general and system registers come with KVM_RUN (Linux 4.17). */
const syncRegs = 74;
const neededRegs = 0b11;

function askKvm(kvm: number): KvmFacts {
  // Also the first things that a /dev/kvm without KVM behind it cannot answer.
  const answer = wrapSystemError(
    'ERR_CASEMATE_KVM_UNAVAILABLE',
    () => ({
      cpuid: native.kvmSupportedCpuid(kvm),
      runSize: native.kvmRunSize(kvm),
      synced: native.kvmExtension(kvm, syncRegs),
    }),
    { step: path, remedy: kvmRemedy },
  );
  if ((answer.synced & neededRegs) !== neededRegs) {
    throw new CasemateError('ERR_CASEMATE_KVM', 'This KVM takes no registers with KVM_RUN (KVM_CAP_SYNC_REGS)', {
      step: path,
      remedy: 'Use Linux 4.17 or newer.',
    });
  }
  return { supported: decodeCpuid(answer.cpuid), runSize: answer.runSize, vm: makeVm(kvm) };
}

/** No launch is refused for it: where no VM can be made, its monitor will say so. */
function makeVm(fd: number): VmHandle | undefined {
  let kvm: KvmHandle | undefined;
  try {
    kvm = new native.KvmHandle(fd);
    return new native.VmHandle(kvm);
  } catch {
    return undefined;
  } finally {
    kvm?.close();
  }
}
