import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { launch, type Vm, warmUp } from '../index.js';
import type { BenchOptions } from './args.js';
import { columns } from './format.js';
import { quantile, type Summary, summarise } from './statistics.js';
import { momentsOf, onPath, type Step, StepTable } from './steps.js';

/** What a launch is asked for its time about; nanoseconds. */
interface Measurements {
  /** Call of launch() to the guest's first hypercall. */
  readonly doorbell: number[];
  /** Call of launch() to its promise being resolved. */
  readonly launch: number[];
  /** How long of that the JavaScript thread was busy. */
  readonly busy: number[];
  /** vm.kill() until the monitor has been reaped. */
  readonly kill: number[];
}

const titles: Readonly<Record<keyof Measurements, string>> = {
  doorbell: "to the guest's first hypercall (t0 → t1)",
  launch: 'until launch() resolves (t0 → t2)',
  busy: 'of that, the JavaScript thread is busy',
  kill: 'from kill() until nothing runs any more',
};

/** Launches before the first that counts: Node compiles what it has seen a few times. */
const unmeasured = 5;
/** The network namespace of a VM that has ended is taken down for a while yet. */
const restMs = 20;

/** Measures launches, prints what came out, and returns the exit code for this process. */
export async function bench({ launches, memoryMib, json }: BenchOptions): Promise<number> {
  const options = memoryMib === undefined ? {} : { memoryMib };
  const first = await launch(options);
  const firstLaunch = Number(first.timeline.t2 - first.timeline.t0);
  await first.kill();
  const measured: Measurements = { doorbell: [], launch: [], busy: [], kill: [] };
  const table = new StepTable();
  for (let i = -unmeasured; i < launches; i += 1) {
    await sleep(restMs);
    await warmUp();
    const loop = performance.eventLoopUtilization();
    const vm = await launch(options);
    const busy = performance.eventLoopUtilization(loop).active * 1e6;
    const kill = await timeOfKill(vm);
    if (i < 0) continue;
    const { t0, t1, t2 } = vm.timeline;
    measured.doorbell.push(Number(t1 - t0));
    measured.launch.push(Number(t2 - t0));
    measured.busy.push(Math.round(busy));
    measured.kill.push(kill);
    table.add(momentsOf(vm.timeline));
  }
  process.stdout.write(
    json ? `${benchToJson(firstLaunch, measured, table.steps)}\n` : renderBench(firstLaunch, measured, table.steps),
  );
  return 0;
}

async function timeOfKill(vm: Vm): Promise<number> {
  const asked = process.hrtime.bigint();
  await vm.kill();
  return Number(process.hrtime.bigint() - asked);
}

const names = Object.keys(titles) as (keyof Measurements)[];

function benchToJson(first: number, measured: Measurements, steps: readonly Step[]): string {
  const summaries = names.map((name): [string, Summary] => [name, summarise(measured[name])]);
  return JSON.stringify({
    first,
    ...Object.fromEntries(summaries),
    steps: steps.map((step) => ({
      where: step.place,
      name: step.name,
      beside: !onPath(step),
      start: quantile(step.start, 0.5),
      took: summarise(step.took),
    })),
  });
}

const microseconds = (nanoseconds: number): string => (nanoseconds / 1000).toFixed(0);

const BAR_WIDTH = 40;

function renderBench(first: number, measured: Measurements, steps: readonly Step[]): string {
  const rows = names.map((name) => {
    const values = measured[name];
    const { p50, p90, p99, max } = summarise(values);
    return [titles[name], ...[quantile(values, 0), p50, p90, p99, max].map(microseconds)];
  });
  const ordered = [...steps].sort((left, right) => quantile(left.start, 0.5) - quantile(right.start, 0.5));
  const longest = Math.max(...ordered.filter(onPath).map(({ took }) => quantile(took, 0.5)));
  const stepRows = ordered.map((step) => {
    const took = quantile(step.took, 0.5);
    // What goes on beside a launch's way may be waiting as well as work: no bar.
    const bar = onPath(step) ? '█'.repeat(Math.round((took / longest) * BAR_WIDTH)) || '▏' : '(beside the way)';
    return [
      step.place,
      step.name,
      ...[quantile(step.start, 0.5), took, quantile(step.took, 0.99)].map(microseconds),
      bar,
    ];
  });
  return [
    ...columns(
      [[`${measured.launch.length} launches, µs`, 'least', 'p50', 'p90', 'p99', 'max'], ...rows],
      [1, 2, 3, 4, 5],
    ),
    '',
    ...columns([['where', 'step', 'at µs', 'p50 µs', 'p99 µs', ''], ...stepRows], [2, 3, 4]),
    '',
    `The first launch of this process, which found nothing prepared: ${microseconds(first)} µs.`,
    '',
  ].join('\n');
}
