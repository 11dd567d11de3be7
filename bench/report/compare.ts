/** What changed between two runs, beyond noise. */
import { columns } from '#lib/cli/format.js';
import { quantile } from '#lib/cli/statistics.js';
import { type Metric, metrics, type Results } from '../results.js';
import { change, type Estimate, type Measure, valuesOf } from '../stats.js';
import { disturbed } from '../targets.js';
import { quantity } from './format.js';
import { rowsOf } from './rows.js';

export interface Change {
  readonly subject: string;
  readonly metric: Metric;
  readonly before: number;
  readonly after: number;
  /** The one after, of the one before; what changed in the floor is divided out of times. */
  readonly ratio: Estimate;
  readonly beyondNoise: boolean;
}

/** Less than this is not worth a word, however sure it is. */
const worthIt = 0.02;

/**
 * What stands for a row: its median; on a machine that was busy in one of the runs the fastest tenth, for the medians of
 * that run speak of what else ran.
 */
function chooseStatistic(before: Results, after: Results): number {
  return (disturbed(before) ?? disturbed(after)) === undefined ? 0.5 : 0.1;
}

const measureOf = (results: Results, subject: string, metric: Metric, statistic: number): Measure => ({
  subject: results.subjects[subject] ?? { title: subject, family: '', trials: [] },
  metric,
  statistic,
});

/** The machine's own measure of a run: what its floor takes. */
function yardstick(
  before: Results,
  after: Results,
  statistic: number,
): { before: Measure; after: Measure } | undefined {
  const both = [before, after].every(({ subjects }) => valuesOf(subjects.floor?.trials ?? [], 't1').length > 0);
  return both
    ? { before: measureOf(before, 'floor', 't1', statistic), after: measureOf(after, 'floor', 't1', statistic) }
    : undefined;
}

/** A change for each row that both runs have. */
export function changesOf(before: Results, after: Results): Change[] {
  const statistic = chooseStatistic(before, after);
  const yard = yardstick(before, after, statistic);
  const numberOf = (results: Results, subject: string, metric: Metric) =>
    quantile(valuesOf(results.subjects[subject]?.trials ?? [], metric), statistic);
  return rowsOf(after).flatMap(({ subject, metric, unit }): Change[] => {
    const numbers = { before: numberOf(before, subject, metric), after: numberOf(after, subject, metric) };
    if (!(numbers.before > 0)) return [];
    const divided = unit === 'ns' && subject !== 'floor' ? yard : undefined;
    const [old, now] = [before, after].map((results) => measureOf(results, subject, metric, statistic));
    const ratio = change(old as Measure, now as Measure, divided);
    if (ratio === undefined) return [];
    const sure = ratio.low > 1 || ratio.high < 1;
    return [{ subject, metric, ...numbers, ratio, beyondNoise: sure && Math.abs(ratio.value - 1) >= worthIt }];
  });
}

const percent = (ratio: number): string => `${ratio >= 1 ? '+' : '−'}${Math.abs((ratio - 1) * 100).toFixed(1)} %`;

function cells({ subject, metric, before, after, ratio }: Change): string[] {
  const { title, unit } = metrics[metric];
  const interval = `${percent(ratio.low)} … ${percent(ratio.high)}`;
  return [`${subject}: ${title}`, quantity(before, unit), quantity(after, unit), percent(ratio.value), interval];
}

/** The comparison of two runs, for a terminal. */
export function renderComparison(before: Results, after: Results): string {
  const changes = changesOf(before, after);
  const beyond = changes.filter(({ beyondNoise }) => beyondNoise);
  const differing = Object.keys({ ...before.machine, ...after.machine }).filter(
    (name) => name !== 'date' && name !== 'load' && before.machine[name] !== after.machine[name],
  );
  const medians = chooseStatistic(before, after) === 0.5;
  const table = columns(
    [[medians ? 'p50' : 'fastest tenth', 'before', 'after', 'change', '99 %'], ...beyond.map(cells)],
    [1, 2, 3, 4],
  );
  return [
    ...differing.map((name) => `${name}: ${before.machine[name]} → ${after.machine[name]}`),
    ...(differing.length > 0 ? [''] : []),
    ...(beyond.length > 0 ? table : ['Nothing changed beyond noise.']),
    '',
    `${beyond.length} of ${changes.length} rows changed beyond noise: the 99 % interval of their ratio (bootstrap over`,
    'processes) does not contain 1, and the change is of 2 % or more. Of 100 that did not change one is expected here.',
    ...(medians
      ? []
      : ['The machine was busy in one of the runs: the fastest tenth stands for each row, not the median.']),
    yardstick(before, after, 0.5) === undefined
      ? 'A run without the floor: a change of the machine is a change of every time.'
      : 'From every time but its own, what changed in the floor is divided out: that is the machine, not the code.',
    '',
  ].join('\n');
}
