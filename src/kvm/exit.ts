/**
 * Why a vCPU came back from the guest: struct kvm_run as a typed union.
 *
 * It crosses in the exchange buffer of the vCPU: the first 288 bytes of kvm_run, in which the exit is told,
 * then the bytes of an I/O exit (one page). Answers are written into the same places before the next run.
 */
import { boolean } from '../is.js';
import { bigint64, byteArray } from './layout.js';

/** An `in` or `out` instruction (KVM_EXIT_IO). */
export interface IoExit {
  reason: 'io';
  direction: 'in' | 'out';
  port: number;
  /** Bytes per access: 1, 2 or 4. */
  size: number;
  /** Accesses, all to this port: more than 1 for a `rep ins` or `rep outs`. */
  count: number;
  /**
   * `size * count` bytes. Of an `out`: what the guest wrote. Of an `in`: what the guest will read; write it
   * here before the next `run()`. It starts out as 0xff, as from a port where nothing is.
   */
  data: Uint8Array;
}

/** An access to guest-physical memory without a slot (KVM_EXIT_MMIO). */
export interface MmioExit {
  reason: 'mmio';
  direction: 'read' | 'write';
  /** Guest-physical. */
  address: number;
  /** 1 to 8 bytes. Of a read: write them here before the next `run()`; they start out as 0xff. */
  data: Uint8Array;
}

/** The guest halted, where its LAPIC is not KVM's (KVM_EXIT_HLT); with KVM's, KVM waits itself. */
export interface HltExit {
  reason: 'hlt';
}

/** Triple fault, or what a host CPU makes of one (KVM_EXIT_SHUTDOWN). */
export interface ShutdownExit {
  reason: 'shutdown';
}

/** KVM gave up (KVM_EXIT_INTERNAL_ERROR). */
export interface InternalErrorExit {
  reason: 'internalError';
  /** 1 an instruction that KVM cannot emulate, 2 simultaneous exceptions, 3 event delivery, 4 unexpected exit. */
  suberror: number;
  data: bigint[];
  /** The bytes of the instruction that could not be emulated, where KVM tells them. */
  instruction: Uint8Array | undefined;
}

/** The host CPU refused to enter the guest (KVM_EXIT_FAIL_ENTRY): its state is not a possible one. */
export interface FailEntryExit {
  reason: 'failEntry';
  /** The host CPU's own code. */
  hardwareReason: bigint;
  cpu: number;
}

/** A breakpoint or single step that the host asked for with `setGuestDebug` (KVM_EXIT_DEBUG). */
export interface DebugExit {
  reason: 'debug';
  /** 1 #DB, 3 #BP. */
  exception: number;
  pc: bigint;
  dr6: bigint;
  dr7: bigint;
}

/** The guest can take an interrupt, as asked for with `run({ interruptWindow: true })` (KVM_EXIT_IRQ_WINDOW_OPEN). */
export interface IrqWindowOpenExit {
  reason: 'irqWindowOpen';
}

/** The guest asked for something of the whole machine (KVM_EXIT_SYSTEM_EVENT). */
export interface SystemEventExit {
  reason: 'systemEvent';
  /** 1 shutdown, 2 reset, 3 crash, 4 wake-up, 5 suspend, 6 SEV termination. */
  type: number;
  data: bigint[];
}

/** Why KVM left an MSR to user space. */
export type MsrExitCause = 'invalid' | 'unknown' | 'filter';

/** A `rdmsr`, with {@link Capability.userSpaceMsr} enabled (KVM_EXIT_X86_RDMSR). */
export interface RdmsrExit {
  reason: 'rdmsr';
  cause: MsrExitCause;
  index: number;
  /** What the guest will read. Set before the next `run()`; 0 at first. */
  value: bigint;
  /** Whether the guest gets a #GP instead. Set before the next `run()`; false at first. */
  fault: boolean;
}

/** A `wrmsr`, likewise (KVM_EXIT_X86_WRMSR). */
export interface WrmsrExit {
  reason: 'wrmsr';
  cause: MsrExitCause;
  index: number;
  readonly value: bigint;
  /** As in {@link RdmsrExit}. */
  fault: boolean;
}

/** A hypercall, with {@link Capability.exitHypercall} enabled (KVM_EXIT_HYPERCALL). */
export interface HypercallExit {
  reason: 'hypercall';
  number: bigint;
  args: bigint[];
  longMode: boolean;
  /** What the guest gets. Set before the next `run()`; 0 at first. */
  result: bigint;
}

/** The guest ended a level-triggered interrupt of the IOAPIC in user space (KVM_EXIT_IOAPIC_EOI). */
export interface IoapicEoiExit {
  reason: 'ioapicEoi';
  vector: number;
}

/** The dirty ring has to be harvested and reset before the guest can go on (KVM_EXIT_DIRTY_RING_FULL). */
export interface DirtyRingFullExit {
  reason: 'dirtyRingFull';
}

/** The run was interrupted, by `interrupt()` or `run({ immediateExit: true })`; the guest is where it was. */
export interface IntrExit {
  reason: 'intr';
}

/** Any other KVM_EXIT_*; `number` is the kernel's. */
export interface OtherExit {
  reason: 'other';
  number: number;
}

/** Why a vCPU came back from the guest; `reason` tells them apart. */
export type VcpuExit =
  | IoExit
  | MmioExit
  | HltExit
  | ShutdownExit
  | InternalErrorExit
  | FailEntryExit
  | DebugExit
  | IrqWindowOpenExit
  | SystemEventExit
  | RdmsrExit
  | WrmsrExit
  | HypercallExit
  | IoapicEoiExit
  | DirtyRingFullExit
  | IntrExit
  | OtherExit;

const ioData = 288;
const ioDataSize = 4096;
export const exchangeSize = ioData + ioDataSize;

// Offsets in struct kvm_run.
const exitReason = 8;
const readyForInterruptInjection = 12;
const interruptFlag = 13;
const detail = 32;
const mmioData = detail + 8;
const msrError = detail;
const msrData = detail + 16;
const hypercallResult = detail + 56;

const KVM_EXIT_IO = 2;
const KVM_EXIT_HYPERCALL = 3;
const KVM_EXIT_DEBUG = 4;
const KVM_EXIT_HLT = 5;
const KVM_EXIT_MMIO = 6;
const KVM_EXIT_IRQ_WINDOW_OPEN = 7;
const KVM_EXIT_SHUTDOWN = 8;
const KVM_EXIT_FAIL_ENTRY = 9;
const KVM_EXIT_INTERNAL_ERROR = 17;
const KVM_EXIT_SYSTEM_EVENT = 24;
const KVM_EXIT_IOAPIC_EOI = 26;
const KVM_EXIT_X86_RDMSR = 29;
const KVM_EXIT_X86_WRMSR = 30;
const KVM_EXIT_DIRTY_RING_FULL = 31;

const KVM_INTERNAL_ERROR_EMULATION = 1;

/** One vCPU's exchange buffer. */
export class Exchange {
  readonly bytes = new Uint8Array(exchangeSize);
  readonly #view = new DataView(this.bytes.buffer);

  /** Whether the guest could take an interrupt when it exited. */
  get readyForInterruptInjection(): boolean {
    return this.#view.getUint8(readyForInterruptInjection) !== 0;
  }

  /** RFLAGS.IF when it exited. */
  get interruptFlag(): boolean {
    return this.#view.getUint8(interruptFlag) !== 0;
  }

  /** The exit that the kernel told. */
  read(): VcpuExit {
    const view = this.#view;
    const u64s = (offset: number, count: number): bigint[] =>
      Array.from({ length: count }, (_, i) => view.getBigUint64(offset + 8 * i, true));
    // `ndata`, then up to 16 words.
    const words = (): bigint[] => u64s(detail + 8, Math.min(view.getUint32(detail + 4, true), 16));
    const number = view.getUint32(exitReason, true);
    switch (number) {
      case KVM_EXIT_IO: {
        const size = view.getUint8(detail + 1);
        const count = view.getUint32(detail + 4, true);
        const direction = view.getUint8(detail) === 0 ? 'in' : 'out';
        const length = Math.min(size * count, ioDataSize);
        return {
          reason: 'io',
          direction,
          port: view.getUint16(detail + 2, true),
          size,
          count,
          data: this.#data(direction === 'in', ioData, length),
        };
      }
      case KVM_EXIT_MMIO: {
        const direction = view.getUint8(detail + 20) === 0 ? 'read' : 'write';
        return {
          reason: 'mmio',
          direction,
          address: Number(view.getBigUint64(detail, true)),
          data: this.#data(direction === 'read', mmioData, Math.min(view.getUint32(detail + 16, true), 8)),
        };
      }
      case KVM_EXIT_HLT:
        return { reason: 'hlt' };
      case KVM_EXIT_SHUTDOWN:
        return { reason: 'shutdown' };
      case KVM_EXIT_INTERNAL_ERROR: {
        const suberror = view.getUint32(detail, true);
        const data = words();
        // The flags, then the size of the instruction and up to 15 bytes of it.
        const told = suberror === KVM_INTERNAL_ERROR_EMULATION && data.length >= 3 && ((data[0] ?? 0n) & 1n) !== 0n;
        const start = detail + 17;
        const instruction = told ? this.bytes.slice(start, start + Math.min(view.getUint8(start - 1), 15)) : undefined;
        return { reason: 'internalError', suberror, data, instruction };
      }
      case KVM_EXIT_FAIL_ENTRY:
        return {
          reason: 'failEntry',
          hardwareReason: view.getBigUint64(detail, true),
          cpu: view.getUint32(detail + 8, true),
        };
      case KVM_EXIT_DEBUG:
        return {
          reason: 'debug',
          exception: view.getUint32(detail, true),
          pc: view.getBigUint64(detail + 8, true),
          dr6: view.getBigUint64(detail + 16, true),
          dr7: view.getBigUint64(detail + 24, true),
        };
      case KVM_EXIT_IRQ_WINDOW_OPEN:
        return { reason: 'irqWindowOpen' };
      case KVM_EXIT_SYSTEM_EVENT:
        return { reason: 'systemEvent', type: view.getUint32(detail, true), data: words() };
      case KVM_EXIT_X86_RDMSR:
        return { ...this.#msr(), reason: 'rdmsr', value: 0n };
      case KVM_EXIT_X86_WRMSR:
        return { ...this.#msr(), reason: 'wrmsr', value: view.getBigUint64(msrData, true) };
      case KVM_EXIT_HYPERCALL:
        return {
          reason: 'hypercall',
          number: view.getBigUint64(detail, true),
          args: u64s(detail + 8, 6),
          longMode: view.getUint32(hypercallResult + 8, true) !== 0,
          result: 0n,
        };
      case KVM_EXIT_IOAPIC_EOI:
        return { reason: 'ioapicEoi', vector: view.getUint8(detail) };
      case KVM_EXIT_DIRTY_RING_FULL:
        return { reason: 'dirtyRingFull' };
      default:
        return { reason: 'other', number };
    }
  }

  /** Writes what the user put into `exit` where the kernel will look for it. */
  answer(exit: VcpuExit): void {
    const view = this.#view;
    if (exit.reason === 'io' && exit.direction === 'in') {
      this.bytes.set(byteArray('exit.data', exit.data, Math.min(exit.size * exit.count, ioDataSize)), ioData);
    } else if (exit.reason === 'mmio' && exit.direction === 'read') {
      this.bytes.set(byteArray('exit.data', exit.data, Math.min(view.getUint32(detail + 16, true), 8)), mmioData);
    } else if (exit.reason === 'rdmsr' || exit.reason === 'wrmsr') {
      view.setUint8(msrError, boolean('exit.fault', exit.fault) ? 1 : 0);
      view.setBigUint64(msrData, bigint64('exit.value', exit.value), true);
    } else if (exit.reason === 'hypercall') {
      view.setBigUint64(hypercallResult, bigint64('exit.result', exit.result), true);
    }
  }

  /** A copy: exits may be kept, the buffer changes with the next one. */
  #data(wanted: boolean, offset: number, length: number): Uint8Array {
    return wanted ? new Uint8Array(length).fill(0xff) : this.bytes.slice(offset, offset + length);
  }

  #msr(): { cause: MsrExitCause; index: number; fault: boolean } {
    const causes: Record<number, MsrExitCause> = { 1: 'invalid', 2: 'unknown', 4: 'filter' };
    return {
      cause: causes[this.#view.getUint32(detail + 8, true)] ?? 'unknown',
      index: this.#view.getUint32(detail + 12, true),
      fault: false,
    };
  }
}
