/** Launches of ours: strict jail, built-in guest, 16 MiB where nothing else is said. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { built, type Effort, inFreshNode, lacks, needsRoot, type Subject } from '../subject.js';

const family = 'launch';
const nothingMissing = () => undefined;

const simple: readonly Subject[] = [
  {
    name: 'launch',
    title: 'one at a time, pools filled',
    family,
    missing: nothingMissing,
    trial: ({ launches }) => inFreshNode({ kind: 'launches', launches }),
  },
  {
    name: 'anywhere',
    title: 'the same, Node on any processor',
    family,
    missing: nothingMissing,
    trial: ({ launches }) => inFreshNode({ kind: 'launches', launches, anywhere: true }),
  },
  {
    name: 'cold',
    title: "a process's first, nothing prepared",
    family,
    missing: nothingMissing,
    trial: () => inFreshNode({ kind: 'cold' }),
  },
  {
    name: 'heap',
    title: 'out of a dirty heap of 1 GiB',
    family,
    missing: nothingMissing,
    trial: ({ launches, smoke }) =>
      inFreshNode(
        { kind: 'launches', launches, heapMib: smoke ? 64 : 1024 },
        { nodeOptions: ['--max-old-space-size=4096'] },
      ),
  },
  {
    name: 'mounts',
    title: 'with 500 more mounts on the host',
    family,
    missing: () => needsRoot() ?? lacks('unshare', 'mount'),
    trial: amongMounts,
  },
  {
    name: 'alive',
    title: 'the 100th VM alive',
    family,
    missing: nothingMissing,
    trial: ({ launches, smoke }) => inFreshNode({ kind: 'launches', launches, alive: smoke ? 9 : 99 }),
  },
];

/** Bind mounts of a folder onto 500 others, in a mount namespace that only this trial has. */
async function amongMounts({ launches, smoke }: Effort) {
  mkdirSync(built(''), { recursive: true });
  const folder = mkdtempSync(built('mounts-'));
  try {
    const lines = Array.from({ length: smoke ? 50 : 500 }, (_, index) => {
      const target = join(folder, String(index));
      mkdirSync(target);
      return `/usr ${target} none bind 0 0`;
    });
    const table = join(folder, 'fstab');
    writeFileSync(table, `${lines.join('\n')}\n`);
    const around = ['unshare', '--mount', 'sh', '-c', 'mount --all --fstab "$0" && exec "$@"', table];
    return await inFreshNode({ kind: 'launches', launches }, { around });
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const sizesMib = [16, 64, 256, 1024, 4096, 16384];

/** What a launch costs by the memory of its guest. */
const sizes = sizesMib.map(
  (memoryMib): Subject => ({
    name: `memory-${memoryMib}`,
    title: `guest memory of ${memoryMib} MiB`,
    family: 'memory',
    every: 2,
    long: memoryMib !== 16 && memoryMib !== 1024,
    missing: nothingMissing,
    trial: ({ launches }) => inFreshNode({ kind: 'launches', launches: Math.min(10, launches), memoryMib }),
  }),
);

/** Many at once. */
const bursts = [10, 100].map(
  (size): Subject => ({
    name: `burst-${size}`,
    title: `${size} at once`,
    family: 'many',
    long: size === 100,
    missing: nothingMissing,
    trial: ({ smoke }) => inFreshNode({ kind: 'burst', size, bursts: smoke || size === 100 ? 1 : 4 }),
  }),
);

/** As many as it goes, on so many processors. */
const rates = (['0', '0,1'] as const).map(
  (processors): Subject => ({
    name: `rate-${processors.length === 1 ? 1 : 2}`,
    title: `launched and killed for 3 s, on ${processors.length === 1 ? 'one processor' : 'two processors'}`,
    family: 'many',
    every: 4,
    missing: () => lacks('taskset'),
    trial: ({ smoke }) =>
      inFreshNode({ kind: 'rate', seconds: smoke ? 0.3 : 3 }, { around: ['taskset', '--cpu-list', processors] }),
  }),
);

const costs: readonly Subject[] = [
  {
    name: 'cpu',
    title: 'what a launch costs the machine',
    family: 'cost',
    missing: nothingMissing,
    trial: ({ launches }) => inFreshNode({ kind: 'cpu', launches }),
  },
  {
    name: 'event-loop',
    title: "what a launch costs Node's event loop",
    family: 'cost',
    every: 2,
    missing: nothingMissing,
    trial: ({ launches }) => inFreshNode({ kind: 'eventLoop', launches }),
  },
  {
    name: 'footprint',
    title: 'a monitor whose guest is paused at its first hypercall',
    family: 'cost',
    every: 4,
    missing: nothingMissing,
    trial: ({ smoke }) => inFreshNode({ kind: 'footprint', launches: smoke ? 1 : 5 }),
  },
  {
    name: 'teardown',
    title: 'until nothing is left',
    family: 'cost',
    every: 2,
    missing: () => needsRoot() ?? lacks('ip'),
    trial: ({ launches, smoke }) => inFreshNode({ kind: 'teardown', launches: smoke ? 1 : Math.min(10, launches) }),
  },
];

export const launchSubjects: readonly Subject[] = [...simple, ...sizes, ...bursts, ...rates, ...costs];
