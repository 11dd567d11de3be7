/** Every `code` a {@link CasemateError} can carry. People match on these: they never change meaning. */
export type ErrorCode =
  /** An option has a wrong type, a value out of range, or contradicts another one. Nothing was created. */
  | 'ERR_CASEMATE_INVALID_OPTION'
  /** The addon or the monitor binary is missing, was built for another platform, or does not load. */
  | 'ERR_CASEMATE_NOT_BUILT'
  /** There is no `/dev/kvm`, or the kernel offers no KVM through it. */
  | 'ERR_CASEMATE_KVM_UNAVAILABLE'
  /** `/dev/kvm` is there, and this user may not open it. */
  | 'ERR_CASEMATE_KVM_FORBIDDEN'
  /** KVM lacks a capability that the VM needs, or refused an ioctl. */
  | 'ERR_CASEMATE_KVM'
  /** A file named in the options cannot be opened or is not a regular file. */
  | 'ERR_CASEMATE_FILE'
  /** The host has not as many huge pages as the VM's memory is to be made of. */
  | 'ERR_CASEMATE_HUGE_PAGES'
  /** The guest image is not one that the monitor can load. */
  | 'ERR_CASEMATE_GUEST_IMAGE'
  /** An image cannot be made: a path leads out of it, its format does not hold it, or a program is missing that makes it. */
  | 'ERR_CASEMATE_IMAGE'
  /** A layer of the jail that was asked for cannot be had on this host. */
  | 'ERR_CASEMATE_LAYER_UNAVAILABLE'
  /** A tap of the VM, or the socket of its network, cannot be had. */
  | 'ERR_CASEMATE_NETWORK'
  /** Limits were asked for that cannot be set here (cgroup v1, a controller or a right missing); the message says why. */
  | 'ERR_CASEMATE_LIMITS'
  /** A namespace cannot be made here (sysctl, AppArmor, seccomp of a container); the message says of which kind. */
  | 'ERR_CASEMATE_NAMESPACES'
  /** A step of the launch plan failed; `step` names it. */
  | 'ERR_CASEMATE_LAUNCH_STEP'
  /** The monitor's observed state is not what was asked for; it was ended before any guest code ran. */
  | 'ERR_CASEMATE_JAIL_MISMATCH'
  /** The monitor failed while it prepared the VM; `step` names where. */
  | 'ERR_CASEMATE_MONITOR'
  /** The VM ended before its guest made its first hypercall. */
  | 'ERR_CASEMATE_EARLY_EXIT'
  /** The monitor sent something that the protocol does not allow; it was killed. */
  | 'ERR_CASEMATE_PROTOCOL'
  /** The call needs a running VM (or vCPU), and this one has ended or is closed. */
  | 'ERR_CASEMATE_CLOSED'
  /** The call is not possible in the present state (a second `run()`, a resume of a running VM). */
  | 'ERR_CASEMATE_STATE'
  /** The guest refuses a connection: nothing listens there. */
  | 'ERR_CASEMATE_CONNECTION_REFUSED'
  /** The VM has as many streams as it can have. */
  | 'ERR_CASEMATE_TOO_MANY_STREAMS'
  /** The time limit given in the options passed. */
  | 'ERR_CASEMATE_TIMEOUT'
  /** What is behind a device of a running VM failed, a disk's file for example; its guest was told. */
  | 'ERR_CASEMATE_DEVICE'
  /** SELinux was asked for and is absent, disabled, or refused the context. */
  | 'ERR_CASEMATE_SELINUX'
  /** The agent in a Linux guest did not come, has gone, or broke its protocol. */
  | 'ERR_CASEMATE_AGENT'
  /** What was asked of the agent failed in the guest; `cause` is the guest's error, as Node has its own. */
  | 'ERR_CASEMATE_GUEST_SYSTEM'
  /** A guest sent more than the limit given in the options. */
  | 'ERR_CASEMATE_MAX_BYTES'
  /** A system call made on behalf of a primitive failed; `cause` says which and why. */
  | 'ERR_CASEMATE_SYSTEM';

/** The shape of Node's own system errors: what {@link CasemateError.cause} is where a system call failed. */
export interface SystemErrorCause extends Error {
  /** Negative errno, as Node has it. */
  errno: number;
  /** Its name, `'EACCES'`. */
  code: string;
  /** The system call or ioctl, `'ioctl(KVM_CREATE_VM)'`. */
  syscall: string;
  path?: string;
}

/** What a {@link CasemateError} is made of. */
export interface CasemateErrorFields {
  /** The step of the launch, or the option, that failed: `'setns(net)'`, `'options.memoryMib'`. */
  step?: string;
  /** What the user can do about it. */
  remedy: string;
  cause?: unknown;
}

/**
 * The one error class of casemate. `code` is stable and from a closed list, `message` is for people and
 * may change, `remedy` says what to do.
 */
export class CasemateError extends Error {
  override readonly name = 'CasemateError';
  /** Stable; match on this. */
  readonly code: ErrorCode;
  /** The step of the launch, or the option, that failed. */
  readonly step: string | undefined;
  /** Negative errno of the failed system call, where one failed. */
  readonly errno: number | undefined;
  /** The failed system call or ioctl, where one failed. */
  readonly syscall: string | undefined;
  /** What to do about it. */
  readonly remedy: string;

  constructor(code: ErrorCode, message: string, fields: CasemateErrorFields) {
    super(message, fields.cause === undefined ? undefined : { cause: fields.cause });
    this.code = code;
    this.step = fields.step;
    this.remedy = fields.remedy;
    const system = isSystemError(fields.cause) ? fields.cause : undefined;
    this.errno = system?.errno;
    this.syscall = system?.syscall;
  }
}

/** Whether `value` is an error of a system call, Node's or the addon's. */
export function isSystemError(value: unknown): value is SystemErrorCause {
  if (!(value instanceof Error) || value instanceof CasemateError) return false;
  return 'errno' in value && 'syscall' in value && 'code' in value;
}

/** Where all that is known is what the kernel answered. */
export const errnoRemedy =
  "The documentation of the system call (its man page; the kernel's virt/kvm/api.rst for an ioctl of KVM) says what " +
  'leads to this errno.';

/** Runs `call`; an error of a system call in it comes out as a {@link CasemateError} with this code. */
export function wrapSystemError<T>(
  code: ErrorCode,
  call: () => T,
  fields: Omit<CasemateErrorFields, 'cause'> = { remedy: errnoRemedy },
): T {
  try {
    return call();
  } catch (cause) {
    if (!isSystemError(cause)) throw cause;
    throw new CasemateError(code, cause.message, { ...fields, cause });
  }
}

/** The error of an aborted call, as Node's own APIs have it: name AbortError, code ABORT_ERR. */
export function abortError(signal: AbortSignal): Error {
  const error = new Error('The operation was aborted', { cause: signal.reason });
  error.name = 'AbortError';
  return Object.assign(error, { code: 'ABORT_ERR' });
}
