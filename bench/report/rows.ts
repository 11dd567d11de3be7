/** What the table and the page both show: a row for each metric of each subject. */
import { quantile, type Summary, summarise } from '#lib/cli/statistics.js';
import { type Metric, metrics, type Results, type SubjectResult, type Unit } from '../results.js';
import { type Estimate, ratio, valuesOf } from '../stats.js';

export interface Row {
  readonly subject: string;
  readonly result: SubjectResult;
  readonly metric: Metric;
  readonly unit: Unit;
  readonly summary: Summary;
  /** Its median against the median of the jailed floor in the same metric. */
  readonly toFloor: Estimate | undefined;
}

/** The metrics of a subject, in the order of {@link metrics}. Of variations of a launch: what is compared. */
function metricsOf(subject: string, { family, trials }: SubjectResult): Metric[] {
  const all = (Object.keys(metrics) as Metric[]).filter((metric) =>
    trials.some(({ values }) => values[metric]?.length),
  );
  const varied = family === 'memory' || ['anywhere', 'heap', 'mounts', 'alive'].includes(subject);
  return varied ? all.filter((metric) => metric === 't1' || metric === 't2' || metric === 'reaped') : all;
}

export function rowsOf({ subjects }: Results): Row[] {
  const floor = subjects.floor;
  return Object.entries(subjects).flatMap(([subject, result]) =>
    metricsOf(subject, result).map((metric): Row => {
      const { unit } = metrics[metric];
      const comparable = floor !== undefined && subject !== 'floor' && (metric === 't1' || metric === 't2');
      return {
        subject,
        result,
        metric,
        unit,
        summary: summarise(valuesOf(result.trials, metric)),
        toFloor: comparable
          ? ratio({ subject: result, metric, statistic: 0.5 }, { subject: floor, metric, statistic: 0.5 })
          : undefined,
      };
    }),
  );
}

/** A step of many launches: its start is the median, its duration the quantile that was asked for. */
export interface StepQuantile {
  readonly key: string;
  readonly place: string;
  readonly name: string;
  readonly start: number;
  readonly took: number;
}

/** The start and the duration of each step, in nanoseconds, in the order in which the steps begin. */
export function stepQuantiles(subject: SubjectResult | undefined, share = 0.5): StepQuantile[] {
  const all = new Map<string, { place: string; name: string; start: number[]; took: number[] }>();
  for (const { place, name, start, took } of subject?.trials.flatMap(({ steps }) => steps ?? []) ?? []) {
    const key = `${place} ${name}`;
    const step = all.get(key) ?? { place, name, start: [], took: [] };
    all.set(key, { place, name, start: [...step.start, ...start], took: [...step.took, ...took] });
  }
  return [...all]
    .map(([key, { place, name, start, took }]) => ({
      key,
      place,
      name,
      start: quantile(start, 0.5),
      took: quantile(took, share),
    }))
    .sort((left, right) => left.start - right.start);
}
