/**
 * Real kernels, to their init and to their end. CASEMATE_TEST_KERNELS is a folder with `vmlinux*` files and a static
 * `busybox`; where there is a folder `<kernel>.modules`, with pvpanic.ko and pvpanic-mmio.ko in it, a kernel's panic is
 * told by that.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { type LaunchOptions, launch, type Vm, type VmExit } from 'casemate';
import { cpio, type Entry } from 'casemate/image';
import { requires } from '../helpers/index.js';
import { patience } from '../helpers/proc.js';

// One after the other: where kernels can be tested at all, there is seldom memory for many.
const test = requires('kvm', 'kernels').serial;

const folder = process.env.CASEMATE_TEST_KERNELS ?? '';
const kernels =
  folder === '' ? ['any kernel'] : readdirSync(folder).filter((name) => /^vmlinux[^/]*(?<!\.modules)$/.test(name));

/** Says that it runs, does what stands behind `do=` on the command line, and powers off. */
const init = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
alias cat='/bin/busybox cat' grep='/bin/busybox grep' poweroff='/bin/busybox poweroff'
echo "init runs"
case $do in
restart) /bin/busybox reboot -f ;;
panic)
  for module in pvpanic pvpanic-mmio; do [ ! -e /$module.ko ] || /bin/busybox insmod /$module.ko; done
  echo c >/proc/sysrq-trigger ;;
look) cat /proc/interrupts; grep MemTotal /proc/meminfo; cat /proc/cmdline /proc/sys/kernel/random/entropy_avail ;;
flood) i=0; while [ $i -lt 500 ]; do echo "line $i"; i=$((i + 1)); done ;;
echo) while read line; do echo "heard <$line>"; [ "$line" != end ] || break; done ;;
esac
/bin/busybox poweroff -f
`;

const program = (path: string, contents: string | Buffer): Entry => ({ type: 'file', path, mode: 0o755, contents });

/** What a kernel boots; what it does is the last word of its command line. */
function options(kernel: string, task: string, more: LaunchOptions = {}): LaunchOptions {
  const modules = join(folder, `${kernel}.modules`);
  const files = existsSync(modules)
    ? readdirSync(modules).map((name) => program(name, readFileSync(join(modules, name))))
    : [];
  const busybox = readFileSync(join(folder, 'busybox'));
  return {
    kernel: join(folder, kernel),
    initrd: cpio([program('bin/busybox', busybox), ...files, program('init', init)]),
    cmdline: `console=ttyS0 quiet panic=-1 pci=off do=${task}`,
    memoryMib: 256,
    startTimeoutMs: 60_000 * patience,
    timeoutMs: 120_000 * patience,
    ...more,
  };
}

async function boot(kernel: string, task: string, more?: LaunchOptions): Promise<{ output: string; exit: VmExit }> {
  await using vm = await launch(options(kernel, task, more));
  const output = await text(vm.console);
  return { output, exit: await vm.exited };
}

/** Reads a guest's console until it has said this. */
async function says(vm: Vm, words: string): Promise<void> {
  let said = '';
  for await (const chunk of vm.console.iterator({ destroyOnReturn: false })) {
    said += chunk;
    if (said.includes(words)) return;
  }
  throw new Error(`It ended without saying "${words}": ${said}`);
}

for (const kernel of kernels) {
  for (const bootProtocol of ['linux', 'pvh'] as const) {
    test(`${kernel} boots by the protocol '${bootProtocol}' to its init, and powers off`, async (t) => {
      const { output, exit } = await boot(kernel, 'nothing', { bootProtocol });
      t.regex(output, /init runs/);
      t.deepEqual(exit, { reason: 'poweroff' });
    });
  }

  test(`${kernel} restarts, which is its end`, async (t) => {
    t.deepEqual((await boot(kernel, 'restart')).exit, { reason: 'reboot' });
  });

  test(`${kernel} without an init panics, and ends by panic=-1`, async (t) => {
    const { exit } = await boot(kernel, 'nothing', { initrd: cpio([{ type: 'directory', path: 'empty' }]) });
    t.deepEqual(exit, { reason: 'reboot' });
  });

  if (existsSync(join(folder, `${kernel}.modules`))) {
    test(`${kernel} says that it panics, after what it prints about it`, async (t) => {
      const { output, exit } = await boot(kernel, 'panic');
      t.regex(output, /Kernel panic - not syncing/);
      t.is(exit.reason, 'panic');
    });
  }

  test(`${kernel} finds its interrupts, its memory and a random seed`, async (t) => {
    const { output } = await boot(kernel, 'look');
    t.regex(output, /IO-APIC +4-edge +ttyS0/);
    t.regex(output, /pci=off do=look/);
    t.regex(output, /^256\r?$/m); // the random number generator is full
    const kib = Number(/MemTotal: +(\d+) kB/.exec(output)?.[1]);
    t.true(kib > 180 * 1024 && kib < 256 * 1024, `${kib}`);
  });

  test(`${kernel} has memory above 4 GiB, too`, async (t) => {
    const { output } = await boot(kernel, 'look', { memoryMib: 5120 });
    t.true(Number(/MemTotal: +(\d+) kB/.exec(output)?.[1]) > 4800 * 1024);
  });

  test(`${kernel} is typed to, also while nothing else wakes it up`, async (t) => {
    await using vm = await launch(options(kernel, 'echo'));
    await says(vm, 'init runs');
    vm.console.write('hello\n');
    await says(vm, 'heard <hello>');
    await vm.pause();
    await vm.resume();
    vm.console.write(`${'x'.repeat(200)}\nend\n`);
    await says(vm, `heard <${'x'.repeat(200)}>`);
    t.deepEqual(await vm.exited, { reason: 'poweroff' });
  });

  test(`${kernel} prints 500 lines, and all of them are read`, async (t) => {
    const { output } = await boot(kernel, 'flood');
    const lines = output.match(/^line \d+/gm) ?? [];
    t.deepEqual(
      lines,
      Array.from({ length: 500 }, (_, i) => `line ${i}`),
    );
  });
}
