/** What the numbers are held against: ratios within one run. */
import { quantile } from '#lib/cli/statistics.js';
import type { Metric, Results } from './results.js';
import { type Estimate, estimate, type Measure, ratio, type Statistic, valuesOf } from './stats.js';

/** A number of a subject. */
export interface Reference {
  readonly subject: string;
  readonly metric: Metric;
  readonly statistic: Statistic;
}

export interface Target {
  readonly title: string;
  readonly of: Reference;
  /** The denominator; absent: the number itself is held against the limit. */
  readonly against?: Reference;
  /** The denominator is multiplied by this. */
  readonly times?: (results: Results) => number;
  readonly limit: number;
  /** The same of the floor: what no launch here can go below. Absent: the floor has no such thing, or is the denominator. */
  readonly floor?: { readonly of: Reference; readonly against: Reference };
}

const of = (subject: string, metric: Metric, statistic: Statistic = 0.5): Reference => ({ subject, metric, statistic });

export const targets: readonly Target[] = [
  { title: 't0 → t1, p50, against the jailed floor', of: of('launch', 't1'), against: of('floor', 't1'), limit: 1.15 },
  {
    title: 't0 → t1, p99, against the p99 of the jailed floor',
    of: of('launch', 't1', 0.99),
    against: of('floor', 't1', 0.99),
    limit: 1.5,
  },
  {
    title: 'against bubblewrap, start to end of a do-nothing program',
    of: of('launch', 't1'),
    against: of('bubblewrap', 'ended'),
    limit: 0.3,
    floor: { of: of('floor', 't1'), against: of('bubblewrap', 'ended') },
  },
  {
    title: 'against bubblewrap, start to first instruction of a program',
    of: of('launch', 't1'),
    against: of('bubblewrap', 't1'),
    limit: 0.3,
    floor: { of: of('floor', 't1'), against: of('bubblewrap', 't1') },
  },
  {
    title: 'against crun, start to end of a do-nothing program',
    of: of('launch', 't1'),
    against: of('crun', 'ended'),
    limit: 0.12,
    floor: { of: of('floor', 't1'), against: of('crun', 'ended') },
  },
  {
    title: 'against crun, start to first instruction of a program',
    of: of('launch', 't1'),
    against: of('crun', 't1'),
    limit: 0.12,
    floor: { of: of('floor', 't1'), against: of('crun', 't1') },
  },
  {
    title: 'against QEMU microvm, until the doorbell is heard of',
    of: of('launch', 't2'),
    against: of('qemu', 't2'),
    limit: 0.05,
    floor: { of: of('floor', 't2'), against: of('qemu', 't2') },
  },
  {
    title: 'out of a heap of 1 GiB, against a small one',
    of: of('heap', 't1'),
    against: of('launch', 't1'),
    limit: 1.1,
  },
  { title: 'with 500 mounts more, against without', of: of('mounts', 't1'), against: of('launch', 't1'), limit: 1.1 },
  { title: 'the 100th VM alive, against the first', of: of('alive', 't1'), against: of('launch', 't1'), limit: 1.1 },
  {
    title: '100 at once, p50, against 100 × the CPU time of one, over all processors',
    of: of('burst-100', 't2'),
    against: of('cpu', 'cpu', 'mean'),
    times: ({ processors }) => 100 / processors,
    limit: 1.5,
  },
  {
    title: 'guest memory of 1 GiB, against 16 MiB',
    of: of('memory-1024', 't1'),
    against: of('memory-16', 't1'),
    limit: 1.2,
    floor: { of: of('floor-memory-1024', 't1'), against: of('floor', 't1') },
  },
  { title: 'JS thread busy, of t0 → t2', of: of('launch', 'busyShare'), limit: 0.2 },
  { title: 't1 → t2, of t0 → t2', of: of('launch', 'newsShare'), limit: 0.1 },
  { title: 'memory of a monitor beside guest RAM, bytes', of: of('footprint', 'monitorMemory'), limit: 2 ** 20 },
  {
    title: 'execve of the monitor to its first instruction, against a do-nothing program',
    of: of('launch', 'exec'),
    against: of('nothing', 'exec'),
    limit: 1.3,
  },
];

/**
 * What a run says about a target. `'close'`: it holds, but the interval of the number contains the limit. `'unsure'`:
 * the machine was busy, and the fastest launches say otherwise than the median.
 */
export type Verdict = 'holds' | 'close' | 'misses' | 'unsure';

export interface Judgement {
  readonly target: Target;
  /** The same of the fastest tenth of the launches: what a machine with nothing else to do says of a median. */
  readonly undisturbed: number | undefined;
  /** undefined where it was not measured; `why` then says so. */
  readonly found: Estimate | undefined;
  readonly verdict: Verdict | undefined;
  readonly why: string | undefined;
  /** What the floor has of this: see {@link Target.floor}. */
  readonly floor: number | undefined;
}

function measureOf({ subjects }: Results, { subject, metric, statistic }: Reference): Measure {
  return { subject: subjects[subject] ?? { title: subject, family: '', trials: [] }, metric, statistic };
}

function judge(results: Results, target: Target): Judgement {
  const upper = measureOf(results, target.of);
  const lower = target.against && measureOf(results, target.against);
  const times = target.times?.(results) ?? 1;
  const plain = lower === undefined ? estimate(upper) : ratio(upper, lower);
  const missing = [target.of.subject, target.against?.subject].find(
    (name) => name !== undefined && (results.subjects[name]?.trials.length ?? 0) === 0,
  );
  const why = missing && `${missing}: ${results.subjects[missing]?.skipped ?? 'not measured'}`;
  const floor =
    target.floor && ratio(measureOf(results, target.floor.of), measureOf(results, target.floor.against))?.value;
  if (plain === undefined) return { target, undisturbed: undefined, found: undefined, verdict: undefined, why, floor };
  const medians = upper.statistic === 0.5 && lower?.statistic === 0.5;
  const fastest = medians ? ratio({ ...upper, statistic: 0.1 }, { ...lower, statistic: 0.1 })?.value : undefined;
  const found = { value: plain.value / times, low: plain.low / times, high: plain.high / times };
  const close = found.low <= target.limit && found.high > target.limit;
  const misses = found.value > target.limit;
  const unsure = fastest !== undefined && fastest > target.limit !== misses && disturbed(results) !== undefined;
  const verdict = unsure ? 'unsure' : misses ? 'misses' : close ? 'close' : 'holds';
  return { target, undisturbed: fastest, found, verdict, why, floor };
}

/**
 * What is to be said of a run whose machine had other things to do. Where nothing else runs, the floor's median is
 * 1.1 × the time of its fastest tenth.
 */
export function disturbed({ subjects }: Results): string | undefined {
  const times = valuesOf(subjects.floor?.trials ?? [], 't1');
  const found = quantile(times, 0.5) / quantile(times, 0.1);
  if (!(found >= 1.5)) return undefined;
  return (
    `The machine was busy with something else: the median of the floor is ${found.toFixed(1)} × that of its fastest ` +
    'tenth. Read the ratios of the fastest tenth, or measure again.'
  );
}

/** Holds a run against all targets. */
export function judgeAll(results: Results): Judgement[] {
  return targets.map((target) => judge(results, target));
}
