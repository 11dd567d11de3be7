// A virtual machine monitor in 40 lines: real mode, one vCPU, a serial port that only sends.
// It runs in this process and is not jailed; Node 24 and newer run this file as it is.
import { GuestMemory, guestCpuid, Kvm } from 'casemate/kvm';

// biome-ignore format: one instruction per line
const code = [
  0xbe, 0x00, 0x20, //       mov   si, 0x2000   a text that ends with 0
  0xba, 0xf8, 0x03, //       mov   dx, 0x3f8    the first serial port
  0xac,             // next: lodsb
  0x84, 0xc0,       //       test  al, al
  0x74, 0x03,       //       jz    done
  0xee,             //       out   dx, al
  0xeb, 0xf8,       //       jmp   next
  0xf4,             // done: hlt
];

using kvm = Kvm.open();
using vm = kvm.createVm();
const memory = new GuestMemory(64 * 1024);
memory.bytes(0x1000).set(code);
memory.bytes(0x2000).set(new TextEncoder().encode('Hello from a guest.\n\0'));
vm.setMemorySlot({ slot: 0, guestAddress: 0, memory });

using vcpu = vm.createVcpu();
vcpu.setCpuid(guestCpuid(kvm.getSupportedCpuid(), { vcpu: 0, vcpus: 1 }));
const sregs = vcpu.getSregs();
sregs.cs = { ...sregs.cs, base: 0n, selector: 0 };
vcpu.setSregs(sregs);
vcpu.setRegs({ rip: 0x1000n });

const signal = AbortSignal.timeout(10_000);
for (let exit = await vcpu.run({ signal }); exit.reason !== 'hlt'; exit = await vcpu.run({ signal })) {
  if (exit.reason === 'io' && exit.direction === 'out' && exit.port === 0x3f8) {
    process.stdout.write(exit.data);
  } else {
    throw new Error(`The guest stopped at ${vcpu.getRegs().rip}: ${exit.reason}`);
  }
}
