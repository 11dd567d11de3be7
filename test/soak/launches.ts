/** Many launches in one process, and launches that get into trouble. */
import { closeSync, openSync, readdirSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import { setTimeout as delay, setImmediate as immediate } from 'node:timers/promises';
import { CasemateError, launch, type Vm, warmUp } from 'casemate';
import { flat, guest } from '../helpers/guests.js';
import { childrenOf, cpuTimeOf, ifThere, isAlive, patience, readProc, within } from '../helpers/proc.js';
import { comesToRest } from '../helpers/vm.js';
import { holds, killAll, launchOrError, type Scenario } from './soak.js';

const mebi = 2 ** 20;

/** After a while in which nothing is asked for, what is held is what is needed. */
async function memory(): Promise<{ heap: number; resident: number; maps: number }> {
  await warmUp();
  for (let i = 0; i < 3; i += 1) {
    globalThis.gc?.();
    await delay(20);
  }
  const { heapUsed, external, rss } = process.memoryUsage();
  return { heap: heapUsed + external, resident: rss, maps: readProc('self', 'maps').split('\n').length };
}

const inRow: Scenario = {
  title: 'launches in a row grow nothing: no descriptor, process, namespace, mapping or memory of Node',
  rounds: 5000,
  short: 100,
  needs: ['kvm'],
  async run({ rounds, done, note }) {
    const launchOne = async (i: number) => {
      const vm = await launch({ guest: guest('info'), args: [`${i}`] });
      if (i % 2 === 0) holds((await text(vm.console)).includes(`argument ${i}\n`), 'A guest did not get its argument');
      const exit = await vm.exited;
      holds(exit.reason === 'exit' && exit.code === 0, `A guest ended with ${JSON.stringify(exit)}`);
    };
    // A fifth of them first: what a process keeps that has done this for a while is no growth.
    const settled = Math.floor(rounds / 5);
    for (let i = 0; i < settled; i += 1) await launchOne(i);
    const before = await memory();
    for (let i = settled; i < rounds; i += 1) {
      await launchOne(i);
      done(i);
    }
    const after = await memory();
    const grown = (what: keyof typeof before) => after[what] - before[what];
    note(`heap ${(grown('heap') / mebi).toFixed(1)} MiB, resident ${(grown('resident') / mebi).toFixed(1)} MiB more`);
    holds(grown('heap') < 2 * mebi, `The heap has grown by ${grown('heap')} bytes`);
    holds(grown('resident') < 24 * mebi, `Node has grown by ${grown('resident')} bytes`);
    holds(grown('maps') < 32, `Node has ${grown('maps')} mappings more`);
  },
};

const aborted: Scenario = {
  title: 'a launch aborted at any moment rejects with an AbortError, or is a VM that is killed',
  rounds: 1000,
  short: 100,
  needs: ['kvm'],
  async run({ rounds, random, done, note }) {
    let late = 0;
    for (let i = 0; i < rounds; ) {
      const batch = 1 + random(6);
      await Promise.all(
        Array.from({ length: batch }, async () => {
          const controller = new AbortController();
          const microseconds = random(6000);
          const names = ['spin', 'silent', 'flood', 'exit'] as const;
          const outcome = launch({
            guest: guest(names[random(4)] as string),
            args: ['1'],
            signal: controller.signal,
          }).then(
            (vm) => vm,
            (error: unknown) => error as Error,
          );
          const until = performance.now() + microseconds / 1000;
          while (performance.now() < until) await immediate();
          controller.abort();
          const result = await outcome;
          if (result instanceof Error) {
            holds(result.name === 'AbortError', `An aborted launch rejected with ${result.name}: ${result.message}`);
            return;
          }
          late += 1;
          const { reason } = await result.exited;
          holds(reason === 'killed' || reason === 'exit', `An aborted VM ended with ${reason}`);
        }),
      );
      i += batch;
      done(i);
    }
    note(`${late} were VMs by then`);
  },
};

const atOnce: Scenario = {
  title: 'launches at once, 64 and 256, are as many VMs, each with a console and an end of its own',
  rounds: 10,
  short: 2,
  needs: ['kvm'],
  async run({ rounds, done }) {
    for (let i = 0; i < rounds; i += 1) {
      const count = i % 2 === 0 ? 64 : 256;
      const vms = await Promise.all(Array.from({ length: count }, () => launch({ guest: guest('echo') })));
      holds(new Set(vms.map(({ pid }) => pid)).size === count, 'Two VMs have one monitor');
      const said = await Promise.all(
        vms.map(async (vm) => {
          vm.console.end(`I am ${vm.id}`);
          return (await text(vm.console)) === `I am ${vm.id}` && (await vm.exited).reason === 'exit';
        }),
      );
      holds(said.every(Boolean), `${said.filter((one) => !one).length} of ${count} VMs did not say who they are`);
      done(i + 1);
    }
  },
};

const bursts: Scenario = {
  title: 'launches that find the pools of namespaces empty are launched as well',
  rounds: 60,
  short: 4,
  needs: ['kvm'],
  async run({ rounds, random, done }) {
    for (let i = 0; i < rounds; i += 1) {
      const vms = await Promise.all(Array.from({ length: 10 + random(60) }, () => launch({ console: 'ignore' })));
      // Not waited for: the next burst comes while these are taken down, and nothing has been filled.
      if (i % 3 !== 0) await killAll(vms);
      else for (const vm of vms) vm.kill();
      done(i + 1);
    }
  },
};

const descriptors: Scenario = {
  title: 'out of descriptors, a launch is an error that says so, and works again as soon as there are some',
  rounds: 200,
  short: 30,
  needs: ['kvm'],
  async run({ rounds, random, done, note }) {
    let refused = 0;
    // What is loaded at the first error of its kind wants descriptors itself.
    await launchOrError({ guest: '/nonexistent' });
    for (let i = 0; i < rounds; i += 1) {
      const free = random(40);
      const taken: number[] = [];
      try {
        for (;;) taken.push(openSync('/dev/null', 'r'));
      } catch (error) {
        holds((error as NodeJS.ErrnoException).code === 'EMFILE', `Descriptors ended with ${String(error)}`);
      }
      for (const fd of taken.splice(0, free)) closeSync(fd);
      const results = await Promise.all(
        Array.from({ length: 1 + random(3) }, () => launchOrError({ guest: guest('spin') })),
      );
      for (const fd of taken) closeSync(fd);
      for (const result of results) {
        if (!(result instanceof CasemateError)) continue;
        refused += 1;
        const cause = `${result.message} ${String((result.cause as Error | undefined)?.message)}`;
        holds(/EMFILE|too many open files/i.test(cause), `Out of descriptors, a launch failed with ${cause}`);
      }
      await killAll(results.filter((result): result is Vm => !(result instanceof CasemateError)));
      const vm = await launch({ console: 'ignore' });
      await vm.exited;
      done(i + 1);
    }
    holds(refused > 0, 'There were always enough descriptors');
    note(`${refused} were refused`);
  },
};

/**
 * Whether it is a monitor, or is to be one. Those that the launcher makes namespaces with have no pid namespace of their
 * own; one of these, stopped, would have the launcher wait for ever.
 */
const isFirstOfNamespace = (pid: number): boolean =>
  /^NSpid:\t\d+\t1$/m.test(ifThere(() => readProc(pid, 'status')) ?? '');

const stopped: Scenario = {
  title: 'a monitor that is stopped is waited for as long as its time, and is killed as any other',
  rounds: 100,
  short: 10,
  needs: ['kvm'],
  async run({ rounds, random, done, note }) {
    let early = 0;
    for (let i = 0; i < rounds; i += 1) {
      // One that runs, whose commands are under way.
      const vm = await launch({ guest: guest('spin') });
      process.kill(vm.pid, 'SIGSTOP');
      const paused = vm.pause().catch((error: unknown) => (error as CasemateError).code);
      const { reason } = await vm.kill();
      holds(reason === 'killed' && !isAlive(vm.pid), `A stopped monitor ended with ${reason}`);
      const answer = await paused;
      holds(answer === undefined || answer === 'ERR_CASEMATE_CLOSED', `Its pause ended with ${answer}`);

      // And one that is stopped at some moment of its start.
      const others = new Set(childrenOf('self'));
      const launching = launchOrError({ guest: guest('spin'), startTimeoutMs: 200 * patience });
      let pid: number | undefined;
      await within(1000, () => {
        pid = childrenOf('self').find((child) => !others.has(child) && isFirstOfNamespace(child));
        return pid !== undefined;
      });
      for (const until = performance.now() + random(1500) / 1000; performance.now() < until; );
      if (pid !== undefined && isAlive(pid)) process.kill(pid, 'SIGSTOP');
      const result = await launching;
      if (result instanceof CasemateError) {
        early += 1;
        holds(result.code === 'ERR_CASEMATE_TIMEOUT', `The launch of a stopped monitor failed with ${result.message}`);
      } else {
        await result.kill();
      }
      done(i + 1);
    }
    note(`${early} were stopped before they had started`);
  },
};

const unread: Scenario = {
  title: 'consoles that nobody reads hold up their guests, and neither Node nor other VMs',
  rounds: 20,
  short: 2,
  needs: ['kvm'],
  async run({ rounds, done }) {
    for (let i = 0; i < rounds; i += 1) {
      const floods = await Promise.all(
        Array.from({ length: 24 }, () => launch({ guest: guest('flood'), args: ['4'] })),
      );
      const before = process.memoryUsage().rss;
      await delay(30);
      const vm = await launch({ guest: guest('upper') });
      vm.console.end('still here');
      holds((await text(vm.console)) === 'STILL HERE', 'A VM beside them did not answer');
      const grown = process.memoryUsage().rss - before;
      holds(grown < 64 * mebi, `Node holds ${grown} bytes that nobody reads`);
      holds(
        floods.every(({ state }) => state === 'running'),
        'A guest went on though nobody reads',
      );
      const [first, ...rest] = floods;
      let size = 0;
      for await (const chunk of first?.console ?? []) size += chunk.length;
      holds(size === 4 * mebi, `${size} bytes were read of one that waited`);
      await killAll(rest);
      done(i + 1);
    }
  },
};

/** out 0xe0, eax; from 8 MiB on, each page is written: mov eax, 8 << 20; mov [rax], al; add rax, 0x1000; jmp to the mov */
const hungry = flat('e7e0 b800008000 8800 480500100000 ebf6');

const memoryOut: Scenario = {
  title: 'VMs out of memory end as such, and none beside them',
  rounds: 50,
  short: 5,
  needs: ['kvm', 'limits'],
  async run({ rounds, done }) {
    for (let i = 0; i < rounds; i += 1) {
      await using beside = await launch({ guest: guest('spin') });
      const vms = await Promise.all(
        Array.from({ length: 4 }, () => launch({ guest: hungry, memoryMib: 256, limits: { memoryMib: 32 } })),
      );
      for (const { exited } of vms) {
        const { reason } = await exited;
        holds(reason === 'out-of-memory', `A VM out of memory ended with ${reason}`);
      }
      holds(beside.state === 'running' && readdirSync(`/proc/${beside.pid}/task`).length > 0, 'One beside them ended');
      done(i + 1);
    }
  },
};

const exits: Scenario = {
  title: 'guests that leave their processor by the million end like any other, and one beside them pays for none of it',
  // Of 20,000 exits each.
  rounds: 250,
  short: 2,
  needs: ['kvm'],
  async run({ rounds, done, note }) {
    await using beside = await launch({ guest: guest('echo') });
    holds(await comesToRest(beside), 'The one beside them does not wait');
    const before = cpuTimeOf(beside.pid);
    const begun = performance.now();
    for (let i = 0; i < rounds; i += 1) {
      const vm = await launch({ guest: guest('hostile'), args: Array<string>(4).fill('exits') });
      const counts = (await text(vm.console)).trim().split('\n').map(Number);
      const { reason } = await vm.exited;
      holds(reason === 'exit', `A guest ended with ${reason}`);
      holds(counts.length === 4 && counts.every((count) => count === 5000), `A guest counted ${counts}`);
      done(i + 1);
    }
    note(`${(((performance.now() - begun) * 1000) / (rounds * 20_000)).toFixed(1)} µs each`);
    holds(cpuTimeOf(beside.pid) === before, 'The one beside them had the processor meanwhile');
  },
};

export const launches = {
  'in-a-row': inRow,
  abort: aborted,
  'at-once': atOnce,
  bursts,
  descriptors,
  stopped,
  unread,
  memory: memoryOut,
  exits,
};
