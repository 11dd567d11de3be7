/** Percentiles, and how sure one may be of them. */
import { createHistogram } from 'node:perf_hooks';
import { mean, quantile } from '#lib/cli/statistics.js';
import type { Metric, SubjectResult, Trial } from './results.js';

/** A number that is taken of many: a quantile (0.5 is the median), or the mean. */
export type Statistic = number | 'mean';

/** A value, and between which values it lies with the given confidence. */
export interface Estimate {
  readonly value: number;
  readonly low: number;
  readonly high: number;
}

function statisticOf(values: readonly number[], statistic: Statistic): number {
  return statistic === 'mean' ? mean(values) : quantile(values, statistic);
}

/**
 * The whole distribution in few numbers, `[share, value]`: Node's own HdrHistogram, at four significant digits, read
 * at ever finer steps towards its end.
 */
export function percentileCurve(values: readonly number[]): [share: number, value: number][] {
  const whole = values.map(Math.round).filter((value) => value >= 1);
  if (whole.length === 0) return [];
  const histogram = createHistogram({ lowest: 1, highest: Math.max(2, ...whole), figures: 4 });
  for (const value of whole) histogram.record(value);
  const curve: [number, number][] = [];
  for (let left = 1; left * whole.length >= 1; left /= 1.15)
    curve.push([1 - left, histogram.percentile(Math.max(1e-9, 100 * (1 - left)))]);
  curve.push([1 - 1 / (whole.length + 1), histogram.max]);
  return curve;
}

/** All values of a metric, whatever process measured them. */
export function valuesOf(trials: readonly Trial[], metric: Metric): number[] {
  return trials.flatMap(({ values }) => values[metric] ?? []);
}

/** What a ratio is of. */
export interface Measure {
  readonly subject: SubjectResult;
  readonly metric: Metric;
  readonly statistic: Statistic;
}

/**
 * Random numbers that are the same in every run (xorshift32): the same two files give the same answer.
 */
function random(): () => number {
  let state = 0x9e3779b9;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

type Rounds = ReadonlyMap<number, readonly number[]>;

/** The values of a measure by round. */
function roundsOf({ subject, metric }: Measure): Rounds {
  const rounds = new Map<number, number[]>();
  for (const { round, values } of subject.trials) {
    const more = values[metric];
    if (more !== undefined && more.length > 0) rounds.set(round, [...(rounds.get(round) ?? []), ...more]);
  }
  return rounds;
}

/** How often a bootstrap draws anew: the ends of a 95 % interval then stand on 25 draws each. */
const draws = 1000;

function interval(value: number, drawn: readonly number[], confidence: number): Estimate {
  const tail = (1 - confidence) / 2;
  return { value, low: quantile(drawn, tail), high: quantile(drawn, 1 - tail) };
}

function draw(rounds: readonly number[], next: () => number): number[] {
  return rounds.map(() => rounds[Math.floor(next() * rounds.length)] as number);
}

function pooled(rounds: Rounds, chosen: readonly number[]): number[] {
  return chosen.flatMap((round) => rounds.get(round) ?? []);
}

/**
 * A ratio of two measures of one run, with a 95 % interval (percentile bootstrap over rounds).
 *
 * Whole rounds are drawn, for launches of one process resemble each other; and both measures from the same rounds,
 * for a machine that is slow for a while is slow for both.
 */
export function ratio(of: Measure, against: Measure): Estimate | undefined {
  const upper = roundsOf(of);
  const lower = roundsOf(against);
  const both = [...upper.keys()].filter((round) => lower.has(round));
  if (both.length === 0) return undefined;
  const ratioOf = (chosen: readonly number[]) =>
    statisticOf(pooled(upper, chosen), of.statistic) / statisticOf(pooled(lower, chosen), against.statistic);
  const next = random();
  return interval(
    ratioOf(both),
    Array.from({ length: draws }, () => ratioOf(draw(both, next))),
    0.95,
  );
}

/** A measure by itself, with a 95 % interval (percentile bootstrap over rounds). */
export function estimate(of: Measure): Estimate | undefined {
  const rounds = roundsOf(of);
  const all = [...rounds.keys()];
  if (all.length === 0) return undefined;
  const numberOf = (chosen: readonly number[]) => statisticOf(pooled(rounds, chosen), of.statistic);
  const next = random();
  return interval(
    numberOf(all),
    Array.from({ length: draws }, () => numberOf(draw(all, next))),
    0.95,
  );
}

/**
 * The measure after a change divided by the same before, with a 99 % interval: of a hundred rows that did not change,
 * one is taken for changed. `yardstick` is a measure of the machine itself, in both files: what changed in it is
 * divided out, by the rounds that it was measured in together with the measure.
 */
export function change(
  before: Measure,
  after: Measure,
  yardstick?: { readonly before: Measure; readonly after: Measure },
): Estimate | undefined {
  const side = (measure: Measure, by: Measure | undefined) => {
    const rounds = roundsOf(measure);
    const yards = by && roundsOf(by);
    const usable = [...rounds.keys()].filter((round) => yards?.has(round) ?? true);
    const numberOf = (chosen: readonly number[]) =>
      statisticOf(pooled(rounds, chosen), measure.statistic) /
      (yards === undefined ? 1 : statisticOf(pooled(yards, chosen), (by as Measure).statistic));
    return { usable, numberOf };
  };
  const old = side(before, yardstick?.before);
  const now = side(after, yardstick?.after);
  if (old.usable.length === 0 || now.usable.length === 0) return undefined;
  const next = random();
  const drawn = Array.from(
    { length: draws },
    () => now.numberOf(draw(now.usable, next)) / old.numberOf(draw(old.usable, next)),
  );
  return interval(now.numberOf(now.usable) / old.numberOf(old.usable), drawn, 0.99);
}
