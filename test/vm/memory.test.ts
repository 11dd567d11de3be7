/** Memory that a bare-metal guest has not got before it touches it: all of it beyond 16 MiB, at CPL 3. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { describeExit, type LaunchOptions, launch, type VmExit } from 'casemate';
import { flat, guest } from '../helpers/guests.js';
import { requires } from '../helpers/index.js';
import { tellsOf } from '../helpers/node.js';
import { run } from '../helpers/vm.js';

const test = requires('kvm');
const testWithTrace = requires('kvm', 'userns', 'strace');
const testWithTracer = requires('kvm', 'root', 'strace');

const mib = 2 ** 20;
const gib = 2 ** 30;
const hex = (address: number) => address.toString(16);
const touch = guest('touch');

/** Where an extent that a guest has from the start, one of the small ones, or one of a gigabyte ends, below and above. */
const borders = { first: 16 * mib, small: 512 * mib, large: 2 * gib, high: 6 * gib } as const;
const memoryMib = 7168;

for (const way of [
  'reads',
  'writes',
  'straddles',
  'moves-vectors',
  'locks',
  'copies',
  'copies-backwards',
  'calls',
  'executes',
  'finds-what-it-was-given',
  'keeps-registers',
]) {
  test(`a guest's first touch of memory is like any other: ${way}`, async (t) => {
    const args = [...[way, hex(borders.first), hex(borders.small)], ...[way, hex(borders.large), hex(borders.high)]];
    await using vm = await launch({ guest: touch, args, memoryMib });
    // mov eax, 0x12345678; ret: for whoever runs what it was given.
    vm.console.end(Buffer.from('b878563412c3'.repeat(2), 'hex'));
    t.deepEqual([await text(vm.console), await vm.exited], ['', { reason: 'exit', code: 0 }]);
  });
}

/** The slots of each launch, as the kernel was asked for them: "start+size", in MiB. */
async function slotsOf(
  t: { teardown(clean: () => void): void },
  launches: readonly LaunchOptions[],
): Promise<readonly string[][]> {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-test-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const trace = join(folder, 'trace');
  const script = `
    import { launch } from 'casemate';
    const ends = [];
    for (const options of ${JSON.stringify(launches)}) {
      ends.push(await (await launch({ console: 'ignore', ...options })).exited);
    }
    tell(ends);
  `;
  const through = ['strace', '-f', '-qq', '-e', 'trace=ioctl', '-e', 'signal=none', '-o', trace];
  for (const end of await tellsOf<VmExit[]>(script, { through })) {
    if (end.reason !== 'exit' || end.code !== 0) throw new Error(describeExit(end));
  }
  const slot = /^(\d+) .*KVM_SET_USER_MEMORY_REGION, \{slot=\d+, flags=0, guest_phys_addr=(\w+), memory_size=(\d+),/gm;
  const inMib = (bytes: string | undefined) => Number(bytes) / mib;
  const slots = new Map<string | undefined, string[]>();
  for (const [, pid, start, size] of readFileSync(trace, 'utf8').matchAll(slot)) {
    slots.set(pid, [...(slots.get(pid) ?? []), `${inMib(start)}+${inMib(size)}`]);
  }
  // Which of an access on two extents comes first, the processor says.
  return [...slots.values()].map((each) => each.sort());
}

testWithTrace('KVM is given what its guest touches, each extent once, and nothing else', async (t) => {
  const touches = (memoryMib: number, ...[way, border, other]: [string, number, number]) => ({
    guest: touch,
    args: [way, hex(border), hex(other), way, hex(border), hex(other)],
    memoryMib,
  });
  const slots = await slotsOf(t, [
    // Nothing of it.
    ...[8, 16, 18, 1024, 65536].map((memoryMib) => ({ memoryMib })),
    touches(memoryMib, 'writes', borders.high, borders.first),
    touches(memoryMib, 'straddles', borders.large, borders.small),
    // The last extents end where memory does, on either side of the hole.
    touches(3080, 'writes', 4 * gib, 3 * gib - 8 * mib),
    touches(18, 'reads', 16 * mib, 17 * mib),
  ]);
  t.deepEqual(slots, [
    ...[['0+8'], ['0+16'], ['0+16'], ['0+16'], ['0+16']],
    ['0+16', '16+240', '6144+1024'],
    ['0+16', '1024+1024', '2048+1024', '256+256', '512+256'],
    ['0+16', '2048+1024', '4096+8'],
    ['0+16', '16+2'],
  ]);
});

testWithTrace('what a guest is loaded with it has before it runs, however big, and at CPL 0 all', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-test-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const input = join(folder, 'input');
  writeFileSync(input, new Uint8Array(20 * mib));
  const slots = await slotsOf(t, [
    { guest: guest('exit'), args: ['0'], input, memoryMib: 1024 },
    { memoryMib: 1024, cpl: 0 },
    { memoryMib: 4096, cpl: 0 },
  ]);
  t.deepEqual(slots, [['0+16', '16+240'], ['0+1024'], ['0+3072', '4096+1024']]);
});

const faultOf = async (options: LaunchOptions) => {
  const { exit } = await run(options);
  return exit as Extract<VmExit, { reason: 'fault' }>;
};

test('where no memory is, a guest with more to come faults as any other', async (t) => {
  const user = 4;
  for (const [args, address, memoryMib, errorCode = user] of [
    [['reads', 0xc000_0000], 0xc000_0000n, 4096],
    [['straddles', 4 * gib], BigInt(4 * gib - 4), 4096],
    [['reads', 8 * gib], BigInt(8 * gib), 4096],
    // Its first half is memory.
    [['straddles', gib], BigInt(gib), 1024],
    [['straddles', 3 * gib], BigInt(3 * gib), 4096],
    [['straddles', 0], 2n ** 64n - 4n, 4096],
    // The guard below the stack, and what is the machine's.
    [['reads', 4 * mib], BigInt(4 * mib), 1024],
    [['reads', 0x1f_e000], 0x1f_e000n, 1024, user | 1],
  ] as const) {
    const exit = await faultOf({ guest: touch, args: [args[0], hex(args[1]), hex(args[1])], memoryMib });
    t.like(exit, { reason: 'fault', name: '#PF', errorCode, address }, args.join(' '));
    t.true(
      exit.registers !== undefined && exit.registers.rip >= 0x20_0000n && exit.registers.rip < 0x40_0000n,
      `${args}`,
    );
  }
});

test('a big image has its guard and its stack behind it', async (t) => {
  // out 0xe0, eax; mov eax, [24 MiB]: 20 MiB of image, up to there, then the guard.
  const image = new Uint8Array(20 * mib + 1);
  const end = 24 * mib;
  image.set(flat(`e7e0 8b0425 ${Buffer.from(Uint32Array.of(end).buffer).toString('hex')}`));
  t.like(await faultOf({ guest: image, memoryMib: 1024 }), { reason: 'fault', name: '#PF', address: BigInt(end) });
  // out 0xe0, eax; pop rax; push rax; mov edi, [rdi + 88]; mov al, [rdi]; xor eax, eax; out 0xec, eax
  image.set(flat('e7e0 58 50 8b7f58 8a07 31c0 e7ec'));
  t.deepEqual((await run({ guest: image, memoryMib: 1024 })).exit, { reason: 'exit', code: 0 });
});

testWithTracer('a guest whose memory the kernel has not got ends with the error of that', async (t) => {
  // The filter, which sees a call without a number where a tracer exchanges its answer, must be off for that.
  const jail = { profile: 'custom', layers: { seccomp: 'off' } } as const;
  const args = ['writes', hex(borders.small), hex(borders.first)];
  await using vm = await launch({ guest: touch, args, memoryMib, jail, startPaused: true });
  // Behind KVM_RUN, KVM_GET_REGS and KVM_GET_SREGS.
  const inject = ['-o', '/dev/null', '-e', 'inject=ioctl:error=ENOMEM:when=4'];
  const tracer = spawn('strace', [...inject, '-p', String(vm.pid)], { stdio: ['ignore', 'ignore', 'pipe'] });
  const [said] = await once(tracer.stderr, 'data');
  t.regex(String(said), /attached/);
  // It may have ended before this has been answered.
  await Promise.allSettled([vm.resume()]);
  t.deepEqual(await vm.exited, { reason: 'host-error', errno: -constants.errno.ENOMEM });
});
