/**
 * KVM in this process: `Kvm`, `VirtualMachine`, `Vcpu` over the kernel's ioctls (the kernel documentation's
 * virt/kvm/api.rst tells what each of them does).
 *
 * Not jailed: a guest that breaks out of KVM has broken into Node. `launch()` is for guests that nobody
 * trusts; this is for tests, tools and monitors of one's own.
 *
 * Units and forms: sizes in bytes; guest-physical addresses, page numbers and ports are numbers; registers
 * and whatever else has 64 bits are bigints.
 *
 * @module
 */
export { Capability } from './capability.js';
export { CPUID_SIGNIFICANT_INDEX, type CpuidEntry, type GuestCpuidOptions, guestCpuid } from './cpuid.js';
export { type Descriptor, EventFd } from './eventfd.js';
export type {
  DebugExit,
  DirtyRingFullExit,
  FailEntryExit,
  HltExit,
  HypercallExit,
  InternalErrorExit,
  IntrExit,
  IoapicEoiExit,
  IoExit,
  IrqWindowOpenExit,
  MmioExit,
  MsrExitCause,
  OtherExit,
  RdmsrExit,
  ShutdownExit,
  SystemEventExit,
  VcpuExit,
  WrmsrExit,
} from './exit.js';
export { Kvm, type KvmOptions } from './kvm.js';
export { GuestMemory } from './memory.js';
export type {
  Clock,
  CommonSregs,
  DebugRegs,
  DescriptorTable,
  Fpu,
  GuestDebug,
  MpState,
  Msr,
  Regs,
  Segment,
  Sregs,
  Sregs2,
  Translation,
  VcpuEvents,
  Xcr,
} from './state.js';
export { type RunOptions, Vcpu } from './vcpu.js';
export {
  type ClearDirtyLog,
  dirtyPages,
  type GsiRoute,
  type Ioeventfd,
  type Irqchip,
  type Irqfd,
  type MemorySlot,
  type MsiMessage,
  VirtualMachine,
} from './vm.js';
