import { constants } from 'node:os';
import type { ChildEnd } from '../jail/launcher.js';
import { killedForMemory } from './limits.js';
import type { ExitedEvent, GuestRegisters } from './wire.js';

/** How a VM ended. */
export type VmExit =
  /** The guest's own exit, with its code. */
  | { readonly reason: 'exit'; readonly code: number }
  /** An exception that the guest did not handle. */
  | {
      readonly reason: 'fault';
      /** Vector of the exception: 6 for #UD, 13 for #GP, 14 for #PF (AMD64 manual, volume 2, section 8.2). */
      readonly vector: number;
      /** Its mnemonic, `'#PF'`. */
      readonly name: string;
      readonly errorCode: number;
      /** What was accessed, for a page fault. */
      readonly address: bigint;
      readonly registers: GuestRegisters | undefined;
    }
  /** A triple fault, or the machine was shut down. */
  | { readonly reason: 'shutdown'; readonly registers: GuestRegisters | undefined }
  /** A Linux guest switched its machine off. */
  | { readonly reason: 'poweroff' }
  /** A Linux guest restarted its machine, which here is its end. Kernels do that too when they panic: `panic=-1`. */
  | { readonly reason: 'reboot' }
  /** The kernel of a Linux guest panicked, and had the driver to say so (pvpanic-mmio). */
  | { readonly reason: 'panic'; readonly registers: GuestRegisters | undefined }
  /** The guest broke its ABI (docs/guest-abi.md): an unknown port, a pointer outside its memory. */
  | { readonly reason: 'protocol'; readonly port: number; readonly registers: GuestRegisters | undefined }
  /** KVM could not go on: KVM_EXIT_INTERNAL_ERROR or KVM_EXIT_FAIL_ENTRY. */
  | { readonly reason: 'internal-error'; readonly suberror: number; readonly registers: GuestRegisters | undefined }
  /** A system call of the monitor failed while the guest ran; negative errno. */
  | { readonly reason: 'host-error'; readonly errno: number }
  /** `kill()`, a disposal, an aborted signal, or somebody else's SIGKILL; also a monitor that hung up and lived on. */
  | { readonly reason: 'killed' }
  /** It needed more memory than its limit, `limits.memoryMib`. */
  | { readonly reason: 'out-of-memory' }
  /** `timeoutMs` passed. */
  | { readonly reason: 'timeout' }
  /** The monitor itself ended: by a signal, or at a system call that its seccomp filter refuses. */
  | {
      readonly reason: 'monitor-crashed';
      readonly signal: NodeJS.Signals | undefined;
      /** Name of the system call that was refused to it. */
      readonly blockedSyscall: string | undefined;
      readonly code: number | undefined;
    };

const exceptionNames = [
  '#DE',
  '#DB',
  'NMI',
  '#BP',
  '#OF',
  '#BR',
  '#UD',
  '#NM',
  '#DF',
  'CSO',
  '#TS',
  '#NP',
  '#SS',
  '#GP',
  '#PF',
  'reserved',
  '#MF',
  '#AC',
  '#MC',
  '#XM',
  '#VE',
  '#CP',
] as const;

/** The end that a monitor reports. */
export function exitOf(event: ExitedEvent): VmExit {
  const { code, vector, errorCode, address, registers } = event;
  switch (event.reason) {
    case 'guest':
      return { reason: 'exit', code };
    case 'fault': {
      const name = exceptionNames[vector] ?? `#${vector}`;
      return { reason: 'fault', vector, name, errorCode, address, registers };
    }
    case 'shutdown':
    case 'panic':
      return { reason: event.reason, registers };
    case 'poweroff':
    case 'reboot':
      return { reason: event.reason };
    case 'protocol':
      return { reason: 'protocol', port: code, registers };
    case 'internal':
      return { reason: 'internal-error', suberror: code, registers };
    case 'host':
      return { reason: 'host-error', errno: -code };
  }
}

/** The end of a monitor that said nothing. */
export function crashOf({ code, signal, memoryEvents }: ChildEnd, blockedSyscall: string | undefined): VmExit {
  if (killedForMemory(memoryEvents)) return { reason: 'out-of-memory' };
  if (signal === constants.signals.SIGKILL && blockedSyscall === undefined) return { reason: 'killed' };
  const names = Object.entries(constants.signals) as [NodeJS.Signals, number][];
  return {
    reason: 'monitor-crashed',
    signal: names.find(([, number]) => number === signal)?.[0],
    blockedSyscall,
    code: code ?? undefined,
  };
}

/** `'EAGAIN'`; what a monitor says may be no error that there is. */
const errnoName = (errno: number): string =>
  Object.entries(constants.errno).find(([, value]) => value === errno)?.[0] ?? `errno ${errno}`;

/** An end in words, for people. */
export function describeExit(exit: VmExit): string {
  switch (exit.reason) {
    case 'exit':
      return `the guest exited with code ${exit.code}`;
    case 'fault': {
      const where = exit.registers === undefined ? '' : ` at rip 0x${exit.registers.rip.toString(16)}`;
      const what = exit.vector === 14 ? `, address 0x${exit.address.toString(16)}` : '';
      return `the guest faulted: ${exit.name} (vector ${exit.vector}, error code ${exit.errorCode}${what})${where}`;
    }
    case 'shutdown':
      return 'the guest shut the machine down, or faulted three times over';
    case 'poweroff':
      return 'the guest switched itself off';
    case 'reboot':
      return 'the guest asked for a restart';
    case 'panic':
      return 'the kernel of the guest panicked';
    case 'protocol':
      return `the guest broke its ABI at port 0x${exit.port.toString(16)}`;
    case 'internal-error':
      return `KVM could not go on with the guest (suberror ${exit.suberror})`;
    case 'host-error':
      return `a system call of the monitor failed (${errnoName(-exit.errno)})`;
    case 'killed':
      return 'the VM was killed';
    case 'out-of-memory':
      return 'the VM needed more memory than its limit';
    case 'timeout':
      return 'the VM ran out of its time';
    case 'monitor-crashed': {
      if (exit.blockedSyscall !== undefined) return `the monitor was stopped at the system call ${exit.blockedSyscall}`;
      const how = exit.signal === undefined ? `with code ${exit.code}` : `by ${exit.signal}`;
      return `the monitor ended ${how} without a word of its guest`;
    }
  }
}
