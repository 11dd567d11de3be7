import { constants, fstatSync, openSync } from 'node:fs';
import { CasemateError, isSystemError, type SystemErrorCause, wrapSystemError } from '../errors.js';
import { decodeCpuid, encodeCpuid, guestCpuid } from '../kvm/cpuid.js';
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

let table: Uint8Array | undefined;

/** The CPUID table of a guest's one vCPU: asking KVM takes 350 µs, so it is asked once. */
export function cpuidTable(kvm: number): Uint8Array {
  if (table === undefined) {
    // Also the first thing that a /dev/kvm without KVM behind it cannot answer.
    const answer = wrapSystemError('ERR_CASEMATE_KVM_UNAVAILABLE', () => native.kvmSupportedCpuid(kvm), {
      step: path,
      remedy: kvmRemedy,
    });
    const supported = decodeCpuid(answer);
    // Without the head of struct kvm_cpuid2: the configuration has its own count.
    table = encodeCpuid(guestCpuid(supported, { vcpu: 0, vcpus: 1 })).subarray(8);
  }
  return table;
}
