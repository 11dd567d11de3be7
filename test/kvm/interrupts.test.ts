import { setTimeout as delay } from 'node:timers/promises';
import ava from 'ava';
import { EventFd, type Vcpu, type VirtualMachine } from 'casemate/kvm';
import { requires } from '../helpers/index.js';
import { requiresCapability } from './capability.js';
import { type Machine, machine, out, realModeVcpu } from './guests.js';

const test = requires('kvm');

const vector = 0x40;
// sti; wait: hlt; jmp wait
const waiting = [0xfb, 0xf4, 0xeb, 0xfd];
// mov al, 0x42; out 0x10, al; iret
const handler = [0xb0, 0x42, 0xe6, 0x10, 0xcf];

/** A guest that waits for interrupts and says 0x42 on port 0x10 for each. */
function interruptible(prepare: (vm: VirtualMachine) => void): Machine & { vcpu: Vcpu } {
  const guest = machine(waiting, { prepare });
  guest.memory.bytes(0x1100).set(handler);
  guest.memory.bytes(vector * 4).set([0x00, 0x11, 0x00, 0x00]);
  const vcpu = realModeVcpu(guest);
  const lapic = vcpu.getLapic();
  new DataView(lapic.buffer).setUint32(0xf0, 0x1ff, true); // Spurious vector register: LAPIC on.
  vcpu.setLapic(lapic);
  return Object.assign(guest, { vcpu });
}

const msi = { address: 0xfee00000, data: vector };

ava('an eventfd counts', async (t) => {
  using event = new EventFd();
  t.is(event.take(), 0n);
  event.signal();
  event.signal(4);
  t.is(event.take(), 5n);
  t.is(event.take(), 0n);
  for (const count of [0, -1, 1.5, '1']) {
    t.throws(() => event.signal(count as never), { code: 'ERR_CASEMATE_INVALID_OPTION' });
  }
});

ava('an eventfd is waited for, once at a time, until aborted or closed', async (t) => {
  const event = new EventFd();
  const wait = event.wait();
  await t.throwsAsync(event.wait(), { code: 'ERR_CASEMATE_STATE' });
  event.signal(3);
  t.is(await wait, 3n);
  event.signal(2);
  t.is(await event.wait(), 2n);
  await t.throwsAsync(event.wait({ signal: AbortSignal.timeout(5) }), { name: 'AbortError' });
  await t.throwsAsync(event.wait({ signal: AbortSignal.abort() }), { name: 'AbortError' });
  const last = event.wait();
  event.close();
  event.close();
  await t.throwsAsync(last, { code: 'ERR_CASEMATE_CLOSED' });
  await t.throwsAsync(event.wait(), { code: 'ERR_CASEMATE_CLOSED' });
  t.throws(() => event.signal(), { code: 'ERR_CASEMATE_CLOSED' });
  t.throws(() => event.fd, { code: 'ERR_CASEMATE_CLOSED' });
});

test('a message-signalled interrupt wakes a halted guest', async (t) => {
  await using guest = interruptible((vm) => vm.enableSplitIrqchip());
  const run = guest.vcpu.run();
  await delay(5);
  t.true(guest.vcpu.running, 'the guest waits in KVM');
  t.true(guest.vm.signalMsi(msi));
  t.deepEqual(out(await run).data, Uint8Array.of(0x42));
});

test('an irqfd interrupts the guest by its route', async (t) => {
  await using guest = interruptible((vm) => vm.enableSplitIrqchip());
  using event = new EventFd();
  guest.vm.setGsiRouting([{ gsi: 5, msi }]);
  guest.vm.assignIrqfd({ fd: event, gsi: 5 });
  const run = guest.vcpu.run();
  event.signal();
  t.deepEqual(out(await run).data, Uint8Array.of(0x42));
  guest.vm.deassignIrqfd({ fd: event, gsi: 5 });
  event.signal();
  await t.throwsAsync(guest.vcpu.run({ signal: AbortSignal.timeout(20) }), { name: 'AbortError' });
});

test('an ioeventfd is rung without an exit', async (t) => {
  // out 0x20, al; mov al, 7; out 0x21, al; mov al, 8; out 0x21, al; mov [0x9000], ax; out 0x10, al; hlt
  const code = [0xe6, 0x20, 0xb0, 0x07, 0xe6, 0x21, 0xb0, 0x08, 0xe6, 0x21, 0xa3, 0x00, 0x90, 0xe6, 0x10, 0xf4];
  await using guest = machine(code, { size: 0x8000 });
  using any = new EventFd();
  using seven = new EventFd();
  using mmio = new EventFd();
  guest.vm.assignIoeventfd({ fd: any, port: 0x20, length: 1 });
  guest.vm.assignIoeventfd({ fd: seven, port: 0x21, length: 1, datamatch: 7n });
  guest.vm.assignIoeventfd({ fd: mmio.fd, address: 0x9000, length: 2 });
  const vcpu = realModeVcpu(guest);
  const waited = any.wait();
  const exit = out(await vcpu.run());
  t.is(exit.port, 0x21);
  t.deepEqual(exit.data, Uint8Array.of(8), 'the value that does not match makes an exit');
  t.is(await waited, 1n);
  t.is(seven.take(), 1n);
  t.is(out(await vcpu.run()).port, 0x10);
  t.is(mmio.take(), 1n);
  guest.vm.deassignIoeventfd({ fd: any, port: 0x20, length: 1 });
  t.throws(() => guest.vm.deassignIoeventfd({ fd: any, port: 0x20, length: 1 }), { code: 'ERR_CASEMATE_KVM' });
});

test('eventfds that cannot be bound are refused', async (t) => {
  await using guest = machine([]);
  using fd = new EventFd();
  const refused: (() => void)[] = [
    () => guest.vm.assignIoeventfd({ fd, length: 1 }),
    () => guest.vm.assignIoeventfd({ fd, port: 1, address: 1 }),
    () => guest.vm.assignIoeventfd({ fd, port: 0x10000 }),
    () => guest.vm.assignIoeventfd({ fd, port: 1, datamatch: 1n }),
    () => guest.vm.assignIoeventfd({ fd: -1, port: 1 }),
    () => guest.vm.assignIoeventfd({ fd: null as never, port: 1 }),
    () => guest.vm.assignIrqfd({ fd, gsi: -1 }),
    () => guest.vm.setGsiRouting([{ gsi: 1, irqchip: 'apic' as never, pin: 1 }]),
    () => guest.vm.setGsiRouting([{ gsi: 1, msi: { address: -1, data: 0 } }]),
  ];
  for (const call of refused) t.throws(call, { code: 'ERR_CASEMATE_INVALID_OPTION' });
  t.throws(() => guest.vm.assignIrqfd({ fd, gsi: 1 }), { code: 'ERR_CASEMATE_KVM' }, 'no irqchip');
});

test('without an irqchip the host injects interrupts when the window opens', async (t) => {
  // cli; nop; sti; wait: jmp wait
  await using guest = machine([0xfa, 0x90, 0xfb, 0xeb, 0xfe]);
  guest.memory.bytes(0x1100).set(handler);
  guest.memory.bytes(vector * 4).set([0x00, 0x11, 0x00, 0x00]);
  const vcpu = realModeVcpu(guest);
  t.deepEqual(await vcpu.run({ interruptWindow: true }), { reason: 'irqWindowOpen' });
  t.true(vcpu.readyForInterruptInjection);
  t.true(vcpu.interruptFlag);
  vcpu.injectInterrupt(vector);
  t.deepEqual(out(await vcpu.run()).data, Uint8Array.of(0x42));
});

test('an NMI reaches the guest', async (t) => {
  await using guest = interruptible((vm) => vm.enableSplitIrqchip());
  guest.memory.bytes(2 * 4).set([0x00, 0x11, 0x00, 0x00]);
  guest.vcpu.nmi();
  t.deepEqual(out(await guest.vcpu.run()).data, Uint8Array.of(0x42));
});

requiresCapability('pit2')('the full irqchip takes an interrupt line to the guest', async (t) => {
  await using guest = interruptible((vm) => {
    vm.createIrqchip();
    vm.createPit2({ speakerDummy: true });
  });
  const master = guest.vm.getIrqchip('picMaster');
  master[2] = 0; // Nothing masked,
  master[5] = vector - 4; // and IRQ 4 is our vector.
  guest.vm.setIrqchip('picMaster', master);
  t.deepEqual(guest.vm.getIrqchip('picMaster'), master);
  // LINT0 takes what comes from the PIC.
  const lapic = guest.vcpu.getLapic();
  new DataView(lapic.buffer).setUint32(0x350, 0x700, true);
  guest.vcpu.setLapic(lapic);
  const run = guest.vcpu.run();
  guest.vm.setIrqLine(4, true);
  t.deepEqual(out(await run).data, Uint8Array.of(0x42));
  guest.vm.setIrqLine(4, false);

  const ioapic = guest.vm.getIrqchip('ioapic');
  guest.vm.setIrqchip('ioapic', ioapic);
  const pit = guest.vm.getPit2();
  t.is(pit.length, 112);
  guest.vm.setPit2(pit);
  guest.vm.setGsiRouting([
    { gsi: 0, irqchip: 'ioapic', pin: 2 },
    { gsi: 24, msi },
  ]);
});

test('addresses and the boot CPU are set before the first vCPU', async (t) => {
  await using guest = machine([], {
    prepare(vm) {
      vm.setTssAddress(0xfffbd000);
      vm.setIdentityMapAddress(0xfffbc000);
      vm.createIrqchip();
      vm.setBootCpuId(1);
    },
  });
  realModeVcpu(guest, 0);
  t.throws(() => guest.vm.setBootCpuId(0), { code: 'ERR_CASEMATE_KVM' });
});
