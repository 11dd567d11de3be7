/** Tiny real-mode guests: at CPL 0 some kinds of KVM emulate each instruction. */
import {
  GuestMemory,
  type IoExit,
  Kvm,
  type MemorySlot,
  type Vcpu,
  type VcpuExit,
  type VirtualMachine,
} from 'casemate/kvm';

/** Where guest code starts. */
export const entry = 0x1000;

export interface Machine extends AsyncDisposable {
  kvm: Kvm;
  vm: VirtualMachine;
  memory: GuestMemory;
}

/** A machine with one slot at 0 that holds `code`. `prepare` comes before any vCPU. */
export function machine(
  code: readonly number[],
  options: { size?: number; slot?: Partial<MemorySlot>; prepare?: (vm: VirtualMachine) => void } = {},
): Machine {
  const kvm = Kvm.open();
  const vm = kvm.createVm();
  const memory = new GuestMemory(options.size ?? 0x10000);
  memory.bytes(entry).set(code);
  vm.setMemorySlot({ slot: 0, guestAddress: 0, memory, ...options.slot });
  options.prepare?.(vm);
  return {
    kvm,
    vm,
    memory,
    async [Symbol.asyncDispose]() {
      vm.close();
      kvm.close();
    },
  };
}

/** A vCPU about to run at `rip` in real mode, with all segments at 0. */
export function realModeVcpu({ kvm, vm }: Pick<Machine, 'kvm' | 'vm'>, id = 0, rip = entry): Vcpu {
  const vcpu = vm.createVcpu(id);
  vcpu.setCpuid(kvm.getSupportedCpuid());
  const sregs = vcpu.getSregs();
  Object.assign(sregs.cs, { base: 0n, selector: 0 });
  vcpu.setSregs(sregs);
  vcpu.setRegs({ rip: BigInt(rip), rsp: 0x8000n });
  return vcpu;
}

/** The exit, which has to be an `out`. */
export function out(exit: VcpuExit): IoExit {
  if (exit.reason !== 'io' || exit.direction !== 'out') {
    throw new Error(`Expected an out, got ${JSON.stringify(exit, (_, v) => (typeof v === 'bigint' ? `${v}` : v))}`);
  }
  return exit;
}
