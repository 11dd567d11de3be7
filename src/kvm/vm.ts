import { boolean, integer, invalid, object, oneOf } from '../is.js';
import { Capability } from './capability.js';
import { closed, kvmCall, maxU32, pageSize } from './common.js';
import { type Descriptor, descriptorNumber } from './eventfd.js';
import { bigint64, byteArray, decode, encode, encodeTable } from './layout.js';
import { GuestMemory, handles } from './memory.js';
import type { VmHandle } from './native.js';
import * as state from './state.js';
import { Vcpu } from './vcpu.js';

/** A piece of guest-physical memory. */
export interface MemorySlot {
  /** Its number. Setting a slot that is there replaces it. */
  slot: number;
  /** Guest-physical, a multiple of 4096. */
  guestAddress: number;
  memory: GuestMemory;
  /** Where in `memory` it starts, in bytes; 0 by default. */
  offset?: number;
  /** In bytes; by default all that follows `offset`. */
  size?: number;
  /** The guest's writes become `mmio` exits (KVM_MEM_READONLY). */
  readOnly?: boolean;
  /** Pages written are noted, for `getDirtyLog` or the dirty rings (KVM_MEM_LOG_DIRTY_PAGES). */
  logDirtyPages?: boolean;
}

/** Part of a dirty log that is to be cleared. */
export interface ClearDirtyLog {
  slot: number;
  /** A multiple of 64. */
  firstPage: number;
  /** A multiple of 64, unless it goes to the end of the slot. */
  pages: number;
  /** A bit per page from `firstPage` on: those to be cleared. */
  bitmap: Uint8Array;
}

/** One of the interrupt controllers of a full irqchip. */
export type Irqchip = 'picMaster' | 'picSlave' | 'ioapic';
const irqchips = ['picMaster', 'picSlave', 'ioapic'] as const satisfies readonly Irqchip[];

/** Where an interrupt by GSI number goes. */
export type GsiRoute = { gsi: number; irqchip: Irqchip; pin: number } | { gsi: number; msi: MsiMessage };

/** A message-signalled interrupt. */
export interface MsiMessage {
  /** 0xfee00000 + (APIC id << 12) for a physical destination. */
  address: number;
  /** The vector in its low 8 bits. */
  data: number;
}

/** An eventfd by which the host interrupts the guest. */
export interface Irqfd {
  fd: Descriptor;
  gsi: number;
  /** For a level-triggered interrupt: rung when the guest has acknowledged it. */
  resampleFd?: Descriptor;
}

/** An eventfd that the guest rings by a write, which then makes no exit. */
export interface Ioeventfd {
  fd: Descriptor;
  /** The I/O port, or */
  port?: number;
  /** the guest-physical address that is written to. */
  address?: number;
  /** Bytes written: 1, 2, 4 or 8; 0 for any (the default). */
  length?: number;
  /** Rings only for this value. Needs a `length`. */
  datamatch?: bigint;
}

const KVM_MEM_LOG_DIRTY_PAGES = 1;
const KVM_MEM_READONLY = 2;
const KVM_IRQFD_FLAG_DEASSIGN = 1;
const KVM_IRQFD_FLAG_RESAMPLE = 2;
const KVM_IOEVENTFD_FLAG_DATAMATCH = 1;
const KVM_IOEVENTFD_FLAG_PIO = 2;
const KVM_IOEVENTFD_FLAG_DEASSIGN = 4;
const KVM_PIT_SPEAKER_DUMMY = 1;
const KVM_IRQ_ROUTING_IRQCHIP = 1;
const KVM_IRQ_ROUTING_MSI = 2;

/**
 * A virtual machine in this process. Made by {@link Kvm.createVm}; errors as there.
 *
 * The order of set-up decides what it costs: memory slots first, then the interrupt controllers, then
 * vCPUs. A slot that is set after `createIrqchip` waits milliseconds for an RCU grace period.
 */
export class VirtualMachine implements Disposable, AsyncDisposable {
  #handle: VmHandle | undefined;
  readonly #vcpus = new Set<Vcpu>();
  /** Pages of each slot: what sizes its dirty bitmap. */
  readonly #pages = new Map<number, number>();

  /** @internal */
  constructor(handle: VmHandle) {
    this.#handle = handle;
  }

  /** KVM_CHECK_EXTENSION of the VM: where an answer depends on it, this is the one to ask. */
  checkExtension(capability: number): number {
    integer('capability', capability, 0, maxU32);
    return this.#call((vm) => vm.checkExtension(capability));
  }

  /** KVM_ENABLE_CAP, with up to four arguments. */
  enableCap(capability: number, args: readonly bigint[] = [], flags = 0): void {
    const cap = state.encodeCap(capability, args, flags);
    this.#call((vm) => vm.enableCap(cap));
  }

  /** Creates a vCPU with this number, which becomes its APIC id (KVM_CREATE_VCPU). */
  createVcpu(id = 0): Vcpu {
    integer('id', id, 0, maxU32);
    const vcpu = this.#call((vm) => new Vcpu(vm, id, () => this.#vcpus.delete(vcpu)));
    this.#vcpus.add(vcpu);
    return vcpu;
  }

  // ---- Memory ----

  /** Sets a slot (KVM_SET_USER_MEMORY_REGION); takes longer the bigger it is, 0.1 ms at 64 MiB. */
  setMemorySlot(slot: MemorySlot): void {
    const known = ['slot', 'guestAddress', 'memory', 'offset', 'size', 'readOnly', 'logDirtyPages'];
    object('slot', slot, known);
    const number = integer('slot.slot', slot.slot, 0, maxU32);
    const guestAddress = integer('slot.guestAddress', slot.guestAddress, 0, 2 ** 52 - pageSize);
    const { memory } = slot;
    const handle = memory instanceof GuestMemory ? handles.get(memory) : undefined;
    if (handle === undefined) throw invalid('slot.memory', 'a GuestMemory', memory);
    const offset = integer('slot.offset', slot.offset ?? 0, 0, memory.size - pageSize);
    const size = integer('slot.size', slot.size ?? memory.size - offset, pageSize, memory.size - offset);
    const flags =
      (boolean('slot.logDirtyPages', slot.logDirtyPages ?? false) ? KVM_MEM_LOG_DIRTY_PAGES : 0) |
      (boolean('slot.readOnly', slot.readOnly ?? false) ? KVM_MEM_READONLY : 0);
    this.#call((vm) => vm.setMemory(number, flags, guestAddress, handle, offset, size));
    this.#pages.set(number, size / pageSize);
  }

  /** Deletes a slot (KVM_SET_USER_MEMORY_REGION of size 0). */
  deleteMemorySlot(slot: number): void {
    integer('slot', slot, 0, maxU32);
    this.#call((vm) => vm.setMemory(slot, 0, 0, null, 0, 0));
    this.#pages.delete(slot);
  }

  /**
   * The pages written since the last call, or, with {@link Capability.manualDirtyLogProtect2}, since they
   * were cleared (KVM_GET_DIRTY_LOG): a bit per page of the slot. See {@link dirtyPages}.
   */
  getDirtyLog(slot: number): Uint8Array {
    integer('slot', slot, 0, maxU32);
    const bitmap = new Uint8Array(Math.ceil((this.#pages.get(slot) ?? 0) / 64) * 8);
    this.#call((vm) => vm.getDirtyLog(slot, bitmap));
    return bitmap;
  }

  /** KVM_CLEAR_DIRTY_LOG, with {@link Capability.manualDirtyLogProtect2} enabled. */
  clearDirtyLog(clear: ClearDirtyLog): void {
    object('clear', clear, ['slot', 'firstPage', 'pages', 'bitmap']);
    const slot = integer('clear.slot', clear.slot, 0, maxU32);
    const firstPage = integer('clear.firstPage', clear.firstPage, 0, Number.MAX_SAFE_INTEGER);
    const pages = integer('clear.pages', clear.pages, 1, maxU32);
    const bitmap = byteArray('clear.bitmap', clear.bitmap, Math.ceil(pages / 64) * 8);
    this.#call((vm) => vm.clearDirtyLog(slot, firstPage, pages, bitmap));
  }

  /**
   * Dirty pages go into a ring per vCPU instead of the log (KVM_CAP_DIRTY_LOG_RING); before the first vCPU.
   * Harvest with {@link Vcpu.harvestDirtyRing}, then call {@link VirtualMachine.resetDirtyRings}.
   *
   * @param sizeBytes - Of each ring: a power of two, 16 bytes per page.
   */
  enableDirtyRing(sizeBytes: number): void {
    integer('sizeBytes', sizeBytes, pageSize, maxU32);
    const ordered = this.checkExtension(Capability.dirtyLogRingAcqRel) > 0;
    this.enableCap(ordered ? Capability.dirtyLogRingAcqRel : Capability.dirtyLogRing, [BigInt(sizeBytes)]);
  }

  /** Gives harvested entries of all rings back to the kernel (KVM_RESET_DIRTY_RINGS); how many. */
  resetDirtyRings(): number {
    return this.#call((vm) => vm.resetDirtyRings());
  }

  /** Three pages that Intel hosts use for real mode (KVM_SET_TSS_ADDR); below 4 GiB, before the first vCPU. */
  setTssAddress(address: number): void {
    integer('address', address, 0, maxU32);
    this.#call((vm) => vm.setTssAddr(address));
  }

  /** One page likewise (KVM_SET_IDENTITY_MAP_ADDR). */
  setIdentityMapAddress(address: number): void {
    integer('address', address, 0, maxU32);
    this.#call((vm) => vm.setIdentityMapAddr(address));
  }

  // ---- Interrupts ----

  /** LAPICs in the kernel, all else in user space (KVM_CAP_SPLIT_IRQCHIP): the cheap one. Before the first vCPU. */
  enableSplitIrqchip(ioapicPins = 24): void {
    integer('ioapicPins', ioapicPins, 0, 1024);
    this.enableCap(Capability.splitIrqchip, [BigInt(ioapicPins)]);
  }

  /** PIC, IOAPIC and LAPICs in the kernel (KVM_CREATE_IRQCHIP). Before the first vCPU. */
  createIrqchip(): void {
    this.#call((vm) => vm.createIrqchip());
  }

  /** State of a controller in the kernel, 512 bytes (KVM_GET_IRQCHIP). */
  getIrqchip(chip: Irqchip): Uint8Array {
    const chipId = irqchips.indexOf(oneOf('chip', chip, irqchips));
    const memory = encode(state.irqchip, { chipId, chip: new Uint8Array(512) }, 'chip');
    this.#call((vm) => vm.getIrqchip(memory));
    return memory.slice(8);
  }

  /** KVM_SET_IRQCHIP. */
  setIrqchip(chip: Irqchip, bytes: Uint8Array): void {
    const chipId = irqchips.indexOf(oneOf('chip', chip, irqchips));
    const memory = encode(state.irqchip, { chipId, chip: byteArray('bytes', bytes, 512) }, 'chip');
    this.#call((vm) => vm.setIrqchip(memory));
  }

  /** The timer of old PCs (KVM_CREATE_PIT2); after `createIrqchip`. */
  createPit2(options: { /** The speaker's port is KVM's too. */ speakerDummy?: boolean } = {}): void {
    object('options', options, ['speakerDummy']);
    const flags = boolean('options.speakerDummy', options.speakerDummy ?? false) ? KVM_PIT_SPEAKER_DUMMY : 0;
    this.#call((vm) => vm.createPit2(encode(state.pitConfig, { flags }, 'options')));
  }

  /** Its state, 112 bytes (KVM_GET_PIT2). */
  getPit2(): Uint8Array {
    const bytes = new Uint8Array(state.pitStateSize);
    this.#call((vm) => vm.getPit2(bytes));
    return bytes;
  }

  /** KVM_SET_PIT2. */
  setPit2(bytes: Uint8Array): void {
    const memory = byteArray('bytes', bytes, state.pitStateSize).slice();
    this.#call((vm) => vm.setPit2(memory));
  }

  /** Replaces the whole table of where GSIs go (KVM_SET_GSI_ROUTING). Set it once for all devices. */
  setGsiRouting(routes: readonly GsiRoute[]): void {
    if (!Array.isArray(routes)) throw invalid('routes', 'an array', routes);
    const entries = routes.map((route: GsiRoute, i) => {
      const name = `routes[${i}]`;
      object(name, route, ['gsi', 'irqchip', 'pin', 'msi']);
      const gsi = integer(`${name}.gsi`, route.gsi, 0, maxU32);
      if ('msi' in route) {
        const { addressLow, addressHigh, data } = msiFields(`${name}.msi`, route.msi);
        return { gsi, type: KVM_IRQ_ROUTING_MSI, a: addressLow, b: addressHigh, c: data };
      }
      const chip = irqchips.indexOf(oneOf(`${name}.irqchip`, route.irqchip, irqchips));
      const pin = integer(`${name}.pin`, route.pin, 0, maxU32);
      return { gsi, type: KVM_IRQ_ROUTING_IRQCHIP, a: chip, b: pin, c: 0 };
    });
    const memory = encodeTable(state.irqRoutingEntry, entries, 'routes');
    this.#call((vm) => vm.setGsiRouting(memory));
  }

  /** Binds an eventfd to a GSI (KVM_IRQFD): `EventFd.signal` then interrupts the guest. */
  assignIrqfd(irqfd: Irqfd): void {
    this.#irqfd(irqfd, 0);
  }

  /** Unbinds it. */
  deassignIrqfd(irqfd: Irqfd): void {
    this.#irqfd(irqfd, KVM_IRQFD_FLAG_DEASSIGN);
  }

  /** Binds an eventfd to a port or an address (KVM_IOEVENTFD). */
  assignIoeventfd(ioeventfd: Ioeventfd): void {
    this.#ioeventfd(ioeventfd, 0);
  }

  /** Unbinds it. */
  deassignIoeventfd(ioeventfd: Ioeventfd): void {
    this.#ioeventfd(ioeventfd, KVM_IOEVENTFD_FLAG_DEASSIGN);
  }

  /** Sends a message-signalled interrupt (KVM_SIGNAL_MSI); whether the guest let it in. */
  signalMsi(message: MsiMessage): boolean {
    const memory = encode(state.msi, msiFields('message', message), 'message');
    return this.#call((vm) => vm.signalMsi(memory)) > 0;
  }

  /** Sets the level of an interrupt line of the full irqchip (KVM_IRQ_LINE). */
  setIrqLine(gsi: number, level: boolean): void {
    integer('gsi', gsi, 0, maxU32);
    boolean('level', level);
    this.#call((vm) => vm.irqLine(gsi, level));
  }

  /** Which vCPU is the bootstrap processor, 0 by default (KVM_SET_BOOT_CPU_ID); before the first vCPU. */
  setBootCpuId(id: number): void {
    integer('id', id, 0, maxU32);
    this.#call((vm) => vm.setBootCpuId(id));
  }

  // ---- Time ----

  /** The guests' clock (KVM_GET_CLOCK). */
  getClock(): state.Clock {
    return decode(state.clock, (memory) => this.#call((vm) => vm.getClock(memory)));
  }

  /** KVM_SET_CLOCK. With flag 4 the clock goes on by the time that passed since `realtime`. */
  setClock(clock: state.Clock): void {
    const memory = encode(state.clock, clock, 'clock');
    this.#call((vm) => vm.setClock(memory));
  }

  /** TSC frequency in kHz of the vCPUs to come (KVM_SET_TSC_KHZ), with {@link Capability.vmTscControl}. */
  setTscKhz(khz: number): void {
    integer('khz', khz, 0, maxU32);
    this.#call((vm) => vm.setTscKhz(khz));
  }

  /** KVM_GET_TSC_KHZ, likewise. */
  getTscKhz(): number {
    return this.#call((vm) => vm.getTscKhz());
  }

  /** Closes the vCPUs, then the machine. Idempotent. */
  close(): void {
    for (const vcpu of this.#vcpus) vcpu.close();
    this.#handle?.close();
    this.#handle = undefined;
  }

  /** {@link VirtualMachine.close}, as the end of a `using` scope. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** {@link VirtualMachine.close}, as the end of an `await using` scope. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }

  #irqfd(irqfd: Irqfd, deassign: number): void {
    object('irqfd', irqfd, ['fd', 'gsi', 'resampleFd']);
    const { resampleFd } = irqfd;
    const fields = {
      fd: descriptorNumber('irqfd.fd', irqfd.fd),
      gsi: integer('irqfd.gsi', irqfd.gsi, 0, maxU32),
      // The kernel takes a DEASSIGN by the first descriptor alone.
      flags: deassign || (resampleFd === undefined ? 0 : KVM_IRQFD_FLAG_RESAMPLE),
      resampleFd: resampleFd === undefined ? 0 : descriptorNumber('irqfd.resampleFd', resampleFd),
    };
    this.#call((vm) => vm.irqfd(encode(state.irqfd, fields, 'irqfd')));
  }

  #ioeventfd(ioeventfd: Ioeventfd, deassign: number): void {
    object('ioeventfd', ioeventfd, ['fd', 'port', 'address', 'length', 'datamatch']);
    const { port, address, datamatch } = ioeventfd;
    if ((port === undefined) === (address === undefined)) {
      throw invalid('ioeventfd.address', 'either an address or a port', address);
    }
    const length = integer('ioeventfd.length', ioeventfd.length ?? 0, 0, 8);
    if (datamatch !== undefined && length === 0) throw invalid('ioeventfd.length', 'a length for datamatch', length);
    const fields = {
      datamatch: datamatch === undefined ? 0n : bigint64('ioeventfd.datamatch', datamatch),
      address:
        port === undefined
          ? integer('ioeventfd.address', address, 0, Number.MAX_SAFE_INTEGER)
          : integer('ioeventfd.port', port, 0, 0xffff),
      length,
      fd: descriptorNumber('ioeventfd.fd', ioeventfd.fd),
      flags:
        deassign |
        (port === undefined ? 0 : KVM_IOEVENTFD_FLAG_PIO) |
        (datamatch === undefined ? 0 : KVM_IOEVENTFD_FLAG_DATAMATCH),
    };
    this.#call((vm) => vm.ioeventfd(encode(state.ioeventfd, fields, 'ioeventfd')));
  }

  #call<T>(call: (vm: VmHandle) => T): T {
    const handle = this.#handle;
    if (handle === undefined) throw closed('VirtualMachine');
    return kvmCall(() => call(handle));
  }
}

function msiFields(name: string, message: MsiMessage): { addressLow: number; addressHigh: number; data: number } {
  object(name, message, ['address', 'data']);
  const address = integer(`${name}.address`, message.address, 0, Number.MAX_SAFE_INTEGER);
  return {
    addressLow: address % 2 ** 32,
    addressHigh: Math.floor(address / 2 ** 32),
    data: integer(`${name}.data`, message.data, 0, maxU32),
  };
}

/** The numbers of the pages whose bits are set in a dirty bitmap. */
export function* dirtyPages(bitmap: Uint8Array): Generator<number> {
  for (const [i, byte] of bitmap.entries()) {
    for (let bit = 0; byte >>> bit !== 0; bit++) {
      if (((byte >>> bit) & 1) !== 0) yield i * 8 + bit;
    }
  }
}
