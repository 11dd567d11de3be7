import type { Vcpu } from 'casemate/kvm';
import { isSystemError } from '#lib/errors.js';
import { requires } from '../helpers/index.js';
import { requiresCapability } from './capability.js';
import { entry, machine, out, realModeVcpu } from './guests.js';

const test = requires('kvm');

/** All there is to save of a vCPU with its LAPIC in KVM, in the order in which it can be restored. */
function save(vcpu: Vcpu, msrs: readonly number[]) {
  return {
    mpState: vcpu.getMpState(),
    regs: vcpu.getRegs(),
    sregs: vcpu.getSregs(),
    xsave: vcpu.getXsave(),
    xcrs: vcpu.getXcrs(),
    debugRegs: vcpu.getDebugRegs(),
    lapic: vcpu.getLapic(),
    msrs: vcpu.getMsrs(msrs),
    events: vcpu.getVcpuEvents(),
  };
}

function restore(vcpu: Vcpu, state: ReturnType<typeof save>): void {
  vcpu.setMpState(state.mpState);
  vcpu.setRegs(state.regs);
  vcpu.setSregs(state.sregs);
  vcpu.setXsave(state.xsave);
  vcpu.setXcrs(state.xcrs);
  vcpu.setDebugRegs(state.debugRegs);
  vcpu.setLapic(state.lapic);
  vcpu.setMsrs(state.msrs);
  vcpu.setVcpuEvents(state.events);
}

test('registers come back as they were set', async (t) => {
  await using guest = machine([]);
  const vcpu = realModeVcpu(guest);
  const regs = Object.fromEntries(
    Object.keys(vcpu.getRegs()).map((name, i) => [name, 0x1111111111111111n * BigInt(i % 16)]),
  );
  Object.assign(regs, { rip: 0xfff0n, rflags: 0x246n });
  vcpu.setRegs(regs);
  t.deepEqual(vcpu.getRegs() as unknown, regs);
  vcpu.setRegs({ rip: 0x10n });
  t.like(vcpu.getRegs(), { rip: 0x10n, rflags: 2n, rax: 0n });
  for (const wrong of [{ rax: 1 }, { rax: -1n }, { rax: 2n ** 64n }, { rqx: 1n }, null]) {
    t.throws(() => vcpu.setRegs(wrong as never), { code: 'ERR_CASEMATE_INVALID_OPTION' });
  }
});

test('special registers come back as they were set', async (t) => {
  await using guest = machine([]);
  const vcpu = realModeVcpu(guest);
  const sregs = vcpu.getSregs();
  Object.assign(sregs.ds, { base: 0x1230n, selector: 0x123 });
  Object.assign(sregs, { cr2: 0x1234567890n, gdt: { base: 0x500n, limit: 23 }, idt: { base: 0x600n, limit: 0xff } });
  vcpu.setSregs(sregs);
  t.deepEqual(vcpu.getSregs(), sregs);
});

requiresCapability('sregs2')('the second form of the special registers says the same', async (t) => {
  await using guest = machine([]);
  const vcpu = realModeVcpu(guest);
  const sregs2 = vcpu.getSregs2();
  t.is(sregs2.pdptrs.length, 4);
  const { flags: _flags, pdptrs: _pdptrs, ...common } = sregs2;
  t.like(vcpu.getSregs(), common);
  sregs2.cr2 = 0x42n;
  vcpu.setSregs2(sregs2);
  t.is(vcpu.getSregs().cr2, 0x42n);
});

test('FPU, debug registers, XCRs and events come back as they were set', async (t) => {
  await using guest = machine([]);
  const vcpu = realModeVcpu(guest);

  const fpu = vcpu.getFpu();
  fpu.fcw = 0x37f;
  fpu.xmm.fill(0xab, 0, 16);
  vcpu.setFpu(fpu);
  t.deepEqual(vcpu.getFpu(), fpu);

  const debugRegs = vcpu.getDebugRegs();
  debugRegs.db = [1n, 2n, 3n, 4n];
  vcpu.setDebugRegs(debugRegs);
  t.deepEqual(vcpu.getDebugRegs(), debugRegs);

  const xcrs = vcpu.getXcrs();
  t.true(xcrs.some(({ index, value }) => index === 0 && (value & 1n) === 1n));
  vcpu.setXcrs(xcrs);
  t.deepEqual(vcpu.getXcrs(), xcrs);

  const xsave = vcpu.getXsave();
  t.true(xsave.length >= 4096);
  xsave.fill(0xcd, 160, 176); // XMM0,
  xsave[512] = 0b11; // and that x87 and SSE state are there.
  vcpu.setXsave(xsave);
  t.deepEqual(vcpu.getXsave(), xsave);
  t.true(
    vcpu
      .getFpu()
      .xmm.subarray(0, 16)
      .every((byte) => byte === 0xcd),
  );
  t.throws(() => vcpu.setXsave(xsave.subarray(1)), { code: 'ERR_CASEMATE_INVALID_OPTION' });

  const events = vcpu.getVcpuEvents();
  events.nmi.masked = 1;
  vcpu.setVcpuEvents(events);
  t.is(vcpu.getVcpuEvents().nmi.masked, 1);
});

test('MSRs come back as they were set, and those that cannot be are named', async (t) => {
  await using guest = machine([]);
  const vcpu = realModeVcpu(guest);
  const star = 0xc0000081;
  const lstar = 0xc0000082;
  vcpu.setMsrs([
    { index: star, value: 0x0023001000000000n },
    { index: lstar, value: 0xffffffff80000000n },
  ]);
  t.deepEqual(vcpu.getMsrs([lstar, 0xdeadbeef, star]), [
    { index: lstar, value: 0xffffffff80000000n },
    { index: star, value: 0x0023001000000000n },
  ]);
  const error = t.throws(() => vcpu.setMsrs([{ index: 0xdeadbeef, value: 1n }]), { code: 'ERR_CASEMATE_KVM' });
  t.regex(error.message, /0xdeadbeef/);
  vcpu.setMsrs([]);
});

test('CPUID comes back as it was set', async (t) => {
  await using guest = machine([]);
  const vcpu = guest.vm.createVcpu();
  t.deepEqual(vcpu.getCpuid(), []);
  const entries = guest.kvm.getSupportedCpuid().filter((entry) => [0, 0x80000000].includes(entry.function));
  t.is(entries.length, 2);
  vcpu.setCpuid(entries);
  t.deepEqual(vcpu.getCpuid(), entries);
  t.throws(() => vcpu.setCpuid([{ ...entries[0], eax: -1 } as never]), { code: 'ERR_CASEMATE_INVALID_OPTION' });
});

test('the LAPIC and the MP state come back as they were set', async (t) => {
  await using guest = machine([], { prepare: (vm) => vm.enableSplitIrqchip() });
  const vcpu = realModeVcpu(guest);
  const lapic = vcpu.getLapic();
  lapic[0x80] = 0x20; // Task priority.
  vcpu.setLapic(lapic);
  t.is(vcpu.getLapic()[0x80], 0x20);
  t.is(vcpu.getMpState(), 'runnable');
  vcpu.setMpState('halted');
  t.is(vcpu.getMpState(), 'halted');
  t.throws(() => vcpu.setMpState('asleep' as never), { code: 'ERR_CASEMATE_INVALID_OPTION' });
});

test('an address is translated by the page tables there are', async (t) => {
  await using guest = machine([]);
  const vcpu = realModeVcpu(guest);
  t.is(vcpu.translate(0x1234n)?.physicalAddress, 0x1234);
});

test('the clock goes on from where it is set', async (t) => {
  await using guest = machine([]);
  guest.vm.setClock({ clock: 1_000_000_000_000n, flags: 0, realtime: 0n, hostTsc: 0n });
  const { clock } = guest.vm.getClock();
  t.true(clock >= 1_000_000_000_000n && clock < 1_010_000_000_000n);
});

test('the TSC frequency is known', async (t) => {
  await using guest = machine([]);
  const vcpu = realModeVcpu(guest);
  const khz = vcpu.getTscKhz();
  t.true(khz > 100_000);
  vcpu.setTscKhz(khz);
});

test('calls that need something of the guest fail typed without it', async (t) => {
  await using guest = machine([]);
  const vcpu = realModeVcpu(guest);
  const error = t.throws(() => vcpu.kvmclockCtrl(), { code: 'ERR_CASEMATE_KVM' });
  t.true(isSystemError(error.cause));
  t.like(error, { syscall: 'ioctl(KVM_KVMCLOCK_CTRL)', errno: -22 });
});

test('a guest goes on in a second machine where it was stopped in the first', async (t) => {
  // mov ax, 0x1234; out 0x10, al; mov al, [0x2000]; out 0x11, al; out 0x12, ax; hlt
  const code = [0xb8, 0x34, 0x12, 0xe6, 0x10, 0xa0, 0x00, 0x20, 0xe6, 0x11, 0xe7, 0x12, 0xf4];
  await using first = machine(code, { prepare: (vm) => vm.enableSplitIrqchip() });
  first.memory.bytes(0x2000).set([0x77]);
  const source = realModeVcpu(first);
  source.setMsrs([{ index: 0xc0000082, value: 0x123456n }]);
  t.deepEqual(out(await source.run()).data, Uint8Array.of(0x34));
  t.deepEqual(await source.run({ immediateExit: true }), { reason: 'intr' });
  const msrs = first.kvm.getMsrIndexList();
  const state = save(source, msrs);

  await using second = machine([], { prepare: (vm) => vm.enableSplitIrqchip() });
  second.memory.bytes().set(first.memory.bytes());
  second.vm.setClock({ ...first.vm.getClock(), flags: 0 });
  const target = second.vm.createVcpu();
  target.setCpuid(source.getCpuid());
  restore(target, state);
  const restored = save(target, msrs);
  t.deepEqual(restored.regs, state.regs);
  t.deepEqual(restored.sregs, state.sregs);
  t.deepEqual(restored.xsave, state.xsave);
  t.deepEqual(target.getMsrs([0xc0000082]), [{ index: 0xc0000082, value: 0x123456n }]);
  t.is(state.regs.rip, BigInt(entry + 5));
  t.deepEqual(out(await target.run()).data, Uint8Array.of(0x77));
  t.deepEqual(out(await target.run()).data, Uint8Array.of(0x77, 0x12));
});
