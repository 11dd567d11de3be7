/** What an ordinary KVM has, and a paravirtual one may lack: supervisor code that runs natively, a whole irqchip. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import test from 'ava';
import { launch } from 'casemate';
import { EventFd, type VirtualMachine } from 'casemate/kvm';
import { flat } from '../helpers/guests.js';
import { root } from '../helpers/index.js';
import { run } from '../helpers/vm.js';
import { machine, out, realModeVcpu } from '../kvm/guests.js';

test('the monitor of the examples runs its guest', (t) => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(root, 'examples/monitor.js')], {
    encoding: 'utf8',
  });
  t.deepEqual({ status, stdout, stderr }, { status: 0, stdout: 'Hello from a guest.\n', stderr: '' });
});

test('the native unit tests pass', (t) => {
  const { status, stdout, stderr } = spawnSync(join(root, 'build/Release/casemate-unit'), { encoding: 'utf8' });
  t.deepEqual({ failed: stdout.match(/^not ok .*/gm), stderr, status }, { failed: null, stderr: '', status: 0 });
});

test('a guest at CPL 0 has SSE', async (t) => {
  // out 0xe0, eax; mov eax, 21; movd xmm0, eax; paddd xmm0, xmm0; movd eax, xmm0; out 0xec, eax
  const image = flat('e7e0 b815000000 660f6ec0 660ffec0 660f7ec0 e7ec');
  t.deepEqual((await run({ guest: image, cpl: 0 })).exit, { reason: 'exit', code: 42 });
});

test('a guest at CPL 0 has the registers that kernels need, and faults at the others', async (t) => {
  // out 0xe0, eax; mov ecx, the register; rdmsr; wrmsr; mov eax, 7; out 0xec, eax
  const touch = async (register: string) =>
    (await run({ guest: flat(`e7e0 b9${register} 0f32 0f30 b807000000 e7ec`), cpl: 0 })).exit;
  const [attributes, star] = ['77020000', '810000c0'];
  for (const register of [attributes, star]) t.deepEqual(await touch(register), { reason: 'exit', code: 7 }, register);
  const [platform, features, none] = ['ce000000', '40010000', '78563412'];
  for (const register of [platform, features, none]) {
    t.like(await touch(register), { reason: 'fault', vector: 13 }, register);
  }
});

test('a guest at CPL 0 that halts for ever is ended by its timeout', async (t) => {
  // out 0xe0, eax; cli; hlt; jmp to the cli
  await using vm = await launch({ guest: flat('e7e0 fa f4 ebfc'), cpl: 0, timeoutMs: 2000 });
  t.deepEqual(await vm.exited, { reason: 'timeout' });
});

test('a guest at CPL 0 that jumps to where no memory is has KVM give up, and its registers are told', async (t) => {
  // out 0xe0, eax; its page table: mov dword [0x1fe010], 0x80000083, the third GiB as one page; mov rcx, cr3;
  // mov cr3, rcx; mov eax, 0x80000000; jmp rax
  const image = flat('e7e0 c7042510e01f0083000080 0f20d9 0f22d9 b800000080 ffe0');
  const { exit } = await run({ guest: image, cpl: 0 });
  t.like(exit, { reason: 'internal-error', suberror: 1, registers: { rip: 0x8000_0000n } });
});

test('a triple fault of a guest at CPL 0 is a shutdown, wherever it comes from', async (t) => {
  // out 0xe0, eax; push 0; push 0; lidt [rsp]; then ud2, int3, or a load from an address that is not canonical
  for (const fault of ['0f0b', 'cc', '48b8000000000000f0008b00']) {
    const { exit } = await run({ guest: flat(`e7e0 6a00 6a00 0f011c24 ${fault}`), cpl: 0 });
    t.is(exit.reason, 'shutdown', fault);
  }
});

/** al to a port. */
const write = (port: number, value: number) => [0xb0, value, 0xe6, port];
// The master PIC: edge-triggered, vectors from 0x40, no slave that matters, 8086 mode, nothing masked.
const pic = [...write(0x20, 0x11), ...write(0x21, 0x40), ...write(0x21, 0x04), ...write(0x21, 0x01), ...write(0x21, 0)];
// wait: cli; out 0x11, al; sti; hlt; jmp wait
const waiting = [0xfa, 0xe6, 0x11, 0xfb, 0xf4, 0xeb, 0xf9];
// out 0x10, the vector; end of interrupt; iret
const handler = (vector: number) => [...write(0x10, vector), ...write(0x20, 0x20), 0xcf];

/** A guest in real mode, with the whole irqchip, that says on port 0x11 that it waits, and on 0x10 what for. */
function interruptible(vector: number, code: readonly number[]) {
  const guest = machine([...pic, ...code, ...waiting], {
    prepare(vm: VirtualMachine) {
      vm.createIrqchip();
      vm.createPit2();
    },
  });
  guest.memory.bytes(0x1200).set(handler(vector));
  guest.memory.bytes(vector * 4).set([0x00, 0x12, 0x00, 0x00]);
  const vcpu = realModeVcpu(guest);
  const next = async () => out(await vcpu.run({ signal: AbortSignal.timeout(60_000) }));
  return Object.assign(guest, { next });
}

test('the timer of the irqchip interrupts a guest that has programmed it, again and again', async (t) => {
  // Counter 0: a rate generator, at a 4096th of its 1.19 MHz.
  await using guest = interruptible(0x40, [...write(0x43, 0x34), ...write(0x40, 0x00), ...write(0x40, 0x10)]);
  for (let ticks = 0; ticks < 3; ) {
    const { port, data } = await guest.next();
    if (port !== 0x10) continue;
    t.deepEqual(data, Uint8Array.of(0x40));
    ticks += 1;
  }
});

test('an irqfd with a resampling eventfd stays raised until the guest has acknowledged it', async (t) => {
  await using guest = interruptible(0x45, []);
  using raise = new EventFd();
  using acknowledged = new EventFd();
  guest.vm.assignIrqfd({ fd: raise, gsi: 5, resampleFd: acknowledged });
  t.is((await guest.next()).port, 0x11);
  for (let i = 0; i < 2; i += 1) {
    raise.signal();
    t.like(await guest.next(), { port: 0x10, data: Uint8Array.of(0x45) });
    t.is(acknowledged.take(), 0n, 'the guest is still in its handler');
    t.is((await guest.next()).port, 0x11);
    t.is(acknowledged.take(), 1n);
  }
});
