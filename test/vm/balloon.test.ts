/** Memory that a Linux guest gives back, as the host sees it. */
import { setTimeout as delay } from 'node:timers/promises';
import { type LaunchOptions, launch, type Vm } from 'casemate';
import { requires } from '../helpers/index.js';
import { kernel, loop, print } from '../helpers/kernels.js';
import { linux, says } from '../helpers/linux.js';
import { statusOf, within } from '../helpers/proc.js';
import { refused } from '../helpers/vm.js';

const test = requires('kvm');
const { serial: testKernels } = requires('kvm', 'kernels');

/** Of the monitor, with its guest: in MiB. */
const memoryOf = (vm: Vm): number => Number.parseInt(statusOf(vm.pid).VmRSS ?? '', 10) / 1024;

/** Fills 96 MiB and says so, and frees them after the next line that is typed. */
const fillAndFree = `
mkdir /tmp
mount -t tmpfs tmp /tmp
dd if=/dev/zero of=/tmp/memory bs=1M count=96 2>/dev/null
echo "it is full"
read line
rm /tmp/memory
echo "it is free"
read line
`;

const modules = ['virtio_mmio', 'virtio_balloon'];

testKernels('what a guest frees goes back to the host by itself', async (t) => {
  await using vm = await launch(linux(fillAndFree, { modules, balloon: true }));
  await says(vm, 'it is full');
  const full = memoryOf(vm);
  t.true(full > 96, `${full}`);
  vm.console.write('\n');
  await says(vm, 'it is free');
  t.true(await within(20_000, () => memoryOf(vm) < full - 64), `${memoryOf(vm)} of ${full}`);
  vm.console.write('\n');
  t.deepEqual(await vm.exited, { reason: 'poweroff' });
});

testKernels('a balloon without reports leaves a guest what it frees', async (t) => {
  await using vm = await launch(linux(fillAndFree, { modules, balloon: { reporting: false } }));
  await says(vm, 'it is full');
  const full = memoryOf(vm);
  vm.console.write('\n');
  await says(vm, 'it is free');
  await delay(5000); // a guest that reports begins after 2 seconds
  t.true(memoryOf(vm) > full - 16, `${memoryOf(vm)} of ${full}`);
});

testKernels('a guest gives memory back on request, takes it again, and says what it has', async (t) => {
  const script =
    'echo begins; read line; dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null && echo "it has memory"';
  await using vm = await launch(linux(script, { modules, balloon: true }));
  await says(vm, 'begins');
  const before = await vm.memory();
  t.is(before.balloonBytes, 0);
  const total = before.statistics?.totalBytes ?? 0;
  t.true(total > 180 * 2 ** 20 && total < 256 * 2 ** 20, `${total}`);
  t.true((before.statistics?.availableBytes ?? 0) > 100 * 2 ** 20);

  const [one, two] = await Promise.all([vm.memory(), vm.memory()]);
  t.is(one, two, 'who asks at the same time has the same answer');

  const holds = async (mib: number): Promise<boolean> => {
    for (let i = 0; i < 200; i += 1) {
      const { balloonBytes, balloonTargetBytes } = await vm.memory();
      t.is(balloonTargetBytes, mib * 2 ** 20);
      if (balloonBytes === mib * 2 ** 20) return true;
      await delay(100);
    }
    return false;
  };
  vm.balloon({ targetMib: 64 });
  t.true(await holds(64));
  const during = await vm.memory();
  t.true((during.statistics?.freeBytes ?? 0) < (before.statistics?.freeBytes ?? 0) - 48 * 2 ** 20);
  vm.balloon({ targetMib: 0 });
  t.true(await holds(0));

  await vm.pause();
  t.like(await vm.memory(), { balloonBytes: 0, statistics: undefined });
  await vm.resume();
  vm.console.write('\n');
  await says(vm, 'it has memory');
  t.deepEqual(await vm.exited, { reason: 'poweroff' });
  t.throws(() => vm.balloon({ targetMib: 1 }), { code: 'ERR_CASEMATE_CLOSED' });
  await t.throwsAsync(vm.memory(), { code: 'ERR_CASEMATE_CLOSED' });
});

testKernels('a balloon that is too large is let out by a guest that needs its memory', async (t) => {
  const script = `echo begins; read line
mkdir /tmp; mount -t tmpfs -o size=200m tmp /tmp; dd if=/dev/zero of=/tmp/memory bs=1M count=64 2>/dev/null && echo "it has memory"`;
  await using vm = await launch(linux(script, { modules, balloon: true }));
  await says(vm, 'begins');
  vm.balloon({ targetMib: 256 }); // all of it
  t.true(await grows(vm, 100));
  vm.console.write('\n');
  await says(vm, 'it has memory');
});

/** Whether the balloon comes to hold so much. */
async function grows(vm: Vm, mib: number): Promise<boolean> {
  for (let i = 0; i < 200; i += 1) {
    if ((await vm.memory()).balloonBytes >= mib * 2 ** 20) return true;
    await delay(100);
  }
  return false;
}

test('without a driver the balloon is empty, and its guest says nothing of its memory', async (t) => {
  await using vm = await launch({ kernel: kernel(print('>'), loop), balloon: true });
  vm.balloon({ targetMib: 8 });
  t.deepEqual(await vm.memory(), { balloonTargetBytes: 2 ** 23, balloonBytes: 0, statistics: undefined });
  t.throws(() => vm.balloon({ targetMib: 257 }), { code: 'ERR_CASEMATE_INVALID_OPTION' });
  const asked = vm.memory();
  await vm.kill();
  await asked.catch((error) => t.is(error.code, 'ERR_CASEMATE_CLOSED'));
});

test('a VM without a balloon has none to be asked about', async (t) => {
  await using vm = await launch({ kernel: kernel(print('>'), loop) });
  t.throws(() => vm.balloon({ targetMib: 8 }), { code: 'ERR_CASEMATE_STATE' });
  await t.throwsAsync(vm.memory(), { code: 'ERR_CASEMATE_STATE' });
});

const senseless: readonly (readonly [step: string, options: LaunchOptions])[] = [
  ['options.balloon', { balloon: true }],
  ['options.balloon', { kernel: kernel(loop), balloon: 7 as never }],
  ['options.balloon.reporting', { kernel: kernel(loop), balloon: { reporting: 1 as never } }],
  ['options.balloon.size', { kernel: kernel(loop), balloon: { size: 1 } as never }],
  ['options.balloon', { kernel: kernel(loop), balloon: true, hugePages: '2M' }],
];

for (const [index, [step, options]] of senseless.entries()) {
  test(`a balloon that makes no sense is refused: ${index}`, async (t) => {
    t.is((await refused(t, options, 'ERR_CASEMATE_INVALID_OPTION')).step, step);
  });
}
