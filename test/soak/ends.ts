/** Workers and whole Nodes that end at random moments of launches, and users who run out of what they may have. */

import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { type NodeOptions, OtherNode } from '../helpers/node.js';
import { childrenOf, ifThere, isAlive, readProc, within } from '../helpers/proc.js';
import { orphansLeft, script } from '../helpers/scripts.js';
import { holds, type Scenario, type Soak } from './soak.js';

const workers: Scenario = {
  title: 'workers that end, or are terminated, at any moment of launches take their VMs along',
  rounds: 200,
  short: 24,
  needs: ['kvm'],
  async run({ rounds, random, done }) {
    const url = new URL('./worker.js', import.meta.url);
    for (let i = 0; i < rounds; ) {
      const ended = Array.from({ length: 4 }, async () => {
        const end = ['run', 'exit', 'throw', 'terminate', 'terminate'][random(5)] as string;
        const worker = new Worker(url, { workerData: { end, launches: 1 + random(6), afterMs: random(12) } });
        let thrown: Error | undefined;
        worker.on('error', (error) => {
          thrown = error;
        });
        // Not once(): that would reject with the error.
        const exited = new Promise<number>((resolve) => worker.on('exit', resolve));
        if (end === 'terminate') {
          await Promise.race([delay(random(150)), exited]);
          await worker.terminate();
        }
        const code = await exited;
        if (end === 'run') holds(code === 0 && thrown === undefined, `A worker ended with ${thrown?.message ?? code}`);
        if (end === 'exit') holds(code === 7, `A worker that exited with 7 ended with ${thrown?.message ?? code}`);
        if (end === 'throw')
          holds(thrown?.message === 'thrown', `A worker that threw ended with ${thrown?.message ?? code}`);
      });
      await Promise.all(ended);
      i += ended.length;
      done(i);
      holds(
        await within(10_000, () => childrenOf('self').filter(isAlive).length === 0),
        'Monitors of workers that are gone still run',
      );
    }
  },
};

/** A Node that launches as fast as it can, with others always under way. */
const busy = `
const keep = async () => { for (;;) { const vm = await launch({ guest: guest('spin') }); setTimeout(() => vm.kill(), 30); } };
for (let i = 0; i < 4; i++) keep();
await launch({ guest: guest('spin') });
tell('busy');
`;

const ways = {
  'process.exit()': { last: 'await delay(MS); process.exit(9);', code: 9, signal: null },
  'an uncaught error': { last: 'setTimeout(() => { throw new Error("uncaught"); }, MS);', code: 1, signal: null },
  'an unhandled rejection': {
    last: 'setTimeout(() => { Promise.reject(new Error("unhandled")); }, MS);',
    code: 1,
    signal: null,
  },
  SIGKILL: { last: '', code: null, signal: 'SIGKILL' },
  SIGTERM: { last: '', code: null, signal: 'SIGTERM' },
} as const;

const nodes: Scenario = {
  title: 'a Node that ends in whatever way, at any moment of launches, takes its monitors along',
  rounds: 100,
  short: 5,
  needs: ['kvm'],
  async run({ rounds, random, done, note }) {
    let longest = 0;
    const names = Object.keys(ways) as (keyof typeof ways)[];
    for (let i = 0; i < rounds; i += 1) {
      const name = names[i % names.length] as keyof typeof ways;
      const { last, code, signal } = ways[name];
      const ms = random(60);
      const ended = await script(busy + last.replace('MS', `${ms}`), (child) => {
        if (signal === null) return;
        once(child.stdout as NodeJS.ReadableStream, 'data').then(() => setTimeout(() => child.kill(signal), ms));
      });
      const since = performance.now();
      holds(ended.told[0] === 'busy', `A Node that was to end by ${name} did not come to it: ${ended.errors}`);
      const how = ended.signal ?? ended.code;
      holds(
        ended.code === code && ended.signal === signal,
        `A Node that was to end by ${name} ended with ${how}: ${ended.errors}`,
      );
      const left = await orphansLeft();
      holds(left.length === 0, `${left.length} monitors outlive a Node that ended by ${name}`);
      longest = Math.max(longest, performance.now() - since);
      done(i + 1);
    }
    note(`their monitors were gone after ${longest.toFixed(0)} ms at most`);
  },
};

/** Launches when told to, one word a line, and tells how it went. */
const onCommand = `
import { createInterface } from 'node:readline';
import { CasemateError, launch } from 'casemate';
tell('ready');
for await (const count of createInterface({ input: process.stdin })) {
  const results = await Promise.allSettled(
    Array.from({ length: Number(count) }, () => launch({ console: 'ignore', kvm: { fd: 3 } })),
  );
  for (const { value } of results) await value?.exited;
  const errors = results.filter(({ reason }) => reason !== undefined).map(({ reason }) => ({
    typed: reason instanceof CasemateError, code: reason.code, message: reason.message,
  }));
  tell(errors);
}
`;

interface Refusal {
  readonly typed: boolean;
  readonly code: string;
  readonly message: string;
}

async function asked(node: OtherNode, count: number): Promise<Refusal[]> {
  node.process.stdin?.write(`${count}\n`);
  const refused = await node.told<Refusal[]>();
  for (const { typed, message } of refused) holds(typed, `A launch failed with ${message}`);
  return refused;
}

/** Launches of another Node, first within a limit that `limit(node, allowed)` sets, then without; what became of the first. */
async function withinLimit(
  soak: Soak,
  options: NodeOptions,
  limit: (node: OtherNode, allowed: number | undefined) => void,
  expected: RegExp,
): Promise<void> {
  const kvm = openSync('/dev/kvm', 'r+');
  const node = new OtherNode(onCommand, { ...options, descriptors: [kvm] });
  closeSync(kvm);
  try {
    await limited(soak, node, (allowed) => limit(node, allowed), expected);
  } finally {
    await node.kill();
  }
}

async function limited(
  { rounds, random, done, note }: Soak,
  node: OtherNode,
  limit: (allowed: number | undefined) => void,
  expected: RegExp,
): Promise<void> {
  let refusals = 0;
  await node.told();
  holds((await asked(node, 4)).length === 0, 'Launches fail without a limit');
  for (let i = 0; i < rounds; i += 1) {
    limit(random(4));
    const refused = await asked(node, 1 + random(6));
    limit(undefined);
    // A user namespace remembers the limits of its maker: those that were made meanwhile, for later, are at theirs.
    const late: Refusal[] = [];
    for (let more = await asked(node, 2); more.length > 0 && late.length < 64; more = await asked(node, 2))
      late.push(...more);
    holds(late.length < 64, `Without the limit again launches fail: ${late.at(-1)?.message}`);
    for (const { code, message } of [...refused, ...late])
      holds(expected.test(message), `At the limit a launch failed with ${code}: ${message}`);
    refusals += refused.length;
    done(i + 1);
  }
  const pid = node.pid;
  holds(
    await within(10_000, () =>
      childrenOf(pid).every((child) => !/casemate-vmm/.test(ifThere(() => readProc(child, 'comm')) ?? '')),
    ),
    'Monitors stay',
  );
  holds(refusals > 0, 'Nothing was ever at its limit');
  note(`${refusals} were refused`);
}

/** A user that nobody else here is, whose processes are only these. */
const user = 61234;

const pids: Scenario = {
  title: 'out of processes, a launch is an error that says so, and works again as soon as there are some',
  rounds: 60,
  short: 6,
  needs: ['kvm', 'userns', 'setpriv'],
  async run(soak) {
    // A user's launcher is processes in a user namespace of their own, which is where theirs are counted.
    const limit = (node: OtherNode, allowed: number | undefined) => {
      const launcher = childrenOf(node.pid);
      for (const pid of launcher) {
        const value = allowed === undefined ? 4096 : launcher.length + allowed;
        const prlimit = ['prlimit', '--pid', String(pid), `--nproc=${value}:`];
        const as = [`--reuid=${user}`, `--regid=${user}`, '--clear-groups'];
        const { status, stderr } = spawnSync('setpriv', [...as, ...prlimit], { encoding: 'utf8' });
        holds(status === 0, `prlimit: ${stderr}`);
      }
    };
    await withinLimit(soak, { uid: user }, limit, /EAGAIN|temporarily unavailable|clone3|fork/i);
  },
};

const namespaces: Scenario = {
  title: 'out of namespaces, a launch is an error that says so, and works again as soon as there are some',
  rounds: 60,
  short: 6,
  needs: ['kvm', 'userns', 'root'],
  async run(soak) {
    // Limits of a user namespace are those of whoever looks at them from inside.
    const limit = (node: OtherNode, allowed: number | undefined) => {
      const write = ['user', 'net', 'mnt', 'pid'].map(
        (kind) => `echo ${allowed === undefined ? 10_000 : 2 + allowed} > /proc/sys/user/max_${kind}_namespaces`,
      );
      const { status, stderr } = spawnSync(
        'nsenter',
        ['--user', '--target', String(node.pid), 'sh', '-c', write.join('; ')],
        { encoding: 'utf8' },
      );
      holds(status === 0, `nsenter: ${stderr}`);
    };
    const through = ['unshare', '--user', '--map-root-user'];
    await withinLimit(soak, { through }, limit, /ENOSPC|no space left|namespace/i);
  },
};

export const ends = { workers, nodes, pids, namespaces };
