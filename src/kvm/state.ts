/**
 * The state of virtual CPUs and machines as the kernel has it, as plain objects: the kernel's fields in its
 * order, their names in camelCase. Integers of up to 32 bits are numbers, those of 64 bits bigints; what
 * is only saved and restored as a whole (XSAVE area, LAPIC page, interrupt controllers) is a `Uint8Array`.
 */
import { invalid } from '../is.js';
import { address, array, at, bytes, encode, type Layout, s32, struct, u8, u16, u32, u64 } from './layout.js';

/** General registers (struct kvm_regs). */
export interface Regs {
  rax: bigint;
  rbx: bigint;
  rcx: bigint;
  rdx: bigint;
  rsi: bigint;
  rdi: bigint;
  rsp: bigint;
  rbp: bigint;
  r8: bigint;
  r9: bigint;
  r10: bigint;
  r11: bigint;
  r12: bigint;
  r13: bigint;
  r14: bigint;
  r15: bigint;
  rip: bigint;
  rflags: bigint;
}

export const regs: Layout<Regs> = struct({
  rax: u64,
  rbx: u64,
  rcx: u64,
  rdx: u64,
  rsi: u64,
  rdi: u64,
  rsp: u64,
  rbp: u64,
  r8: u64,
  r9: u64,
  r10: u64,
  r11: u64,
  r12: u64,
  r13: u64,
  r14: u64,
  r15: u64,
  rip: u64,
  rflags: u64,
});

/** A segment register with its hidden part (struct kvm_segment). */
export interface Segment {
  base: bigint;
  /** In bytes, whatever `g` says. */
  limit: number;
  selector: number;
  type: number;
  present: number;
  dpl: number;
  db: number;
  s: number;
  l: number;
  g: number;
  avl: number;
  unusable: number;
}

const segment: Layout<Segment> = struct({
  base: u64,
  limit: u32,
  selector: u16,
  type: u8,
  present: u8,
  dpl: u8,
  db: u8,
  s: u8,
  l: u8,
  g: u8,
  avl: u8,
  unusable: u8,
});

/** GDTR or IDTR (struct kvm_dtable). */
export interface DescriptorTable {
  base: bigint;
  limit: number;
}

const descriptorTable: Layout<DescriptorTable> = struct({ base: u64, limit: u16 });

/** What both forms of the special registers have. */
export interface CommonSregs {
  cs: Segment;
  ds: Segment;
  es: Segment;
  fs: Segment;
  gs: Segment;
  ss: Segment;
  tr: Segment;
  ldt: Segment;
  gdt: DescriptorTable;
  idt: DescriptorTable;
  cr0: bigint;
  cr2: bigint;
  cr3: bigint;
  cr4: bigint;
  cr8: bigint;
  efer: bigint;
  apicBase: bigint;
}

const commonSregs = {
  cs: segment,
  ds: segment,
  es: segment,
  fs: segment,
  gs: segment,
  ss: segment,
  tr: segment,
  ldt: segment,
  gdt: descriptorTable,
  idt: descriptorTable,
  cr0: u64,
  cr2: u64,
  cr3: u64,
  cr4: u64,
  cr8: u64,
  efer: u64,
  apicBase: u64,
};

/** Special registers (struct kvm_sregs). */
export interface Sregs extends CommonSregs {
  /** Bit n of element n / 64: external interrupt n is injected. */
  interruptBitmap: bigint[];
}

export const sregs: Layout<Sregs> = struct({ ...commonSregs, interruptBitmap: array(u64, 4) });

/** Special registers (struct kvm_sregs2). */
export interface Sregs2 extends CommonSregs {
  /** 1: `pdptrs` are valid. */
  flags: bigint;
  pdptrs: bigint[];
}

export const sregs2: Layout<Sregs2> = struct({ ...commonSregs, flags: u64, pdptrs: array(u64, 4) });

/** x87 and SSE state (struct kvm_fpu). */
export interface Fpu {
  /** Eight registers of 16 bytes. */
  fpr: Uint8Array;
  fcw: number;
  fsw: number;
  /** The tag word in the short form of FXSAVE. */
  ftwx: number;
  lastOpcode: number;
  lastIp: bigint;
  lastDp: bigint;
  /** Sixteen registers of 16 bytes. */
  xmm: Uint8Array;
  /** KVM neither tells nor takes it here: it is in the XSAVE area. */
  mxcsr: number;
}

export const fpu: Layout<Fpu> = struct({
  fpr: bytes(128),
  fcw: u16,
  fsw: u16,
  ftwx: u8,
  lastOpcode: u16,
  lastIp: u64,
  lastDp: u64,
  xmm: bytes(256),
  mxcsr: u32,
});

/** An extended control register (struct kvm_xcr). */
export interface Xcr {
  index: number;
  value: bigint;
}

const maxXcrs = 16;

interface Xcrs {
  count: number;
  flags: number;
  xcrs: Xcr[];
}

export const xcrs: Layout<Xcrs> = struct(
  { count: u32, flags: u32, xcrs: array(struct<Xcr>({ index: u32, value: u64 }), maxXcrs) },
  392,
);

/** As the structure wants them: always sixteen. */
export function paddedXcrs(used: readonly Xcr[]): Xcrs {
  const unused = Array.from({ length: Math.max(0, maxXcrs - used.length) }, () => ({ index: 0, value: 0n }));
  return { count: used.length, flags: 0, xcrs: [...used, ...unused] };
}

/** Debug registers (struct kvm_debugregs). */
export interface DebugRegs {
  /** DR0 to DR3. */
  db: bigint[];
  dr6: bigint;
  dr7: bigint;
  flags: bigint;
}

export const debugRegs: Layout<DebugRegs> = struct({ db: array(u64, 4), dr6: u64, dr7: u64, flags: u64 }, 128);

/** Exceptions, interrupts, NMIs and SMIs that are under way (struct kvm_vcpu_events). */
export interface VcpuEvents {
  exception: { injected: number; nr: number; hasErrorCode: number; pending: number; errorCode: number };
  interrupt: { injected: number; nr: number; soft: number; shadow: number };
  nmi: { injected: number; pending: number; masked: number };
  sipiVector: number;
  /** KVM_VCPUEVENT_VALID_*: which of the optional parts are valid. */
  flags: number;
  smi: { smm: number; pending: number; smmInsideNmi: number; latchedInit: number };
  tripleFault: { pending: number };
  exceptionHasPayload: number;
  exceptionPayload: bigint;
}

export const vcpuEvents: Layout<VcpuEvents> = struct({
  exception: struct({ injected: u8, nr: u8, hasErrorCode: u8, pending: u8, errorCode: u32 }),
  interrupt: struct({ injected: u8, nr: u8, soft: u8, shadow: u8 }),
  nmi: struct({ injected: u8, pending: u8, masked: u8 }, 4),
  sipiVector: u32,
  flags: u32,
  smi: struct({ smm: u8, pending: u8, smmInsideNmi: u8, latchedInit: u8 }),
  tripleFault: struct({ pending: u8 }),
  exceptionHasPayload: at(55, u8),
  exceptionPayload: u64,
});

/** A model-specific register and its value (struct kvm_msr_entry). */
export interface Msr {
  index: number;
  value: bigint;
}

export const msr: Layout<Msr> = struct({ index: u32, value: u64 });

/** What a vCPU does, in the kernel's order (KVM_MP_STATE_*). */
export const mpStates = ['runnable', 'uninitialized', 'initReceived', 'halted', 'sipiReceived'] as const;

/** What a vCPU does: `uninitialized` is an application processor that waits for its start-up interrupt. */
export type MpState = (typeof mpStates)[number];

/** The VM's clock, which its guests see as kvmclock (struct kvm_clock_data). */
export interface Clock {
  /** Nanoseconds. */
  clock: bigint;
  /** KVM_CLOCK_*: 2 the TSC is stable, 4 `realtime` is valid, 8 `hostTsc` is valid. */
  flags: number;
  /** CLOCK_REALTIME of the host when `clock` was read, nanoseconds. */
  realtime: bigint;
  /** TSC of the host at that time. */
  hostTsc: bigint;
}

export const clock: Layout<Clock> = struct({ clock: u64, flags: u32, realtime: u64, hostTsc: u64 }, 48);

/** What KVM_SET_GUEST_DEBUG takes (struct kvm_guest_debug). */
export interface GuestDebug {
  /** KVM_GUESTDBG_*: 1 enable, 2 single step, 0x10000 software and 0x20000 hardware breakpoints. */
  control: number;
  /** DR0 to DR7, for hardware breakpoints. */
  debugreg: bigint[];
}

export const guestDebug: Layout<GuestDebug> = struct({ control: u32, debugreg: array(u64, 8) });

/** Where a guest-virtual address lies. */
export interface Translation {
  /** Guest-physical. */
  physicalAddress: number;
  writeable: boolean;
  usermode: boolean;
}

export const translation: Layout<{
  linearAddress: bigint;
  physicalAddress: number;
  valid: number;
  writeable: number;
  usermode: number;
}> = struct({ linearAddress: u64, physicalAddress: address, valid: u8, writeable: u8, usermode: u8 });

// ---- What only the VM's methods take ----

const enableCap: Layout<{ cap: number; flags: number; args: bigint[] }> = struct(
  { cap: u32, flags: u32, args: array(u64, 4) },
  104,
);

/** struct kvm_enable_cap. */
export function encodeCap(capability: number, args: readonly bigint[], flags: number): Uint8Array {
  if (!Array.isArray(args) || args.length > 4) throw invalid('args', 'an array of up to four bigints', args);
  const padded = [0n, 0n, 0n, 0n].map((none, i) => args[i] ?? none);
  return encode(enableCap, { cap: capability, flags, args: padded }, 'capability');
}

export const irqchip: Layout<{ chipId: number; chip: Uint8Array }> = struct({ chipId: u32, chip: at(8, bytes(512)) });

export const pitConfig: Layout<{ flags: number }> = struct({ flags: u32 }, 64);

/** Of struct kvm_pit_state2 in bytes. */
export const pitStateSize = 112;

/** Of struct kvm_lapic_state in bytes. */
export const lapicSize = 1024;

export const irqfd: Layout<{ fd: number; gsi: number; flags: number; resampleFd: number }> = struct(
  { fd: u32, gsi: u32, flags: u32, resampleFd: u32 },
  32,
);

export const ioeventfd: Layout<{ datamatch: bigint; address: number; length: number; fd: number; flags: number }> =
  struct({ datamatch: u64, address, length: u32, fd: s32, flags: u32 }, 64);

export const msi: Layout<{ addressLow: number; addressHigh: number; data: number }> = struct(
  { addressLow: u32, addressHigh: u32, data: u32 },
  32,
);

/** `a`, `b`, `c`: irqchip and pin, or an MSI's address and data. */
export const irqRoutingEntry: Layout<{ gsi: number; type: number; a: number; b: number; c: number }> = struct(
  { gsi: u32, type: u32, a: at(16, u32), b: u32, c: u32 },
  48,
);

export const dirtyPage: Layout<{ slot: number; page: number }> = struct({ slot: at(4, u32), page: address });
