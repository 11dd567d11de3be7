/** How VMs end, one test for each way. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants } from 'node:os';
import { launch, type VmExit } from 'casemate';
import { flat, guest, stillborn } from '../helpers/guests.js';
import { requires } from '../helpers/index.js';
import { isAlive } from '../helpers/proc.js';
import { guestTooSlow, refused, run, timedOut } from '../helpers/vm.js';

const test = requires('kvm');
const testWithTracer = requires('kvm', 'root', 'strace');

test('timeoutMs ends a VM, and is the reason', async (t) => {
  t.deepEqual(await timedOut({ guest: guest('spin') }), { reason: 'timeout' });
});

for (const code of [0, 7, 255]) {
  test(`a guest's exit code ${code} arrives, from main() and from an exit in the middle`, async (t) => {
    const expected = { output: '', exit: { reason: 'exit', code } } as const;
    t.deepEqual(await run({ guest: guest('exit'), args: [`${code}`] }), expected);
    t.deepEqual(await run({ guest: guest('exit'), args: [`${code}`, 'at once'] }), expected);
  });
}

const faults: readonly (readonly [kind: string, name: string, vector: number, errorCode: number, address?: bigint])[] =
  [
    ['ud2', '#UD', 6, 0],
    ['divide', '#DE', 0, 0],
    ['cli', '#GP', 13, 0],
    ['hlt', '#GP', 13, 0],
    ['noncanonical', '#GP', 13, 0],
    ['port', '#GP', 13, 0],
    // Bits of a page fault's error code: 1 present, 2 a write, 4 from CPL 3.
    ['null', '#PF', 14, 1 | 4, 0n],
    ['supervisor', '#PF', 14, 1 | 2 | 4, 0x1f_f000n],
    ['beyond', '#PF', 14, 2 | 4, 0x100_0000n],
  ];

for (const [kind, name, vector, errorCode, address] of faults) {
  test(`a guest's ${name} (${kind}) is a fault with its vector, its error code and its registers`, async (t) => {
    const { exit } = await run({ guest: guest('fault'), args: [kind] });
    t.like(exit, { reason: 'fault', vector, name, errorCode, ...(address !== undefined && { address }) });
    const { registers } = exit as Extract<VmExit, { reason: 'fault' }>;
    // The guest's own: code at 2 MiB and the stack that it was given, not those of the machine's handlers.
    t.true(registers !== undefined && registers.rip > 0x20_0000n && registers.rip < 0x40_0000n);
    t.true(registers !== undefined && registers.rsp > 0x60_0000n && registers.rsp <= 0x80_0000n);
  });
}

test('the fault of a flat guest tells the very instruction', async (t) => {
  // out 0xe0, eax; mov ebx, 0x1234; ud2
  const { exit } = await run({ guest: flat('e7e0 bb34120000 0f0b') });
  t.like(exit, { reason: 'fault', name: '#UD', registers: { rip: 0x20_0007n, rbx: 0x1234n } });
});

test('a stack that overflows meets unmapped memory', async (t) => {
  const { exit } = await run({ guest: guest('fault'), args: ['stack'] });
  t.like(exit, { reason: 'fault', name: '#PF' });
  const { address } = exit as Extract<VmExit, { reason: 'fault' }>;
  t.true(address < 0x60_0000n && address >= 0x40_0000n);
});

test('a triple fault is a shutdown', async (t) => {
  const { exit } = await run({ guest: guest('triple'), cpl: 0 });
  t.is(exit.reason, 'shutdown');
  t.not((exit as Extract<VmExit, { reason: 'shutdown' }>).registers, undefined);
});

const violations: readonly (readonly [kind: string, port: number])[] = [
  ['wild-request', 0xe4],
  ['request-at-end', 0xe4],
  ['request-in-machine', 0xf0],
  ['wild-pointer', 0xe4],
  ['pointer-in-machine', 0xe8],
  ['huge-length', 0xe4],
  ['wrap-around', 0xe8],
  ['one-too-many', 0xe4],
  ['hole', 0xf4],
  ['flags', 0xe4],
  ['unknown-flags', 0xe8],
  ['unknown-port', 0xe1],
  ['byte', 0xec],
  ['in', 0xf0],
  ['exit-code', 0xec],
];

for (const [kind, port] of violations) {
  test(`a guest that breaks its ABI (${kind}) is ended, and the port is named`, async (t) => {
    const { exit } = await run({ guest: guest('violate'), args: [kind] });
    t.like(exit, { reason: 'protocol', port });
    t.not((exit as Extract<VmExit, { reason: 'protocol' }>).registers, undefined);
  });
}

test('a guest at CPL 0 that reaches behind its memory is ended', async (t) => {
  const { exit } = await run({ guest: guest('violate'), args: ['mmio'], cpl: 0 });
  t.is(exit.reason, 'protocol');
});

test('where KVM cannot go on, it is an internal error, with the registers of its guest', async (t) => {
  // At CPL 0: out 0xe0, eax; a large page of its own behind its memory (mov eax, 0x1fc000; mov ecx, 0xc0000083;
  // mov [rax + 511 * 8], rcx), and into it (mov eax, 511 << 21; jmp rax). There is nothing to be fetched, by KVM either.
  const wild = flat('e7e0 b800c01f00 b9830000c0 488988f80f0000 b80000e03f ffe0');
  const { exit } = await run({ guest: wild, cpl: 0 });
  const registers = { rip: 0x3fe0_0000n, rax: 0x3fe0_0000n, rcx: 0xc000_0083n };
  t.like(exit, { reason: 'internal-error', suberror: 1 /* KVM_INTERNAL_ERROR_EMULATION */, registers });
});

// EAGAIN: KVM could not make a task of its own. Of a processor that others start it would be no error.
for (const error of ['EFAULT', 'EAGAIN'] as const) {
  testWithTracer(
    `a system call of the monitor that fails with ${error} while its guest runs is a host error`,
    async (t) => {
      // A guest has no way to that: its memory is anonymous, and files are copied before it runs. So the kernel's answer
      // is exchanged; the filter, which sees a call without a number then, must be off for that.
      const jail = { profile: 'custom', layers: { seccomp: 'off' } } as const;
      await using vm = await launch({ guest: guest('spin'), jail, startPaused: true });
      const inject = ['-o', '/dev/null', '-e', `inject=ioctl:error=${error}:when=1`];
      const tracer = spawn('strace', [...inject, '-p', String(vm.pid)], { stdio: ['ignore', 'ignore', 'pipe'] });
      const [said] = await once(tracer.stderr, 'data');
      t.regex(String(said), /attached/);
      // It waits to be resumed, so KVM_RUN is its next ioctl; it may have ended before this has been answered.
      await Promise.allSettled([vm.resume()]);
      t.deepEqual(await vm.exited, { reason: 'host-error', errno: -constants.errno[error] });
    },
  );
}

test('kill() ends a spinning guest, also twice, also after its end', async (t) => {
  const vm = await launch({ guest: guest('spin') });
  t.is(vm.state, 'running');
  t.deepEqual(await Promise.all([vm.kill(), vm.kill()]), [{ reason: 'killed' }, { reason: 'killed' }]);
  t.is(vm.state, 'exited');
  t.false(isAlive(vm.pid));
  t.deepEqual(await vm.kill(), { reason: 'killed' });
});

test('kill() after a guest has exited keeps the reason of its end', async (t) => {
  const vm = await launch({ guest: guest('exit'), args: ['3'] });
  t.deepEqual(await vm.exited, { reason: 'exit', code: 3 });
  t.deepEqual(await vm.kill(), { reason: 'exit', code: 3 });
});

test('a guest that makes its first hypercall just as its time is over is a VM that lives, or none', async (t) => {
  for (let i = 0; i < 200; i += 1) {
    const launched = launch({ startTimeoutMs: 1 + (i % 3), console: 'ignore' });
    const end = await launched.then(
      async (vm) => (await vm.exited).reason,
      ({ code }) => code,
    );
    t.true(end === 'exit' || end === 'ERR_CASEMATE_TIMEOUT', end);
  }
});

test('a guest that makes no hypercall within startTimeoutMs, or timeoutMs, is no VM', async (t) => {
  t.is((await guestTooSlow(t, { guest: guest('silent') })).step, 'guest');
  await refused(t, { guest: guest('silent'), timeoutMs: 30 }, 'ERR_CASEMATE_TIMEOUT');
});

test('a guest that ends before its first hypercall is an early exit, whose cause is its end', async (t) => {
  const error = await refused(t, { guest: stillborn }, 'ERR_CASEMATE_EARLY_EXIT');
  t.like(error.cause, { reason: 'fault', name: '#UD', registers: { rip: 0x20_0000n } });
  t.regex(error.message, /#UD .* at rip 0x200000/);
});

test("somebody else's SIGKILL is a VM killed", async (t) => {
  const vm = await launch({ guest: guest('spin') });
  process.kill(vm.pid, 'SIGKILL');
  t.deepEqual(await vm.exited, { reason: 'killed' });
});

test('a monitor that dies of a signal has crashed, and the signal is named', async (t) => {
  // The first process of a pid namespace does not hear of a signal that it has no handler for.
  const jail = { profile: 'custom', layers: { pidNamespace: 'off' } } as const;
  const vm = await launch({ guest: guest('spin'), jail });
  process.kill(vm.pid, 'SIGSEGV');
  const crashed = { reason: 'monitor-crashed', signal: 'SIGSEGV', blockedSyscall: undefined, code: undefined } as const;
  t.deepEqual(await vm.exited, crashed);
});

test('a monitor stopped at a system call names it', async (t) => {
  const vm = await launch({ guest: guest('spin') });
  // As its seccomp filter would: the monitor's handler takes the number from what comes with the signal, and that is
  // 0, read(2), where it comes from us.
  process.kill(vm.pid, 'SIGSYS');
  const crashed = { reason: 'monitor-crashed', signal: undefined, blockedSyscall: 'read', code: 128 + 31 } as const;
  t.deepEqual(await vm.exited, crashed);
});
