import { onAbort } from '../abort.js';
import { abortError, CasemateError, errnoRemedy, isSystemError } from '../errors.js';
import { boolean, integer, invalid, object, oneOf } from '../is.js';
import { native } from '../native.js';
import { closed, kvmCall, maxU32, signalOption } from './common.js';
import { type CpuidEntry, decodeCpuid, encodeCpuid } from './cpuid.js';
import { Exchange, type VcpuExit } from './exit.js';
import { bigint64, byteArray, decode, decodeEntries, encode, encodeTable } from './layout.js';
import { readMsrs } from './msrs.js';
import type { VcpuHandle, VmHandle } from './native.js';
import * as state from './state.js';

/** How a vCPU runs. */
export interface RunOptions {
  /** Ends the run. The vCPU is as it was then, and can be run again. */
  signal?: AbortSignal;
  /** Come back with an `irqWindowOpen` exit as soon as the guest can take an interrupt (without a LAPIC in KVM). */
  interruptWindow?: boolean;
  /**
   * Run no guest code: only complete what the last exit left to be done (the guest's registers get what an
   * `in` read, say), as has to be before state is saved. Ends with `intr`, or with another exit where one
   * instruction makes several.
   */
  immediateExit?: boolean;
}

/**
 * A virtual CPU in this process. Made by {@link VirtualMachine.createVcpu}; errors as there.
 *
 * It runs on a thread of its own, which starts with the first run and ends with `close()`. While it runs,
 * only `interrupt`, `harvestDirtyRing` and `close` may be called; all else throws `ERR_CASEMATE_STATE`.
 *
 * CPUID comes first: MSRs and other state depend on it.
 */
export class Vcpu implements Disposable, AsyncDisposable {
  /** As given to `createVcpu`. */
  readonly id: number;
  #handle: VcpuHandle | undefined;
  #running = false;
  #lastExit: VcpuExit | undefined;
  readonly #exchange = new Exchange();
  readonly #onClose: () => void;

  /** @internal */
  constructor(vm: VmHandle, id: number, onClose: () => void) {
    this.id = id;
    this.#handle = new native.VcpuHandle(vm, id, this.#exchange.bytes);
    this.#onClose = onClose;
  }

  // ---- Running ----

  /**
   * Runs the guest until it needs something (KVM_RUN), which the exit tells. What an exit wants to know (the
   * data of an `in`, say) is written into it before the next run.
   *
   * Keeps the event loop alive.
   *
   * @throws CasemateError `ERR_CASEMATE_STATE` if it runs already; `ERR_CASEMATE_CLOSED` if it is or
   *   gets closed; `ERR_CASEMATE_KVM` if the kernel cannot run it; an AbortError if `signal` aborts before
   *   there is an exit.
   */
  async run(options: RunOptions = {}): Promise<VcpuExit> {
    object('options', options, ['signal', 'interruptWindow', 'immediateExit']);
    const signal = signalOption(options.signal);
    const immediate = boolean('options.immediateExit', options.immediateExit ?? false);
    const interruptWindow = boolean('options.interruptWindow', options.interruptWindow ?? false);
    const handle = this.#idle;
    if (signal?.aborted) throw abortError(signal);
    if (this.#lastExit !== undefined) this.#exchange.answer(this.#lastExit);

    this.#running = true;
    const unlisten = onAbort(signal, () => handle.interrupt());
    try {
      const exited = handle.run(immediate, interruptWindow);
      this.#lastExit = undefined;
      if (await exited) {
        this.#lastExit = this.#exchange.read();
        return this.#lastExit;
      }
    } catch (error) {
      if (this.#handle === undefined) throw closed('Vcpu');
      if (!isSystemError(error)) throw error;
      throw new CasemateError('ERR_CASEMATE_KVM', error.message, { remedy: errnoRemedy, cause: error });
    } finally {
      this.#running = false;
      unlisten();
    }
    if (signal?.aborted) throw abortError(signal);
    return { reason: 'intr' };
  }

  /** Whether a run is under way. */
  get running(): boolean {
    return this.#running;
  }

  /**
   * Ends a run that is under way with an `intr` exit, unless the guest makes another one first (immediate_exit
   * and a signal to the vCPU's thread). Does nothing otherwise.
   */
  interrupt(): void {
    this.#open.interrupt();
  }

  /** Whether the guest could take an interrupt at its last exit (kvm_run). */
  get readyForInterruptInjection(): boolean {
    return this.#exchange.readyForInterruptInjection;
  }

  /** RFLAGS.IF at the last exit (kvm_run). */
  get interruptFlag(): boolean {
    return this.#exchange.interruptFlag;
  }

  /** KVM_ENABLE_CAP of the vCPU, with up to four arguments. */
  enableCap(capability: number, args: readonly bigint[] = [], flags = 0): void {
    const cap = state.encodeCap(capability, args, flags);
    this.#call((vcpu) => vcpu.enableCap(cap));
  }

  // ---- Identity ----

  /** KVM_SET_CPUID2; before the first run. See {@link guestCpuid}. */
  setCpuid(entries: readonly CpuidEntry[]): void {
    const memory = encodeCpuid(entries);
    this.#call((vcpu) => vcpu.setCpuid2(memory));
  }

  /** What was set, with what KVM keeps up to date in it (KVM_GET_CPUID2). */
  getCpuid(): CpuidEntry[] {
    return decodeCpuid(this.#call((vcpu) => vcpu.getCpuid2()));
  }

  // ---- State ----

  /** KVM_GET_REGS. */
  getRegs(): state.Regs {
    return decode(state.regs, (memory) => this.#call((vcpu) => vcpu.getRegs(memory)));
  }

  /**
   * KVM_SET_REGS: all of them; those left out become 0 (`rflags`: 2, its bit that is always set). After an
   * `io` or `mmio` exit complete that first (`run({ immediateExit: true })`), or its end will change them.
   */
  setRegs(regs: Partial<state.Regs>): void {
    const memory = encode(state.regs, { ...noRegs, ...object('regs', regs, Object.keys(noRegs)) }, 'regs');
    this.#call((vcpu) => vcpu.setRegs(memory));
  }

  /** KVM_GET_SREGS. */
  getSregs(): state.Sregs {
    return decode(state.sregs, (memory) => this.#call((vcpu) => vcpu.getSregs(memory)));
  }

  /** KVM_SET_SREGS. */
  setSregs(sregs: state.Sregs): void {
    const memory = encode(state.sregs, sregs, 'sregs');
    this.#call((vcpu) => vcpu.setSregs(memory));
  }

  /** KVM_GET_SREGS2, with {@link Capability.sregs2}: with the PDPTRs. */
  getSregs2(): state.Sregs2 {
    return decode(state.sregs2, (memory) => this.#call((vcpu) => vcpu.getSregs2(memory)));
  }

  /** KVM_SET_SREGS2. */
  setSregs2(sregs: state.Sregs2): void {
    const memory = encode(state.sregs2, sregs, 'sregs');
    this.#call((vcpu) => vcpu.setSregs2(memory));
  }

  /** KVM_GET_FPU. */
  getFpu(): state.Fpu {
    return decode(state.fpu, (memory) => this.#call((vcpu) => vcpu.getFpu(memory)));
  }

  /** KVM_SET_FPU. */
  setFpu(fpu: state.Fpu): void {
    const memory = encode(state.fpu, fpu, 'fpu');
    this.#call((vcpu) => vcpu.setFpu(memory));
  }

  /** The XSAVE area, 4096 bytes or more (KVM_GET_XSAVE2 where there is one, else KVM_GET_XSAVE). */
  getXsave(): Uint8Array {
    return this.#call((vcpu) => vcpu.getXsave());
  }

  /** KVM_SET_XSAVE: an area from `getXsave` of a vCPU with the same features. */
  setXsave(area: Uint8Array): void {
    const bytes = byteArray('area', area, this.#idle.xsaveSize);
    this.#call((vcpu) => vcpu.setXsave(bytes));
  }

  /** Extended control registers (KVM_GET_XCRS). */
  getXcrs(): state.Xcr[] {
    const { count, xcrs } = decode(state.xcrs, (memory) => this.#call((vcpu) => vcpu.getXcrs(memory)));
    return xcrs.slice(0, count);
  }

  /** KVM_SET_XCRS. */
  setXcrs(xcrs: readonly state.Xcr[]): void {
    if (!Array.isArray(xcrs)) throw invalid('xcrs', 'an array', xcrs);
    const memory = encode(state.xcrs, state.paddedXcrs(xcrs), 'xcrs');
    this.#call((vcpu) => vcpu.setXcrs(memory));
  }

  /** KVM_GET_DEBUGREGS. */
  getDebugRegs(): state.DebugRegs {
    return decode(state.debugRegs, (memory) => this.#call((vcpu) => vcpu.getDebugregs(memory)));
  }

  /** KVM_SET_DEBUGREGS. */
  setDebugRegs(debugRegs: state.DebugRegs): void {
    const memory = encode(state.debugRegs, debugRegs, 'debugRegs');
    this.#call((vcpu) => vcpu.setDebugregs(memory));
  }

  /** Values of these MSRs (KVM_GET_MSRS). Those that cannot be read are left out. */
  getMsrs(indices: readonly number[]): state.Msr[] {
    const handle = this.#idle;
    return readMsrs(indices, (msrs) => handle.getMsrs(msrs));
  }

  /** KVM_SET_MSRS, in this order. The error of one that cannot be set names it; those before it are set. */
  setMsrs(msrs: readonly state.Msr[]): void {
    const memory = encodeTable(state.msr, msrs, 'msrs');
    const refused = msrs[this.#call((vcpu) => vcpu.setMsrs(memory))];
    if (refused === undefined) return;
    const { index, value } = refused;
    const what = `MSR 0x${index.toString(16)} cannot be set to 0x${value.toString(16)}`;
    throw new CasemateError('ERR_CASEMATE_KVM', what, {
      remedy: 'Set only MSRs of Kvm.getMsrIndexList(), to values that the CPUID of this vCPU allows.',
    });
  }

  /** The LAPIC's registers, 1024 bytes (KVM_GET_LAPIC), where the LAPIC is KVM's. */
  getLapic(): Uint8Array {
    const page = new Uint8Array(state.lapicSize);
    this.#call((vcpu) => vcpu.getLapic(page));
    return page;
  }

  /** KVM_SET_LAPIC. */
  setLapic(page: Uint8Array): void {
    const memory = byteArray('page', page, state.lapicSize).slice();
    this.#call((vcpu) => vcpu.setLapic(memory));
  }

  /** KVM_GET_MP_STATE. */
  getMpState(): state.MpState {
    const number = this.#call((vcpu) => vcpu.getMpState());
    const known = state.mpStates[number];
    if (known === undefined) {
      throw new CasemateError('ERR_CASEMATE_KVM', `KVM_GET_MP_STATE gave ${number}`, {
        remedy: 'This kernel has a state that this version of casemate does not know: use a newer casemate.',
      });
    }
    return known;
  }

  /** KVM_SET_MP_STATE. */
  setMpState(mpState: state.MpState): void {
    const number = state.mpStates.indexOf(oneOf('mpState', mpState, state.mpStates));
    this.#call((vcpu) => vcpu.setMpState(number));
  }

  /** KVM_GET_VCPU_EVENTS. */
  getVcpuEvents(): state.VcpuEvents {
    return decode(state.vcpuEvents, (memory) => this.#call((vcpu) => vcpu.getVcpuEvents(memory)));
  }

  /** KVM_SET_VCPU_EVENTS. */
  setVcpuEvents(events: state.VcpuEvents): void {
    const memory = encode(state.vcpuEvents, events, 'events');
    this.#call((vcpu) => vcpu.setVcpuEvents(memory));
  }

  // ---- Time ----

  /** TSC frequency in kHz (KVM_GET_TSC_KHZ). */
  getTscKhz(): number {
    return this.#call((vcpu) => vcpu.getTscKhz());
  }

  /** KVM_SET_TSC_KHZ; another one than the host's needs {@link Capability.tscControl}. */
  setTscKhz(khz: number): void {
    integer('khz', khz, 1, maxU32);
    this.#call((vcpu) => vcpu.setTscKhz(khz));
  }

  /** Tells a guest with kvmclock that it was paused, so that its watchdogs stay quiet (KVM_KVMCLOCK_CTRL). */
  kvmclockCtrl(): void {
    this.#call((vcpu) => vcpu.kvmclockCtrl());
  }

  // ---- Events and inspection ----

  /** Queues a non-maskable interrupt (KVM_NMI). */
  nmi(): void {
    this.#call((vcpu) => vcpu.nmi());
  }

  /**
   * Injects an external interrupt (KVM_INTERRUPT), where the LAPIC is not KVM's, or its PIC is not. The
   * guest must be ready for it: see `readyForInterruptInjection` and `run({ interruptWindow: true })`.
   */
  injectInterrupt(vector: number): void {
    integer('vector', vector, 0, 255);
    this.#call((vcpu) => vcpu.injectInterrupt(vector));
  }

  /** A guest-virtual address by the present page tables (KVM_TRANSLATE); undefined where it is not mapped. */
  translate(linearAddress: bigint): state.Translation | undefined {
    bigint64('linearAddress', linearAddress);
    const nothing = { physicalAddress: 0, valid: 0, writeable: 0, usermode: 0 };
    const memory = encode(state.translation, { linearAddress, ...nothing }, 'linearAddress');
    this.#call((vcpu) => vcpu.translate(memory));
    const found = decodeEntries(state.translation, memory)[0];
    if (found === undefined || found.valid === 0) return undefined;
    return {
      physicalAddress: found.physicalAddress,
      writeable: found.writeable !== 0,
      usermode: found.usermode !== 0,
    };
  }

  /** Breakpoints and single steps, seen as `debug` exits (KVM_SET_GUEST_DEBUG). */
  setGuestDebug(debug: state.GuestDebug): void {
    const memory = encode(state.guestDebug, debug, 'debug');
    this.#call((vcpu) => vcpu.setGuestDebug(memory));
  }

  /**
   * Pages that this vCPU wrote, from its dirty ring, also while it runs; see
   * {@link VirtualMachine.enableDirtyRing}.
   *
   * @param most - How many at most.
   */
  harvestDirtyRing(most = 4096): { slot: number; page: number }[] {
    integer('most', most, 1, 2 ** 20);
    const entries = new Uint8Array(most * state.dirtyPage.size);
    const handle = this.#open;
    const count = kvmCall(() => handle.harvestDirtyRing(entries));
    return decodeEntries(state.dirtyPage, entries.subarray(0, count * state.dirtyPage.size));
  }

  /** Interrupts a run, which then throws `ERR_CASEMATE_CLOSED`; ends the thread, closes the vCPU. Idempotent. */
  close(): void {
    const handle = this.#handle;
    this.#handle = undefined;
    handle?.close();
    this.#onClose();
  }

  /** {@link Vcpu.close}, as the end of a `using` scope. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** {@link Vcpu.close}, as the end of an `await using` scope. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }

  get #open(): VcpuHandle {
    if (this.#handle === undefined) throw closed('Vcpu');
    return this.#handle;
  }

  get #idle(): VcpuHandle {
    const handle = this.#open;
    if (this.#running) {
      throw new CasemateError('ERR_CASEMATE_STATE', 'The vCPU is running', {
        remedy: 'Wait for its run() to end, or call interrupt() first.',
      });
    }
    return handle;
  }

  #call<T>(call: (vcpu: VcpuHandle) => T): T {
    const handle = this.#idle;
    return kvmCall(() => call(handle));
  }
}

const noRegs: state.Regs = {
  rax: 0n,
  rbx: 0n,
  rcx: 0n,
  rdx: 0n,
  rsi: 0n,
  rdi: 0n,
  rsp: 0n,
  rbp: 0n,
  r8: 0n,
  r9: 0n,
  r10: 0n,
  r11: 0n,
  r12: 0n,
  r13: 0n,
  r14: 0n,
  r15: 0n,
  rip: 0n,
  rflags: 2n,
};
