import { getSystemErrorMap } from 'node:util';
import { CasemateError, type SystemErrorCause } from '../errors.js';

/** A system call in the guest that failed; `cause` is as Node's own errors are, with the guest's errno. */
export function guestError(step: string, errno: number, call: string, path?: string): CasemateError {
  const [code, text] = getSystemErrorMap().get(-errno) ?? [`ERRNO_${errno}`, `error ${errno}`];
  const what = path === undefined ? call : `${call} '${path}'`;
  const cause: SystemErrorCause = Object.assign(new Error(`${code}: ${text}, ${what}`), {
    errno: -errno,
    code,
    syscall: call,
    ...(path !== undefined && { path }),
  });
  return new CasemateError('ERR_CASEMATE_GUEST_SYSTEM', `In the guest: ${cause.message}`, {
    step,
    remedy: 'Paths, programs, users and permissions are those that the guest has.',
    cause,
  });
}

/** The agent is gone, or what is there in its place is none. */
export function agentError(step: string, message: string, cause?: unknown): CasemateError {
  return new CasemateError('ERR_CASEMATE_AGENT', message, {
    step,
    remedy: "vm.console shows what the guest's kernel and its agent have to say.",
    ...(cause !== undefined && { cause }),
  });
}

export function tooMuch(step: string, maxBytes: number): CasemateError {
  return new CasemateError('ERR_CASEMATE_MAX_BYTES', `The guest sent more than ${maxBytes} bytes`, {
    step,
    remedy: 'Raise options.maxBytes, or read a stream: that of a process holds no more than it has to.',
  });
}
