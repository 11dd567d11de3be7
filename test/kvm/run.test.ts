import { setTimeout as delay } from 'node:timers/promises';
import { Capability, type MmioExit } from 'casemate/kvm';
import { requires } from '../helpers/index.js';
import { requiresCapability } from './capability.js';
import { entry, machine, out, realModeVcpu } from './guests.js';

const test = requires('kvm');

const endless = [0xeb, 0xfe]; // jmp $
// in al, 0x20; inc al; out 0x10, al; hlt
const increment = [0xe4, 0x20, 0xfe, 0xc0, 0xe6, 0x10, 0xf4];

test('a guest reads a port, computes, writes a port and halts', async (t) => {
  await using guest = machine(increment);
  const vcpu = realModeVcpu(guest);
  const input = await vcpu.run();
  t.deepEqual(input, {
    reason: 'io',
    direction: 'in',
    port: 0x20,
    size: 1,
    count: 1,
    data: Uint8Array.of(0xff),
  });
  if (input.reason === 'io') input.data[0] = 41;
  const output = out(await vcpu.run());
  t.is(output.port, 0x10);
  t.deepEqual(output.data, Uint8Array.of(42));
  t.deepEqual(await vcpu.run(), { reason: 'hlt' });
  t.is(vcpu.getRegs().rip, BigInt(entry + increment.length));
});

test('a port that nobody answers reads as 0xff', async (t) => {
  await using guest = machine(increment);
  const vcpu = realModeVcpu(guest);
  await vcpu.run();
  t.deepEqual(out(await vcpu.run()).data, Uint8Array.of(0));
});

test('string output arrives whole, and exits may be kept', async (t) => {
  // mov si, 0x2000; mov cx, 5; mov dx, 0x10; cld; rep outsb; hlt
  await using guest = machine([0xbe, 0x00, 0x20, 0xb9, 0x05, 0x00, 0xba, 0x10, 0x00, 0xfc, 0xf3, 0x6e, 0xf4]);
  new TextEncoder().encodeInto('hello', guest.memory.bytes(0x2000));
  const vcpu = realModeVcpu(guest);
  const exits = [];
  for (let exit = await vcpu.run(); exit.reason !== 'hlt'; exit = await vcpu.run()) exits.push(out(exit));
  t.is(exits.map(({ data }) => new TextDecoder().decode(data)).join(''), 'hello');
});

test('string input takes what was written into the exit', async (t) => {
  // mov di, 0x2000; mov cx, 4; mov dx, 0x10; cld; rep insb; hlt
  await using guest = machine([0xbf, 0x00, 0x20, 0xb9, 0x04, 0x00, 0xba, 0x10, 0x00, 0xfc, 0xf3, 0x6c, 0xf4]);
  const vcpu = realModeVcpu(guest);
  const bytes = [...new TextEncoder().encode('abcd')];
  for (let exit = await vcpu.run(); exit.reason !== 'hlt'; exit = await vcpu.run()) {
    if (exit.reason !== 'io' || exit.direction !== 'in') throw new Error(exit.reason);
    exit.data.set(bytes.splice(0, exit.data.length));
  }
  t.is(new TextDecoder().decode(guest.memory.bytes(0x2000, 4)), 'abcd');
});

test('memory without a slot is MMIO, answered like a port', async (t) => {
  // mov ax, [0x9000]; inc ax; mov [0x9004], ax; hlt
  await using guest = machine([0xa1, 0x00, 0x90, 0x40, 0xa3, 0x04, 0x90, 0xf4], { size: 0x8000 });
  const vcpu = realModeVcpu(guest);
  const read = (await vcpu.run()) as MmioExit;
  t.deepEqual(read, { reason: 'mmio', direction: 'read', address: 0x9000, data: Uint8Array.of(0xff, 0xff) });
  read.data.set([0x34, 0x12]);
  t.deepEqual(await vcpu.run(), {
    reason: 'mmio',
    direction: 'write',
    address: 0x9004,
    data: Uint8Array.of(0x35, 0x12),
  });
  t.deepEqual(await vcpu.run(), { reason: 'hlt' });
});

test('a triple fault is a shutdown', async (t) => {
  await using guest = machine([0x0f, 0x0b]); // ud2
  const vcpu = realModeVcpu(guest);
  const sregs = vcpu.getSregs();
  sregs.cr0 |= 1n; // Protected mode: what lies outside the IDT is a fault in turn.
  sregs.idt.limit = 0;
  Object.assign(sregs.cs, { selector: 8, limit: 0xffffffff, type: 11, db: 1, g: 1 });
  vcpu.setSregs(sregs);
  t.deepEqual(await vcpu.run(), { reason: 'shutdown' });
});

test('an endless guest ends with its AbortSignal and can be run again', async (t) => {
  await using guest = machine(endless);
  const vcpu = realModeVcpu(guest);
  const reason = new Error('enough');
  const controller = new AbortController();
  setTimeout(() => controller.abort(reason), 20);
  const error = await t.throwsAsync(vcpu.run({ signal: controller.signal }), { name: 'AbortError' });
  t.like(error, { code: 'ABORT_ERR', cause: reason });
  t.false(vcpu.running);
  t.is(vcpu.getRegs().rip, BigInt(entry));
  await t.throwsAsync(vcpu.run({ signal: AbortSignal.timeout(20) }), { name: 'AbortError' });
  await t.throwsAsync(vcpu.run({ signal: AbortSignal.abort() }), { name: 'AbortError' });
});

test('interrupt() ends a run with intr, and means nothing to the next one', async (t) => {
  await using guest = machine(increment);
  const vcpu = realModeVcpu(guest);
  vcpu.interrupt();
  t.is((await vcpu.run()).reason, 'io');
  await vcpu.run({ immediateExit: true });
  guest.memory.bytes(entry).set(endless);
  vcpu.setRegs({ rip: BigInt(entry) });
  for (let i = 0; i < 20; i++) {
    const run = vcpu.run();
    if (i % 2 === 0) await delay(1);
    vcpu.interrupt();
    vcpu.interrupt();
    t.deepEqual(await run, { reason: 'intr' });
  }
});

test('while it runs, all that would have to wait for it is refused', async (t) => {
  await using guest = machine(endless);
  const vcpu = realModeVcpu(guest);
  const run = vcpu.run();
  t.true(vcpu.running);
  const refused = { code: 'ERR_CASEMATE_STATE' };
  await t.throwsAsync(vcpu.run(), refused);
  t.throws(() => vcpu.getRegs(), refused);
  t.throws(() => vcpu.setRegs({}), refused);
  t.throws(() => vcpu.nmi(), refused);
  vcpu.interrupt();
  t.is((await run).reason, 'intr');
});

test('close() ends a run', async (t) => {
  await using guest = machine(endless);
  const vcpu = realModeVcpu(guest);
  const run = vcpu.run();
  const idle = realModeVcpu(guest, 1);
  vcpu.close();
  await t.throwsAsync(run, { code: 'ERR_CASEMATE_CLOSED' });
  idle.close();
});

test('immediateExit completes an exit and runs no guest code', async (t) => {
  await using guest = machine(increment);
  const vcpu = realModeVcpu(guest);
  t.deepEqual(await vcpu.run({ immediateExit: true }), { reason: 'intr' });
  const exit = await vcpu.run();
  if (exit.reason === 'io') exit.data[0] = 7;
  t.deepEqual(await vcpu.run({ immediateExit: true }), { reason: 'intr' });
  const { rax, rip } = vcpu.getRegs();
  t.is(rax & 0xffn, 7n);
  t.is(rip, BigInt(entry + 2));
});

test('two vCPUs run at the same time on the same memory', async (t) => {
  await using guest = machine(
    // mov byte [0x3000], 1; wait: cmp byte [0x3001], 1; jne wait; out 0x10, al; hlt
    [0xc6, 0x06, 0x00, 0x30, 0x01, 0x80, 0x3e, 0x01, 0x30, 0x01, 0x75, 0xf9, 0xe6, 0x10, 0xf4],
    { prepare: (vm) => vm.enableSplitIrqchip() },
  );
  // wait: cmp byte [0x3000], 1; jne wait; mov byte [0x3001], 1; out 0x11, al; hlt
  const second = [0x80, 0x3e, 0x00, 0x30, 0x01, 0x75, 0xf9, 0xc6, 0x06, 0x01, 0x30, 0x01, 0xe6, 0x11, 0xf4];
  guest.memory.bytes(0x1800).set(second);
  const vcpus = [realModeVcpu(guest, 0), realModeVcpu(guest, 1, 0x1800)] as const;
  t.is(vcpus[1].getMpState(), 'uninitialized');
  vcpus[1].setMpState('runnable');
  const exits = await Promise.all(vcpus.map((vcpu) => vcpu.run()));
  t.deepEqual(
    exits.map((exit) => out(exit).port),
    [0x10, 0x11],
  );
});

test('an application processor waits for its start-up interrupt until interrupted', async (t) => {
  await using guest = machine(endless, { prepare: (vm) => vm.enableSplitIrqchip() });
  realModeVcpu(guest, 0);
  const waiting = realModeVcpu(guest, 1);
  const run = waiting.run();
  await delay(10);
  t.true(waiting.running);
  waiting.interrupt();
  t.deepEqual(await run, { reason: 'intr' });
});

requiresCapability('userSpaceMsr')('MSRs that KVM does not know come to us, if asked for', async (t) => {
  await using guest = machine(
    // mov ecx, 0x12345678; rdmsr; out 0x10, al; inc eax; wrmsr; hlt
    [0x66, 0xb9, 0x78, 0x56, 0x34, 0x12, 0x0f, 0x32, 0xe6, 0x10, 0x66, 0x40, 0x0f, 0x30, 0xf4],
    { prepare: (vm) => vm.enableCap(Capability.userSpaceMsr, [0b111n]) },
  );
  const vcpu = realModeVcpu(guest);
  const read = await vcpu.run();
  t.like(read, { reason: 'rdmsr', index: 0x12345678, cause: 'unknown' });
  if (read.reason === 'rdmsr') read.value = 0x1_0000_0041n;
  t.deepEqual(out(await vcpu.run()).data, Uint8Array.of(0x41));
  t.like(await vcpu.run(), { reason: 'wrmsr', index: 0x12345678, value: 0x1_0000_0042n });
  t.deepEqual(await vcpu.run(), { reason: 'hlt' });
});

requiresCapability('setGuestDebug')('a single step is a debug exit', async (t) => {
  await using guest = machine([0x40, 0x40, 0xf4]); // inc ax; inc ax; hlt
  const vcpu = realModeVcpu(guest);
  const debugreg = Array.from({ length: 8 }, () => 0n);
  vcpu.setGuestDebug({ control: 3, debugreg });
  t.like(await vcpu.run(), { reason: 'debug', exception: 1, pc: BigInt(entry + 1) });
  t.like(await vcpu.run(), { reason: 'debug', exception: 1, pc: BigInt(entry + 2) });
  vcpu.setGuestDebug({ control: 0, debugreg });
  t.deepEqual(await vcpu.run(), { reason: 'hlt' });
  t.is(vcpu.getRegs().rax, 2n);
});

test('options that cannot be are refused before anything runs', async (t) => {
  await using guest = machine(increment);
  const vcpu = realModeVcpu(guest);
  for (const options of [{ signal: 1 }, { immediateExit: 1 }, { interruptWindow: 'yes' }, { sgnal: undefined }, null]) {
    await t.throwsAsync(vcpu.run(options as never), { code: 'ERR_CASEMATE_INVALID_OPTION' });
  }
  const exit = await vcpu.run();
  t.is(exit.reason, 'io');
  Object.assign(exit, { data: new Uint8Array(3) });
  await t.throwsAsync(vcpu.run(), { code: 'ERR_CASEMATE_INVALID_OPTION' });
  Object.assign(exit, { data: Uint8Array.of(1) });
  t.deepEqual(out(await vcpu.run()).data, Uint8Array.of(2), 'a refused answer can be mended');
});
