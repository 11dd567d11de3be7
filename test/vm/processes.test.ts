/** Node processes that end, one way or another, while VMs run or are being launched. */
import { once } from 'node:events';
import type { Readable } from 'node:stream';
import { requires } from '../helpers/index.js';
import { isAlive, within } from '../helpers/proc.js';
import { orphansLeft, script } from '../helpers/scripts.js';

const test = requires('kvm');

/** Three VMs that run, whose process ids are told, and launches under way. */
const busy = `
const vms = await Promise.all([1, 2, 3].map(() => launch({ guest: guest('spin') })));
tell(vms.map(({ pid }) => pid));
const launches = Array.from({ length: 6 }, () => launch({ guest: guest('echo') }));
`;

const exits: readonly (readonly [when: string, source: string])[] = [
  ['while VMs run', 'const vm = await launch({ guest: guest("spin") }); tell([vm.pid]);'],
  ['while VMs run and others are launched', busy],
  ['while VMs are launched, at once', 'launch(); launch(); launch(); tell([]);'],
  ['while VMs are launched, a turn later', 'launch(); launch(); launch(); tell([]); await immediate();'],
  ['while VMs are launched, a millisecond later', 'launch(); launch(); launch(); tell([]); await delay(1);'],
  [
    'while VMs are launched, as one of them is there',
    'const three = [launch(), launch(), launch()]; tell([(await three[0]).pid]);',
  ],
  ['while more is launched than there are hands', 'for (let i = 0; i < 50; i++) launch(); tell([]); await delay(5);'],
  [
    'while a VM is paused and its console is full',
    `
    const vm = await launch({ guest: guest('flood'), args: ['8'] });
    vm.console.write(Buffer.alloc(1 << 20));
    vm.console.on('readable', () => {});
    await vm.pause();
    tell([vm.pid]);
    vm.resume();`,
  ],
];

for (const [when, source] of exits) {
  test.serial(`process.exit() ${when}: the code is kept, nothing crashes, no monitor stays`, async (t) => {
    for (let round = 0; round < 3; round += 1) {
      const { code, signal, told, errors } = await script(`${source}\nprocess.exit(${40 + round});`);
      t.deepEqual({ code, signal, errors }, { code: 40 + round, signal: null, errors: '' });
      const pids = told[0] as number[];
      t.true(await within(10_000, () => !pids.some(isAlive)));
      t.deepEqual(await orphansLeft(), []);
    }
  });
}

for (const signal of ['SIGKILL', 'SIGTERM', 'SIGINT'] as const) {
  test.serial(`a Node that ends by ${signal} takes its monitors along`, async (t) => {
    const ended = await script(busy, (child) => {
      once(child.stdout as Readable, 'data').then(() => child.kill(signal));
    });
    t.deepEqual([ended.code, ended.signal, ended.errors], [null, signal, '']);
    const pids = ended.told[0] as number[];
    t.is(pids.length, 3);
    t.true(await within(10_000, () => !pids.some(isAlive)));
    t.deepEqual(await orphansLeft(), []);
  });
}

test.serial('an uncaught exception ends Node as ever, and its monitors with it', async (t) => {
  const { code, signal, told, errors } = await script(`${busy}\nthrow new Error('nobody caught me');`);
  t.deepEqual([code, signal], [1, null]);
  t.regex(errors, /^Error: nobody caught me$/m);
  const pids = told[0] as number[];
  t.true(await within(10_000, () => !pids.some(isAlive)));
  t.deepEqual(await orphansLeft(), []);
});

test.serial('a Node whose VM has ended exits by itself, whatever was asked for or left unread', async (t) => {
  const { code, signal, told, errors } = await script(`
    const controller = new AbortController();
    const vm = await launch({
      guest: guest('info'), timeoutMs: 600_000, startTimeoutMs: 600_000, signal: controller.signal,
    });
    vm.console.once('readable', () => {});
    vm.on('exit', (exit) => tell(exit));
  `);
  t.deepEqual(
    { code, signal, told, errors },
    { code: 0, signal: null, told: [{ reason: 'exit', code: 0 }], errors: '' },
  );
});

test.serial('a VM that runs keeps its Node alive', async (t) => {
  const { code, told } = await script(`
    const vm = await launch({ guest: guest('spin') });
    vm.exited.then((exit) => tell(exit));
    setTimeout(() => vm.kill(), 100).unref();
  `);
  t.deepEqual([code, told], [0, [{ reason: 'killed' }]]);
});

test.serial(
  'a listener that throws is an uncaught exception, and the VM goes on for those who survive it',
  async (t) => {
    const { code, told, errors } = await script(`
    process.on('uncaughtException', ({ message }) => tell(message));
    const vm = await launch({ guest: guest('spin') });
    vm.on('paused', () => { throw new Error('from paused'); });
    vm.on('exit', () => { throw new Error('from exit'); });
    await vm.pause();
    await vm.resume();
    tell(vm.state);
    await vm.kill();
    tell(vm.state);
  `);
    t.deepEqual([code, errors], [0, '']);
    t.deepEqual(told, ['from paused', 'running', 'exited', 'from exit']);
  },
);
