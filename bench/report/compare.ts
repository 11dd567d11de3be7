/** What changed between two runs, beyond noise. */
import { columns } from '#lib/cli/format.js';
import { type Metric, metrics, type Results } from '../results.js';
import { change, type Estimate, type Measure, valuesOf } from '../stats.js';
import { quantity } from './format.js';
import { rowsOf } from './rows.js';

export interface Change {
  readonly subject: string;
  readonly metric: Metric;
  readonly before: number;
  readonly after: number;
  /** The median after, of the median before; what changed in the floor is divided out of times. */
  readonly ratio: Estimate;
  readonly beyondNoise: boolean;
}

/** Less than this is not worth a word, however sure it is. */
const worthIt = 0.02;

const median = (results: Results, subject: string, metric: Metric): Measure => ({
  subject: results.subjects[subject] ?? { title: subject, family: '', trials: [] },
  metric,
  statistic: 0.5,
});

/** The machine's own measure of a run: what its floor takes. */
function yardstick(before: Results, after: Results): { before: Measure; after: Measure } | undefined {
  const both = [before, after].every(({ subjects }) => valuesOf(subjects.floor?.trials ?? [], 't1').length > 0);
  return both ? { before: median(before, 'floor', 't1'), after: median(after, 'floor', 't1') } : undefined;
}

/** A change for each row that both runs have. */
export function changesOf(before: Results, after: Results): Change[] {
  const yard = yardstick(before, after);
  const old = new Map(rowsOf(before).map((row) => [`${row.subject} ${row.metric}`, row]));
  return rowsOf(after).flatMap(({ subject, metric, unit, summary }): Change[] => {
    const row = old.get(`${subject} ${metric}`);
    if (row === undefined || row.summary.p50 === 0) return [];
    const divided = unit === 'ns' && subject !== 'floor' ? yard : undefined;
    const ratio = change(median(before, subject, metric), median(after, subject, metric), divided);
    if (ratio === undefined) return [];
    const sure = ratio.low > 1 || ratio.high < 1;
    const beyondNoise = sure && Math.abs(ratio.value - 1) >= worthIt;
    return [{ subject, metric, before: row.summary.p50, after: summary.p50, ratio, beyondNoise }];
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
  const table = columns([['p50', 'before', 'after', 'change', '99 %'], ...beyond.map(cells)], [1, 2, 3, 4]);
  return [
    ...differing.map((name) => `${name}: ${before.machine[name]} → ${after.machine[name]}`),
    ...(differing.length > 0 ? [''] : []),
    ...(beyond.length > 0 ? table : ['Nothing changed beyond noise.']),
    '',
    `${beyond.length} of ${changes.length} medians changed beyond noise: the 99 % interval of their ratio (bootstrap over`,
    'processes) does not contain 1, and the change is of 2 % or more. Of 100 that did not change one is expected here.',
    yardstick(before, after) === undefined
      ? 'A run without the floor: a change of the machine is a change of every time.'
      : 'From every time but its own, what changed in the floor is divided out: that is the machine, not the code.',
    '',
  ].join('\n');
}
