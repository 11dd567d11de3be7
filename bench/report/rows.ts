/** What the table and the page both show: a row for each metric of each subject. */
import { type Metric, metrics, type Results, type SubjectResult, type Unit } from '../results.js';
import { type Estimate, ratio, type Summary, summarise, valuesOf } from '../stats.js';

export interface Row {
  readonly subject: string;
  readonly result: SubjectResult;
  readonly metric: Metric;
  readonly unit: Unit;
  readonly summary: Summary;
  /** Its median against the median of the jailed floor in the same metric. */
  readonly toFloor: Estimate | undefined;
}

/** The metrics of a subject, in the order of {@link metrics}. */
function metricsOf({ trials }: SubjectResult): Metric[] {
  return (Object.keys(metrics) as Metric[]).filter((metric) => trials.some(({ values }) => values[metric]?.length));
}

export function rowsOf({ subjects }: Results): Row[] {
  const floor = subjects.floor;
  return Object.entries(subjects).flatMap(([subject, result]) =>
    metricsOf(result).map((metric): Row => {
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
