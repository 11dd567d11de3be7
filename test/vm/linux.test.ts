/**
 * Linux guests' machine, with kernels of a few instructions: whatever KVM is here can run those. What boots a real
 * kernel is another matter, and needs a KVM that runs one.
 */
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';
import { type LaunchOptions, launch } from 'casemate';
import { requires } from '../helpers/index.js';
import {
  awaitOthers,
  echo,
  flood,
  follow,
  kernel,
  kernelAt,
  loop,
  out,
  powerOff,
  print,
  printApicId,
  printPort,
  printString,
  startOthers,
  tripleFault,
  tryByte,
} from '../helpers/kernels.js';
import { threadStatesOf, within } from '../helpers/proc.js';
import { guestTooSlow, refused, run } from '../helpers/vm.js';

const test = requires('kvm');

test('a kernel prints on its serial port and switches itself off', async (t) => {
  const { output, exit } = await run({ kernel: kernel(print('hello\n'), powerOff) });
  t.is(output, 'hello\n');
  t.deepEqual(exit, { reason: 'poweroff' });
});

for (const [how, port, value] of [
  ["the chipset's register", 0xcf9, 0x06],
  ['the keyboard controller', 0x64, 0xfe],
] as const) {
  test(`a kernel that resets its machine by ${how} ends it, and what it wrote last is read`, async (t) => {
    const { output, exit } = await run({ kernel: kernel(print('bye'), out(port, value)) });
    t.is(output, 'bye');
    t.deepEqual(exit, { reason: 'reboot' });
  });
}

test('a kernel that panics says so by pvpanic', async (t) => {
  const { exit } = await run({ kernel: kernel(out(0x505, 1)) });
  t.is(exit.reason, 'panic');
  if (exit.reason === 'panic') t.is(exit.registers?.rdx, 0x505n);
});

test('a triple fault is told apart', async (t) => {
  const { output, exit } = await run({ kernel: kernel(print('x'), tripleFault) });
  t.is(output, 'x');
  t.is(exit.reason, 'shutdown');
});

for (const vcpus of [2, 9, 32]) {
  test(`a kernel starts ${vcpus} processors, each of them with an id of its own`, async (t) => {
    const code = kernel(startOthers(printApicId), awaitOthers(vcpus - 1), powerOff);
    const { output, exit } = await run({ kernel: code, vcpus });
    t.deepEqual(exit, { reason: 'poweroff' });
    const ids = Array.from({ length: vcpus - 1 }, (_, i) => String.fromCharCode('0'.charCodeAt(0) + i + 1));
    t.deepEqual([...output].sort(), ids);
  });
}

test('a processor that cannot go on ends the machine, whichever it is', async (t) => {
  // lidt of six zeroes at 0x8900; ud2
  const { exit } = await run({ kernel: kernel(print('x'), startOthers('0f011e0089 0f0b'), loop), vcpus: 3 });
  // Where KVM emulates real mode instead of running it, it gives up at such a fault.
  t.regex(exit.reason, /^(shutdown|internal-error)$/);
});

test('any processor can switch the machine off, and only the first to do so counts', async (t) => {
  // mov $0x600, %dx; mov $0x34, %al; out %al, (%dx): by all at once
  const { output, exit } = await run({ kernel: kernel(print('x'), startOthers('ba0006 b034 ee'), loop), vcpus: 8 });
  t.is(output, 'x');
  t.deepEqual(exit, { reason: 'poweroff' });
});

test('all processors stand still once a pause is answered, and run on after it', async (t) => {
  // jmp to itself
  await using vm = await launch({ kernel: kernel(print('>'), startOthers('ebfe'), loop), vcpus: 4 });
  const running = () => threadStatesOf(vm.pid).filter((state) => state === 'R').length;
  for (let round = 0; round < 5; round += 1) {
    t.true(await within(20_000, () => running() > 0));
    await vm.pause();
    t.true(await within(20_000, () => running() === 0));
    await vm.resume();
  }
});

test('a console that nobody reads stops who writes to it, and neither the others nor the machine', async (t) => {
  // The first one writes without end; the second is in an endless loop.
  await using vm = await launch({ kernel: kernel(startOthers('ebfe'), flood), vcpus: 2 });
  const running = () => threadStatesOf(vm.pid).filter((state) => state === 'R').length;
  t.true(await within(20_000, () => running() === 1));
  await vm.pause();
  t.true(await within(20_000, () => running() === 0));
  await vm.resume();
  t.true(await within(20_000, () => running() === 1));
  vm.console.resume();
  t.true(await within(20_000, () => running() === 2));
});

const mib = 1n << 20n;
for (const memoryMib of [16, 3072, 3074, 65536]) {
  test(`a kernel with ${memoryMib} MiB has all of them, those beyond 3 GiB from 4 GiB on`, async (t) => {
    const size = BigInt(memoryMib);
    const last = (size <= 3072n ? size * mib : 4096n * mib + (size - 3072n) * mib) - 1n;
    const { output, exit } = await run({ kernel: kernelAt(2n * mib, tryByte(last, 'm'), powerOff), memoryMib });
    t.is(output, 'm');
    t.deepEqual(exit, { reason: 'poweroff' });
  });
}

test('a kernel finds its command line, of 2047 bytes too', async (t) => {
  for (const cmdline of ['root=/dev/vda quiet', '', 'x'.repeat(2047)]) {
    const { output } = await run({ kernel: kernel(follow(0x228), printString, powerOff), cmdline });
    t.is(output, `${cmdline}\0`);
  }
});

test('without a command line of its own a kernel gets the default one', async (t) => {
  const { output } = await run({ kernel: kernel(follow(0x228), printString, powerOff) });
  t.is(output, 'console=ttyS0 quiet panic=-1 pci=off\0');
});

test('a kernel finds its initrd', async (t) => {
  const initrd = Buffer.from('an archive of files\0');
  const { output } = await run({ kernel: kernel(follow(0x218), printString, powerOff), initrd });
  t.is(output, 'an archive of files\0');
});

test('of several initrds a kernel finds one behind the other, wherever they come from', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-initrd-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const [path, other] = [join(folder, 'first'), join(folder, 'last')] as const;
  writeFileSync(path, 'by path ');
  writeFileSync(other, 'by a descriptor\0');
  const fd = openSync(other, 'r');
  t.teardown(() => closeSync(fd));
  const initrd = [path, Buffer.from('as bytes'), ...Array(4).fill(Buffer.from('....')), { fd }];
  const { output } = await run({ kernel: kernel(follow(0x218), printString, powerOff), initrd });
  t.is(output, 'by path as bytes................by a descriptor\0');
});

test('a kernel reads what is typed, and what was typed before it looked', async (t) => {
  await using vm = await launch({ kernel: kernel(print('>'), echo, powerOff) });
  await once(vm.console, 'readable');
  vm.console.write('typed ');
  vm.console.write('x'.repeat(1000));
  vm.console.write('.');
  t.is(await text(vm.console), `>typed ${'x'.repeat(1000)}.`);
  t.deepEqual(await vm.exited, { reason: 'poweroff' });
});

test('a prompt is shown though its line does not end and its guest says no more', async (t) => {
  await using vm = await launch({ kernel: kernel(print('login: '), loop) });
  let shown = '';
  for await (const chunk of vm.console) {
    shown += chunk;
    if (shown === 'login: ') break;
  }
  t.is(shown, 'login: ');
});

test('ports that nothing is behind read as ones', async (t) => {
  await using vm = await launch({ kernel: kernel(printPort(0x20), printPort(0x2f8), printPort(0xcfc), powerOff) });
  const chunks: Buffer[] = [];
  for await (const chunk of vm.console) chunks.push(chunk);
  t.deepEqual(Buffer.concat(chunks), Buffer.from([0xff, 0xff, 0xff]));
});

test('a Linux guest starts paused at its first access to a device, and can be paused later', async (t) => {
  await using vm = await launch({ kernel: kernel(print('>'), echo, powerOff), startPaused: true });
  t.is(vm.state, 'paused');
  t.is(vm.console.read(), null);
  await vm.resume();
  await once(vm.console, 'readable');
  await vm.pause();
  vm.console.write('.');
  await vm.resume();
  t.is(await text(vm.console), '>.');
});

test('the jail of a Linux guest is as strict as any, in each of its threads', async (t) => {
  const initrd = Buffer.alloc(4096);
  await using vm = await launch({ kernel: kernel(print('>'), loop), initrd, startPaused: true, vcpus: 4 });
  const evidence = await vm.evidence();
  t.regex(evidence.layers.find(({ layer }) => layer === 'seccomp')?.observed ?? '', /^[56] threads filtered/);
  t.deepEqual(
    evidence.layers.filter(({ ok }) => !ok),
    [],
  );
});

test('a Linux guest without a console runs, and its output vanishes', async (t) => {
  await using vm = await launch({ kernel: kernel(print('nobody reads this\n'), powerOff), console: 'ignore' });
  t.deepEqual(await vm.exited, { reason: 'poweroff' });
});

test('a Linux guest without a console goes on behind a line that does not end', async (t) => {
  // The first process of a pid namespace does not hear of a signal that it has no handler for.
  const jail = { profile: 'custom', layers: { pidNamespace: 'off' } } as const;
  await using vm = await launch({ kernel: kernel(print('login: '), loop), console: 'ignore', jail });
  await delay(100); // the timer has 5
  t.is(vm.state, 'running');
});

test('the timeline of a Linux guest has every step of the monitor', async (t) => {
  await using vm = await launch({ kernel: kernel(print('>'), powerOff) });
  const names = vm.timeline.steps.filter(({ where }) => where === 'monitor').map(({ name }) => name);
  t.deepEqual(names.slice(-5), ['vcpu', 'confine', 'load', 'awaitRun', 'guest']);
  await vm.exited;
});

test('a kernel that ends before it has touched a device is an error', async (t) => {
  const error = await refused(t, { kernel: kernel(tripleFault) }, 'ERR_CASEMATE_EARLY_EXIT');
  t.regex(error.message, /first access to a device/);
});

test('a kernel that touches no device in its time is an error', async (t) => {
  const error = await guestTooSlow(t, { kernel: kernel(loop) });
  t.regex(error.message, /access to a device/);
});

const unloadable: readonly (readonly [title: string, why: RegExp, options: LaunchOptions])[] = [
  ['what is no ELF file', /64-bit/, { kernel: Buffer.alloc(4096, 'x') }],
  ['a kernel cut short', /shorter/, { kernel: kernel(loop).subarray(0, -1) }],
  ['a kernel that does not fit', /outside the memory/, { kernel: kernel(loop), memoryMib: 16 }],
  ['by PVH a kernel without its entry', /PVH/, { kernel: kernel(loop), bootProtocol: 'pvh' }],
  [
    'an initrd that does not fit',
    /initrd do not fit/,
    { kernel: kernel(loop), memoryMib: 18, initrd: Buffer.alloc(2 ** 22) },
  ],
];

for (const [title, why, options] of unloadable) {
  test(`${title} is refused from within the jail`, async (t) => {
    const error = await refused(t, options, 'ERR_CASEMATE_GUEST_IMAGE');
    t.is(error.step, 'options.kernel');
    t.regex(error.message, why);
    t.regex(error.remedy, /vmlinux/);
  });
}

const senseless: readonly (readonly [step: string, options: LaunchOptions])[] = [
  ['options.guest', { kernel: 'k', guest: 'g' }],
  ['options.format', { kernel: 'k', format: 'elf' }],
  ['options.args', { kernel: 'k', args: [] }],
  ['options.input', { kernel: 'k', input: 'i' }],
  ['options.cpl', { kernel: 'k', cpl: 0 }],
  ['options.name', { kernel: 'k', name: 'n' }],
  ['options.initrd', { initrd: 'i' }],
  ['options.bootProtocol', { bootProtocol: 'pvh' }],
  ['options.bootProtocol', { kernel: 'k', bootProtocol: 'multiboot' as never }],
  ['options.cmdline', { cmdline: 'quiet' }],
  ['options.memoryMib', { kernel: 'k', memoryMib: 14 }],
  ['options.memoryMib', { kernel: 'k', memoryMib: 65538 }],
  ['options.memoryMib', { kernel: 'k', memoryMib: 1536, hugePages: '1G' }],
  ['options.hugePages', { kernel: 'k', hugePages: '4M' as never }],
  ['options.hugePages', { hugePages: '2M' }],
  ['options.vcpus', { vcpus: 2 }],
  ['options.vcpus', { kernel: 'k', vcpus: 0 }],
  ['options.vcpus', { kernel: 'k', vcpus: 33 }],
  ['options.vcpus', { kernel: 'k', vcpus: 1.5 }],
  ['options.kernel', { kernel: '' }],
  ['options.initrd', { kernel: 'k', initrd: 7 as never }],
  ['options.initrd', { kernel: 'k', initrd: [] }],
  ['options.initrd', { kernel: 'k', initrd: Array(8).fill('i') }],
  ['options.initrd[1]', { kernel: 'k', initrd: ['i', ''] }],
  ['options.cmdline', { kernel: 'k', cmdline: 'x'.repeat(2048) }],
  ['options.cmdline', { kernel: 'k', cmdline: 'é'.repeat(1024) }],
  ['options.cmdline', { kernel: 'k', cmdline: 'a\0b' }],
];

for (const [step, options] of senseless) {
  test(`${JSON.stringify(options).slice(0, 50)} is refused: ${step}`, async (t) => {
    t.is((await refused(t, options, 'ERR_CASEMATE_INVALID_OPTION')).step, step);
  });
}

test('huge pages that the host does not have are an error that says where to get them', async (t) => {
  // More than any machine has.
  const options = { kernel: kernel(loop), memoryMib: 65536, hugePages: '1G' } as const;
  const error = await refused(t, options, 'ERR_CASEMATE_HUGE_PAGES');
  t.is(error.step, 'options.hugePages');
  t.regex(error.remedy, /hugepages-1048576kB\/nr_hugepages/);
  t.is((error.cause as NodeJS.ErrnoException).syscall, 'mmap');
});

test('a kernel that is not there is an error about the file', async (t) => {
  t.is((await refused(t, { kernel: '/nonexistent' }, 'ERR_CASEMATE_FILE')).step, 'options.kernel');
  const options = { kernel: kernel(loop), initrd: '/nonexistent' };
  t.is((await refused(t, options, 'ERR_CASEMATE_FILE')).step, 'options.initrd');
  const several = { kernel: kernel(loop), initrd: [Buffer.from('i'), '/nonexistent'] };
  t.is((await refused(t, several, 'ERR_CASEMATE_FILE')).step, 'options.initrd[1]');
});
