import { CasemateError, type CasemateErrorFields, errnoRemedy, isSystemError, wrapSystemError } from '../errors.js';
import { descriptor, integer, invalid, string } from '../is.js';
import { native } from '../native.js';

/** `'enforcing'`: rules are enforced. `'permissive'`: they are only logged. `'disabled'`: there are none. */
export type SelinuxMode = 'enforcing' | 'permissive' | 'disabled';

/**
 * Whether this kernel runs with SELinux, and this process can see so. False, too, where libselinux is
 * absent: without it nothing here can work with labels.
 *
 * Source: is_selinux_enabled(3).
 */
export function isEnabled(): boolean {
  return native.selinuxMissing() === null && native.selinuxEnabled();
}

/** The mode of this host. Source: security_getenforce(3). */
export function mode(): SelinuxMode {
  if (!isEnabled()) return 'disabled';
  return ask(() => (native.selinuxEnforcing() ? 'enforcing' : 'permissive'));
}

/**
 * The context of a process in the kernel's raw form, or of the calling thread where no pid is given.
 *
 * Labels are per thread: of a process, the kernel tells that of its main thread. There is no
 * `setExecContext` for the same reason. The label which the next program gets is a property of the thread
 * that execs it, so setting it on Node's main thread would label whatever Node starts next, from anywhere in
 * the process, and not the monitor, which another thread starts. It is a step of a launch plan instead:
 * written by the launcher thread right before it clones, with `lsm_set_self_attr` or a raw write to
 * `/proc/thread-self/attr/exec`, inherited by the child, and read back from the monitor after its exec.
 *
 * A pid can be reused: hold a pidfd over the call where that matters.
 *
 * Source: getcon(3), getpidcon(3).
 *
 * @throws CasemateError `ERR_CASEMATE_SELINUX` where SELinux is absent or off, `ERR_CASEMATE_SYSTEM` where
 * there is no such process.
 */
export function getContext(pid?: number): string {
  if (pid !== undefined) integer('pid', pid, 1, 0x7fffffff);
  requireEnabled();
  return ask(() => native.selinuxContext(pid));
}

/**
 * Asks the loaded policy whether a context is valid. An invalid one written as an exec label is refused by the
 * kernel with EINVAL, and a launcher that overlooks this starts the monitor in its own domain: so ask early.
 *
 * Source: security_check_context(3).
 *
 * @throws CasemateError `ERR_CASEMATE_SELINUX` where the policy refuses it, or SELinux is absent or off.
 */
export function checkContext(context: string): void {
  string('context', context);
  if (isKnown(context)) return;
  throw selinuxError(`The SELinux policy of this host does not accept the context '${context}'`, {
    step: 'checkContext',
    remedy: 'Check user, role, type and range against the loaded policy: seinfo -t, and semodule -l for modules.',
  });
}

/** @internal */
export function isKnown(context: string): boolean {
  requireEnabled();
  return asked('Which contexts there are', () => {
    try {
      native.selinuxCheckContext(context);
      return true;
    } catch (error) {
      if (isSystemError(error) && error.code === 'EINVAL') return false;
      throw error;
    }
  });
}

/**
 * What a confined caller may not ask is no answer: neither that SELinux is off, nor that something is not in the policy.
 * @internal
 */
export function asked<T>(what: string, ask: () => T): T {
  return wrapSystemError('ERR_CASEMATE_SELINUX', ask, {
    step: 'policy',
    remedy: `${what} this process may not ask: run Node in a domain that may, as casemate_service_t (docs/selinux.md).`,
  });
}

/**
 * The context of a file, in the kernel's raw form: the label that is stored with it, so this works with
 * SELinux off, too. Prefer a descriptor to a path: it cannot be exchanged between this call and the next.
 *
 * Source: fgetfilecon(3), getfilecon(3). A symbolic link is followed.
 *
 * @param target An open descriptor, or a path.
 * @throws CasemateError `ERR_CASEMATE_SELINUX` where the file has no label or libselinux is absent,
 * `ERR_CASEMATE_SYSTEM` where it cannot be read.
 */
export function fileContext(target: number | string): string {
  if (typeof target === 'number') descriptor('target', target);
  else if (typeof target === 'string') string('target', target);
  else throw invalid('target', 'a descriptor or a path', target);
  requireLibrary();
  try {
    return native.selinuxFileContext(target);
  } catch (cause) {
    if (!isSystemError(cause)) throw cause;
    if (cause.code === 'ENODATA' || cause.code === 'ENOTSUP') {
      const subject = typeof target === 'number' ? `Descriptor ${target}` : target;
      throw selinuxError(`${subject} has no SELinux label`, {
        step: 'fileContext',
        remedy: 'Label the file with restorecon or chcon, on a file system that stores labels.',
        cause,
      });
    }
    throw new CasemateError('ERR_CASEMATE_SYSTEM', cause.message, {
      step: 'fileContext',
      remedy: errnoRemedy,
      cause,
    });
  }
}

function requireLibrary(): void {
  const reason = native.selinuxMissing();
  if (reason === null) return;
  throw selinuxError(`libselinux cannot be used: ${reason}`, {
    step: 'libselinux',
    remedy: 'Install the package of libselinux.so.1 (Debian and Ubuntu: libselinux1).',
  });
}

function requireEnabled(): void {
  requireLibrary();
  if (native.selinuxEnabled()) return;
  throw selinuxError('SELinux is not enabled on this host', {
    step: 'selinux',
    remedy: 'Boot with security=selinux and a policy installed, or leave SELinux out of the options.',
  });
}

/** @internal */
export function selinuxError(message: string, fields: CasemateErrorFields): CasemateError {
  return new CasemateError('ERR_CASEMATE_SELINUX', message, fields);
}

function ask<T>(call: () => T): T {
  return wrapSystemError('ERR_CASEMATE_SYSTEM', call);
}
