/** VMs of worker threads. Each test is a Node of its own: what goes wrong here is a crash. */
import { requires } from '../helpers/index.js';
import { script } from '../helpers/scripts.js';

const test = requires('kvm');

/** A worker that runs a module which finds what scripts find, and `post`. */
const workers = `
const inWorker = \`
import { once } from 'node:events';
import { parentPort } from 'node:worker_threads';
import { text } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';
import { launch } from '\${import.meta.resolve('casemate')}';
import { guest } from '\${import.meta.resolve('${new URL('../helpers/guests.js', import.meta.url)}')}';
const post = (value) => parentPort.postMessage(value);
\`;
const start = (source) => {
  const code = encodeURIComponent(inWorker + source);
  return new Worker(new URL('data:text/javascript,' + code), { execArgv: [] });
};
const said = (worker) => new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
`;

const fine = { code: 0, signal: null, errors: '' };

test.serial('several workers and the main thread launch VMs at once', async (t) => {
  const ended = await script(`${workers}
    const source = (me) => \`
      const launchOne = async (i) => {
        const vm = await launch({ guest: guest('upper') });
        vm.console.end('worker \${me} number ' + i);
        return text(vm.console);
      };
      post(await Promise.all([1, 2, 3].map(launchOne)));
    \`;
    const all = [1, 2, 3, 4].map((me) => said(start(source(me))));
    const own = launch({ guest: guest('exit'), args: ['9'] }).then((vm) => vm.exited);
    for (const words of all) tell(await words);
    tell(await own);
  `);
  t.like(ended, fine);
  const of = (me: number) => [1, 2, 3].map((i) => `WORKER ${me} NUMBER ${i}`);
  t.deepEqual(ended.told, [of(1), of(2), of(3), of(4), { reason: 'exit', code: 9 }]);
});

test.serial(
  'each environment that launches holds one VM for the host’s static keys, and its monitors have only their own',
  async (t) => {
    const ended = await script(`${workers}
    const held = (pid) => [...descriptorsOf(pid).values()].filter((target) => target.includes('kvm-vm')).length;
    const vms = [await launch({ guest: guest('spin') }), await launch({ guest: guest('spin') })];
    tell([held('self'), ...vms.map(({ pid }) => held(pid))]);
    for (const vm of vms) await vm.kill();
    const worker = start("post((await launch({ guest: guest('exit') }).then((vm) => vm.exited)).reason); setInterval(() => {}, 1e6)");
    tell([await said(worker), held('self')]);
    await worker.terminate();
    tell(held('self'));
  `);
    t.like(ended, fine);
    t.deepEqual(ended.told, [[1, 1, 1], ['exit', 2], 1]);
  },
);

test.serial('a worker terminated while its VMs run takes them along, and nobody else', async (t) => {
  const ended = await script(`${workers}
    const own = await launch({ guest: guest('echo') });
    const more = await added(async () => {
      for (let round = 0; round < 10; round++) {
        const worker = start(\`
          const vms = await Promise.all([1, 2, 3].map(() => launch({ guest: guest('spin') })));
          post(vms.map(({ pid }) => pid));
        \`);
        const pids = await said(worker);
        if (!pids.every(isAlive)) throw new Error('they do not run');
        await worker.terminate();
        if (!(await within(10_000, () => !pids.some(isAlive)))) throw new Error('they still run');
      }
    });
    tell(more);
    own.console.end('unharmed');
    for await (const chunk of own.console) tell(String(chunk));
    tell(await own.exited);
  `);
  t.like(ended, fine);
  t.deepEqual(ended.told, [[], 'unharmed', { reason: 'exit', code: 0 }]);
});

test.serial('a worker terminated at any moment of its launches leaves nothing behind', async (t) => {
  const ended = await script(`${workers}
    tell(await added(async () => {
      for (let round = 0; round < 24; round++) {
        const worker = start(\`
          for (let i = 0; i < 6; i++) launch({ guest: guest('spin'), input: new Uint8Array(4096) }).catch(() => {});
          post('launching');
        \`);
        await said(worker);
        if (round % 4 > 0) await delay(round / 4);
        await worker.terminate();
      }
    }));
  `);
  t.like(ended, fine);
  t.deepEqual(ended.told, [[]]);
});

test.serial('a worker that has a hand in everything at once can be terminated', async (t) => {
  const ended = await script(`${workers}
    tell(await added(async () => {
      for (let round = 0; round < 10; round++) {
        const worker = start(\`
          const vms = await Promise.all(['spin', 'echo', 'flood'].map((name) => launch({ guest: guest(name), args: ['8'] })));
          const [spin, echo, flood] = vms;
          const turn = async () => { for (;;) { await spin.pause(); await spin.resume(); } };
          const talk = async () => {
            echo.console.resume();
            for (;;) if (!echo.console.write(Buffer.alloc(65536))) await once(echo.console, 'drain');
          };
          flood.console.once('readable', () => {});
          turn().catch(() => {});
          talk().catch(() => {});
          launch({ guest: guest('silent') }).catch(() => {});
          const next = launch({ guest: guest('exit') });
          await delay(\${round});
          post('busy');
        \`);
        await said(worker);
        await worker.terminate();
      }
    }));
  `);
  t.like(ended, fine);
  t.deepEqual(ended.told, [[]]);
});

test.serial('a worker that ends by process.exit(), or by an error, takes its VMs along', async (t) => {
  const ended = await script(`${workers}
    tell(await added(async () => {
      for (const last of ['process.exit(5);', 'throw new Error("thrown");', 'launch(); launch(); process.exit(6);']) {
        const worker = start(\`
          const vms = await Promise.all([1, 2].map(() => launch({ guest: guest('spin') })));
          post(vms.map(({ pid }) => pid));
          \${last}
        \`);
        worker.on('error', ({ message }) => tell(message));
        const exited = new Promise((resolve) => worker.once('exit', resolve));
        // Not said(): messages and errors come by two ports, and the error may overtake what was posted before it.
        const pids = await new Promise((resolve) => worker.once('message', resolve));
        tell(await exited);
        if (!(await within(10_000, () => !pids.some(isAlive)))) throw new Error('they still run');
      }
    }));
  `);
  t.like(ended, fine);
  const once = [5, 'thrown', 1, 6];
  t.deepEqual(ended.told, [...once, ...once, []]);
});

test.serial('a worker whose VMs have ended ends by itself', async (t) => {
  const ended = await script(`${workers}
    const worker = start(\`
      const vm = await launch({ guest: guest('info'), timeoutMs: 600_000 });
      post(await vm.exited);
    \`);
    const exited = once(worker, 'exit');
    tell(await said(worker));
    tell(await exited);
  `);
  t.like(ended, { ...fine, told: [{ reason: 'exit', code: 0 }, [0]] });
});

test.serial('process.exit() while workers run VMs and launch others ends all of them', async (t) => {
  for (let round = 0; round < 5; round += 1) {
    const ended = await script(`${workers}
      const all = [1, 2].map(() => start(\`
        const vms = await Promise.all([1, 2].map(() => launch({ guest: guest('spin') })));
        post(vms.map(({ pid }) => pid));
        for (let i = 0; i < 4; i++) launch({ guest: guest('echo') }).catch(() => {});
      \`));
      const pids = (await Promise.all(all.map(said))).flat();
      tell(pids);
      process.exit(17);
    `);
    t.like(ended, { ...fine, code: 17 });
    t.is((ended.told[0] as number[]).length, 4);
  }
});
