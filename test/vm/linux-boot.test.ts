/** Real kernels, to their init and to their end. test/helpers/linux.ts says where they come from. */
import { launch } from 'casemate';
import { cpio } from 'casemate/image';
import { requires } from '../helpers/index.js';
import { linux, says, testKernels } from '../helpers/linux.js';
import { run } from '../helpers/vm.js';

// One after the other: where kernels can be tested at all, there is seldom memory for many.
const test = requires('kvm', 'kernels').serial;

for (const kernel of testKernels) {
  for (const form of ['vmlinuz', 'vmlinux'] as const) {
    for (const bootProtocol of ['linux', 'pvh'] as const) {
      test(`${kernel.name}, ${form}, boots by '${bootProtocol}' to its init, and powers off`, async (t) => {
        const script = 'uname -r; dmesg | grep "unchecked MSR"';
        const { output, exit } = await run(linux(script, { on: kernel, kernel: kernel[form], bootProtocol }));
        t.true(output.split(/\r?\n/).includes(kernel.version), output);
        t.notRegex(output, /unchecked MSR/, 'it wants a register that it is denied');
        t.deepEqual(exit, { reason: 'poweroff' });
      });
    }
  }
}

test('a kernel restarts, which is its end', async (t) => {
  t.deepEqual((await run(linux('reboot -f'))).exit, { reason: 'reboot' });
});

test('a kernel without an init panics, and ends by panic=-1', async (t) => {
  const { exit } = await run(linux('', { initrd: cpio([{ type: 'directory', path: 'empty' }]) }));
  t.deepEqual(exit, { reason: 'reboot' });
});

test('a kernel says that it panics, after what it prints about it', async (t) => {
  const { output, exit } = await run(linux('echo c >/proc/sysrq-trigger', { modules: ['pvpanic-mmio'] }));
  t.regex(output, /Kernel panic - not syncing/);
  t.is(exit.reason, 'panic');
});

test('a kernel finds its interrupts, its memory and a random seed', async (t) => {
  const script =
    'cat /proc/interrupts /proc/cmdline /proc/sys/kernel/random/entropy_avail; grep MemTotal /proc/meminfo';
  const { output } = await run(linux(script, { cmdline: 'console=ttyS0 quiet panic=-1 pci=off what=ever' }));
  t.regex(output, /IO-APIC +4-edge +ttyS0/);
  t.regex(output, /pci=off what=ever/);
  t.regex(output, /^256\r?$/m); // the random number generator is full
  const kib = Number(/MemTotal: +(\d+) kB/.exec(output)?.[1]);
  t.true(kib > 180 * 1024 && kib < 256 * 1024, `${kib}`);
});

test('a kernel has memory above 4 GiB, too', async (t) => {
  const { output } = await run(linux('grep MemTotal /proc/meminfo', { memoryMib: 5120 }));
  t.true(Number(/MemTotal: +(\d+) kB/.exec(output)?.[1]) > 4800 * 1024);
});

test('a kernel is typed to, also while nothing else wakes it up', async (t) => {
  const script = 'echo ready; while read line; do echo "heard <$line>"; [ "$line" != end ] || break; done';
  await using vm = await launch(linux(script));
  await says(vm, 'ready');
  vm.console.write('hello\n');
  await says(vm, 'heard <hello>');
  await vm.pause();
  await vm.resume();
  vm.console.write(`${'x'.repeat(200)}\nend\n`);
  await says(vm, `heard <${'x'.repeat(200)}>`);
  t.deepEqual(await vm.exited, { reason: 'poweroff' });
});

test('a kernel prints 500 lines, and all of them are read', async (t) => {
  const { output } = await run(linux('i=0; while [ $i -lt 500 ]; do echo "line $i"; i=$((i + 1)); done'));
  const lines = output.match(/^line \d+/gm) ?? [];
  t.deepEqual(
    lines,
    Array.from({ length: 500 }, (_, i) => `line ${i}`),
  );
});
