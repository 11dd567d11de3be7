/**
 * What the addon offers of KVM (native/addon/kvm*.cpp, eventfd.cpp).
 *
 * Structures of the kernel cross as a `Uint8Array` that holds exactly one of them, and are read or written
 * in place; native checks the size and nothing else of them. Numbers are within their range when they get
 * there. Every call throws a system error whose `syscall` names the ioctl.
 */
export interface KvmBinding {
  KvmHandle: new (source: string | number) => KvmHandle;
  MemoryHandle: new (size: number) => MemoryHandle;
  VmHandle: new (kvm: KvmHandle) => VmHandle;
  /** `exchange`: see exit.ts. */
  VcpuHandle: new (
    vm: VmHandle,
    id: number,
    exchange: Uint8Array,
  ) => VcpuHandle;
  EventFdHandle: new () => EventFdHandle;

  /** KVM_GET_SUPPORTED_CPUID of the descriptor of a /dev/kvm: struct kvm_cpuid_entry2, 40 bytes each. */
  kvmSupportedCpuid(fd: number): Uint8Array;
  /** KVM_GET_VCPU_MMAP_SIZE, likewise. */
  kvmRunSize(fd: number): number;
  /** KVM_CHECK_EXTENSION, likewise. */
  kvmExtension(fd: number, capability: number): number;
}

export interface KvmHandle {
  getApiVersion(): number;
  checkExtension(capability: number): number;
  /** struct kvm_cpuid_entry2, 40 bytes each. */
  getSupportedCpuid(): Uint8Array;
  getEmulatedCpuid(): Uint8Array;
  /** 32-bit MSR indices. */
  getMsrIndexList(): Uint8Array;
  getMsrFeatureIndexList(): Uint8Array;
  /** struct kvm_msrs with its entries; how many of them were read. */
  getMsrs(msrs: Uint8Array): number;
  close(): void;
}

export interface MemoryHandle {
  /** A new ArrayBuffer over the memory. */
  buffer(): ArrayBuffer;
}

export interface VmHandle {
  checkExtension(capability: number): number;
  enableCap(cap: Uint8Array): void;
  /** `memory` null deletes the slot. */
  setMemory(
    slot: number,
    flags: number,
    guestAddress: number,
    memory: MemoryHandle | null,
    offset: number,
    size: number,
  ): void;
  getDirtyLog(slot: number, bitmap: Uint8Array): void;
  clearDirtyLog(slot: number, firstPage: number, pages: number, bitmap: Uint8Array): void;
  resetDirtyRings(): number;
  setTssAddr(address: number): void;
  setIdentityMapAddr(address: number): void;
  createIrqchip(): void;
  getIrqchip(chip: Uint8Array): void;
  setIrqchip(chip: Uint8Array): void;
  createPit2(config: Uint8Array): void;
  getPit2(state: Uint8Array): void;
  setPit2(state: Uint8Array): void;
  setGsiRouting(routing: Uint8Array): void;
  irqfd(irqfd: Uint8Array): void;
  ioeventfd(ioeventfd: Uint8Array): void;
  signalMsi(msi: Uint8Array): number;
  irqLine(gsi: number, level: boolean): void;
  setBootCpuId(id: number): void;
  getClock(clock: Uint8Array): void;
  setClock(clock: Uint8Array): void;
  setTscKhz(khz: number): void;
  getTscKhz(): number;
  close(): void;
}

/** All but `harvestDirtyRing`, `interrupt` and `close` fail with EBUSY while the vCPU runs. */
export interface VcpuHandle {
  /** True: an exit, which is in the exchange buffer. False: interrupted. ECANCELED: closed. */
  run(immediate: boolean, interruptWindow: boolean): Promise<boolean>;
  interrupt(): void;
  close(): void;
  enableCap(cap: Uint8Array): void;
  setCpuid2(cpuid: Uint8Array): void;
  getCpuid2(): Uint8Array;
  getRegs(regs: Uint8Array): void;
  setRegs(regs: Uint8Array): void;
  getSregs(sregs: Uint8Array): void;
  setSregs(sregs: Uint8Array): void;
  getSregs2(sregs: Uint8Array): void;
  setSregs2(sregs: Uint8Array): void;
  getFpu(fpu: Uint8Array): void;
  setFpu(fpu: Uint8Array): void;
  /** Of the XSAVE area, in bytes. */
  readonly xsaveSize: number;
  getXsave(): Uint8Array;
  setXsave(xsave: Uint8Array): void;
  getXcrs(xcrs: Uint8Array): void;
  setXcrs(xcrs: Uint8Array): void;
  getDebugregs(debugregs: Uint8Array): void;
  setDebugregs(debugregs: Uint8Array): void;
  getMsrs(msrs: Uint8Array): number;
  setMsrs(msrs: Uint8Array): number;
  getLapic(lapic: Uint8Array): void;
  setLapic(lapic: Uint8Array): void;
  getMpState(): number;
  setMpState(state: number): void;
  getVcpuEvents(events: Uint8Array): void;
  setVcpuEvents(events: Uint8Array): void;
  getTscKhz(): number;
  setTscKhz(khz: number): void;
  kvmclockCtrl(): void;
  nmi(): void;
  injectInterrupt(vector: number): void;
  translate(translation: Uint8Array): void;
  setGuestDebug(debug: Uint8Array): void;
  /** Fills the buffer with struct kvm_dirty_gfn, 16 bytes each; how many. */
  harvestDirtyRing(entries: Uint8Array): number;
}

export interface EventFdHandle {
  readonly fd: number;
  signal(count: bigint): void;
  take(): bigint;
  /** The counter; 0 after `cancel` and `close`. */
  wait(): Promise<bigint>;
  cancel(): void;
  close(): void;
}
