import { CasemateError } from '../errors.js';
import { integer, invalid, object, oneOf } from '../is.js';
import { native } from '../native.js';
import { type SyscallName, syscalls } from './syscalls.js';

/** What happens to a system call that a filter does not allow; seccomp(2). */
export type SeccompAction = 'killProcess' | 'trap' | 'errno';

/** One allowed system call. */
export type SeccompRule =
  | SyscallName
  | {
      readonly syscall: SyscallName;
      /** Number of an argument, 0 to 5, whose low 32 bits must be one of `values`. */
      readonly argument: number;
      readonly values: readonly number[];
    };

/** EPERM is what a refused system call fails with. */
const actions: Readonly<Record<SeccompAction, number>> = {
  killProcess: 0x8000_0000,
  trap: 0x0003_0000,
  errno: 0x0005_0000 | 1,
};

/**
 * An allow-list of system calls as a seccomp program, for the step `seccomp` of a plan: a binary search over intervals
 * of numbers, a third of what a linear list costs. Calls of another architecture end the process.
 *
 * @throws CasemateError ERR_CASEMATE_INVALID_OPTION for a name that is none, or that is there twice.
 * @example
 * ```ts
 * const program = seccompFilter(['execve', 'write', 'exit_group'], 'killProcess');
 * ```
 */
export function seccompFilter(allow: readonly SeccompRule[], refused: SeccompAction = 'killProcess'): Uint8Array {
  const action = actions[oneOf('refused', refused, Object.keys(actions) as SeccompAction[])];
  if (!Array.isArray(allow)) throw invalid('allow', 'an array of rules', allow);
  const rules = allow.map((rule, index) => parseRule(`allow[${index}]`, rule));
  const program = native.compileSeccomp(rules, action);
  if (program !== null) return program;
  throw new CasemateError('ERR_CASEMATE_INVALID_OPTION', 'These rules do not make a filter', {
    step: 'allow',
    remedy: 'Name each system call once, with at most 255 values, and no more than 512 of them.',
  });
}

function parseRule(name: string, rule: unknown): number[] {
  if (typeof rule === 'string') return [numberOf(name, rule)];
  const { syscall, argument, values } = object(name, rule, ['syscall', 'argument', 'values']);
  if (!Array.isArray(values) || values.length === 0) throw invalid(`${name}.values`, 'an array of numbers', values);
  return [
    numberOf(`${name}.syscall`, syscall),
    integer(`${name}.argument`, argument, 0, 5),
    ...values.map((value, index) => integer(`${name}.values[${index}]`, value, 0, 0xffff_ffff)),
  ];
}

function numberOf(name: string, syscall: unknown): number {
  const number = typeof syscall === 'string' ? (syscalls as Record<string, number>)[syscall] : undefined;
  if (number === undefined) throw invalid(name, 'the name of a system call', syscall);
  return number;
}
