/** The charts of the page. */
import { quantile } from '#lib/cli/statistics.js';
import { onPath } from '#lib/cli/steps.js';
import type { Metric, Results } from '../results.js';
import { percentileCurve, valuesOf } from '../stats.js';
import { type Judgement, judgeAll, type Verdict } from '../targets.js';
import { number, quantity } from './format.js';
import { type StepQuantile, stepQuantiles } from './rows.js';
import { box, line, linear, logarithmic, logTicks, type Scale, svg, tag, text, ticks } from './svg.js';

const width = 1000;
const us = (ns: number): string => `${(ns / 1000).toFixed(ns < 10_000 ? 1 : 0)} µs`;

const places = ['node', 'launcher', 'child', 'monitor'] as const;

/** The vertical lines of a time axis, with their numbers above. */
function timeAxis(to: number, x: Scale, top: number, bottom: number): string[] {
  return ticks(to / 1000, 10).map((value) => {
    const at = x(value * 1000);
    return line(at, top, at, bottom, 'grid') + text(at, top - 6, `${value}`, 'axis', 'middle');
  });
}

function lanes(
  steps: readonly StepQuantile[],
  title: string,
  x: Scale,
  top: number,
): { drawn: string[]; bottom: number } {
  const height = 30;
  const used = places.filter((place) => steps.some((step) => step.place === place));
  const drawn = [text(0, top + 12, title, 'strong')];
  used.forEach((place, row) => {
    const y = top + 22 + row * (height + 6);
    drawn.push(text(0, y + height / 2 + 4, place, 'axis'));
    for (const step of steps.filter((one) => one.place === place)) {
      const [left, right] = [x(step.start), x(step.start + step.took)];
      const kind = onPath(step) ? place : `${place} beside`;
      const aside = onPath(step) ? '' : ' (beside the way)';
      drawn.push(
        box(
          left,
          y,
          right - left,
          height,
          kind,
          `${place}: ${step.name}, ${us(step.took)} from ${us(step.start)} on${aside}`,
        ),
      );
      if (right - left > step.name.length * 6.2 + 4) {
        drawn.push(text((left + right) / 2, y + height / 2 + 4, step.name, onPath(step) ? 'on' : 'off', 'middle'));
      }
    }
  });
  return { drawn, bottom: top + 22 + used.length * (height + 6) };
}

/** The steps that a launch waits for, one behind the other, as they are in each launch but not in their medians. */
function inSequence(steps: readonly StepQuantile[]): StepQuantile[] {
  let start = 0;
  return steps.map((step) => {
    if (!onPath(step)) return step;
    const placed = { ...step, start };
    start += step.took;
    return placed;
  });
}

/** The steps of one launch in time, beside those of the floor. */
export function timelineChart({ subjects }: Results): string {
  const ours = inSequence(stepQuantiles(subjects.launch));
  const floor = inSequence(stepQuantiles(subjects.floor));
  const end = Math.max(...[...ours, ...floor].map(({ start, took }) => start + took)) * 1.02;
  const x = linear(0, end, 70, width - 10);
  const top = 34;
  const first = lanes(ours, 'a launch', x, top);
  const second =
    floor.length > 0 ? lanes(floor, 'the floor', x, first.bottom + 16) : { drawn: [], bottom: first.bottom };
  return svg(
    width,
    second.bottom + 6,
    'The steps of a launch in time',
    text(0, 14, 'µs since t0', 'axis'),
    ...timeAxis(end, x, 24, second.bottom),
    ...first.drawn,
    ...second.drawn,
  );
}

/** Each step that a launch waits for, beside the same step of the floor. */
export function stepChart({ subjects }: Results): string {
  const ours = stepQuantiles(subjects.launch).filter(onPath);
  const floor = new Map(stepQuantiles(subjects.floor).map((step) => [step.key, step.took]));
  const most = Math.max(...ours.map(({ took }) => took), ...floor.values());
  const x = linear(0, most, 190, width - 180);
  const height = 24;
  const rows = ours.map(({ key, place, name, took }, index) => {
    const y = 30 + index * height;
    const theirs = floor.get(key);
    const more =
      theirs === undefined ? 'not in the floor' : `${took >= theirs ? '+' : '−'}${us(Math.abs(took - theirs))}`;
    return [
      text(0, y + 13, place, 'axis'),
      text(70, y + 13, name),
      box(x(0), y + 2, x(took) - x(0), 10, place, `${name}: ${us(took)}`),
      ...(theirs === undefined
        ? []
        : [box(x(0), y + 13, x(theirs) - x(0), 5, 'floor', `${name} of the floor: ${us(theirs)}`)]),
      text(width - 110, y + 13, us(took), '', 'end'),
      text(width, y + 13, more, 'axis', 'end'),
    ].join('');
  });
  return svg(
    width,
    36 + rows.length * height,
    'The steps that a launch waits for',
    text(width - 110, 16, 'took', 'axis', 'end'),
    text(width, 16, 'against the floor', 'axis', 'end'),
    ...rows,
  );
}

/** How each ratio stands to its limit. */
export function targetChart(results: Results): string {
  const found = judgeAll(results).filter((judgement) => judgement.found !== undefined);
  const relative = found.flatMap(({ found, target }) =>
    [found?.low, found?.high].map((value) => (value as number) / target.limit),
  );
  const [from, to] = [Math.min(0.25, ...relative) * 0.9, Math.max(2, ...relative) * 1.1];
  const x = logarithmic(from, to, 470, width - 70);
  const height = 26;
  const bottom = 30 + found.length * height;
  const row = ({ target, found, verdict }: Judgement, index: number) => {
    const y = 30 + index * height + height / 2;
    const { value, low, high } = found as NonNullable<Judgement['found']>;
    const kind = `verdict ${verdict as Verdict}`;
    const hint = `${target.title}: ${number(value)}, 95 % ${number(low)} to ${number(high)}, at most ${number(target.limit)}`;
    return [
      text(0, y + 4, target.title.length > 72 ? `${target.title.slice(0, 70)}…` : target.title),
      line(x(low / target.limit), y, x(high / target.limit), y, kind),
      tag('circle', { cx: x(value / target.limit), cy: y, r: 5, class: kind }, tag('title', {}, hint)),
      text(width, y + 4, number(value), '', 'end'),
    ].join('');
  };
  return svg(
    width,
    bottom + 4,
    'Ratios against their targets',
    ...logTicks(from, to).map(
      (value) => line(x(value), 24, x(value), bottom, 'grid') + text(x(value), 16, `${value} ×`, 'axis', 'middle'),
    ),
    line(x(1), 20, x(1), bottom, 'limit'),
    ...found.map(row),
  );
}

interface Curve {
  readonly subject: string;
  readonly metric: Metric;
  readonly title: string;
}

const curves: readonly Curve[] = [
  { subject: 'launch', metric: 't1', title: 'casemate' },
  { subject: 'floor', metric: 't1', title: 'floor' },
  { subject: 'floor-unjailed', metric: 't1', title: 'floor without a jail' },
  { subject: 'spawn', metric: 't2', title: 'child_process.spawn' },
  { subject: 'unshare', metric: 't1', title: 'unshare' },
  { subject: 'bubblewrap', metric: 't1', title: 'bubblewrap' },
  { subject: 'crun', metric: 't1', title: 'crun' },
  { subject: 'qemu', metric: 't2', title: 'QEMU microvm' },
];

/** Lines with points on two axes; each is named at its end. */
function lineChart(
  series: readonly {
    readonly title: string;
    readonly kind: string;
    readonly points: readonly (readonly [number, number])[];
  }[],
  axis: {
    readonly x: Scale;
    readonly y: Scale;
    readonly xTicks: readonly [number, string][];
    readonly yTicks: readonly number[];
  },
  label: string,
): string {
  const [top, bottom, left, right] = [20, 380, 70, width - 170];
  const { x, y, xTicks, yTicks } = axis;
  // Names that would lie on each other move apart.
  const ends = series
    .map(({ title, kind, points }) => ({ title, kind, at: y((points.at(-1) as readonly [number, number])[1]) }))
    .sort((one, other) => one.at - other.at);
  ends.forEach((end, index) => {
    const before = ends[index - 1];
    if (before !== undefined) end.at = Math.max(end.at, before.at + 15);
  });
  return svg(
    width,
    bottom + 40,
    label,
    ...yTicks.map(
      (value) =>
        line(left, y(value), right, y(value), 'grid') +
        text(left - 8, y(value) + 4, quantity(value, 'ns'), 'axis', 'end'),
    ),
    ...xTicks.map(
      ([value, words]) =>
        line(x(value), top, x(value), bottom, 'grid') + text(x(value), bottom + 18, words, 'axis', 'middle'),
    ),
    ...series.map(({ kind, points, title }) =>
      tag(
        'polyline',
        {
          points: points.map(([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`).join(' '),
          class: `curve ${kind}`,
        },
        tag('title', {}, title),
      ),
    ),
    ...ends.map(({ title, kind, at }) => text(right + 8, at + 4, title, kind)),
  );
}

/** How slow the slowest are: the whole distribution of each. */
export function percentileChart({ subjects }: Results): string {
  const series = curves
    .map(({ subject, metric, title }, index) => ({
      title,
      kind: `series-${index}`,
      points: percentileCurve(valuesOf(subjects[subject]?.trials ?? [], metric)).map(
        ([share, value]): [number, number] => [1 / (1 - share), value],
      ),
    }))
    .filter(({ points }) => points.length > 0);
  const all = series.flatMap(({ points }) => points);
  const rarest = Math.max(10, ...all.map(([share]) => share));
  const [low, high] = [
    Math.min(...all.map(([, value]) => value)) * 0.8,
    Math.max(...all.map(([, value]) => value)) * 1.2,
  ];
  const shares: [number, string][] = [
    [1, 'least'],
    [2, '50 %'],
    [10, '90 %'],
    [100, '99 %'],
    [1000, '99.9 %'],
    [10_000, '99.99 %'],
  ];
  return lineChart(
    series,
    {
      x: logarithmic(1, rarest, 70, width - 170),
      y: logarithmic(low, high, 380, 20),
      xTicks: shares.filter(([share]) => share <= rarest),
      yTicks: logTicks(low, high),
    },
    'Distributions of the times to the first instruction',
  );
}

/** What a launch costs by the memory of its guest. */
export function memoryChart({ subjects }: Results): string {
  const points = Object.entries(subjects)
    .filter(([name, { trials }]) => name.startsWith('memory-') && trials.length > 0)
    .map(([name, { trials }]) => [Number(name.slice('memory-'.length)), valuesOf(trials, 't1')] as const);
  if (points.length < 2) return '';
  const shares = [
    { share: 0.5, title: 'median', kind: 'series-0' },
    { share: 0.9, title: '90 %', kind: 'series-5' },
  ];
  const series = shares.map(({ share, title, kind }) => ({
    title,
    kind,
    points: points.map(([mib, values]): [number, number] => [mib, quantile(values, share)]),
  }));
  const high = Math.max(...series.flatMap((one) => one.points.map(([, value]) => value))) * 1.1;
  const sizes = points.map(([mib]) => mib);
  return lineChart(
    series,
    {
      x: logarithmic(Math.min(...sizes), Math.max(...sizes), 90, width - 190),
      y: linear(0, high, 380, 20),
      xTicks: sizes.map((mib) => [mib, mib < 1024 ? `${mib} MiB` : `${mib / 1024} GiB`]),
      yTicks: ticks(high, 6),
    },
    'Time to the first hypercall by guest memory',
  );
}

const backends = [
  { name: 'http-vm', title: 'casemate', kind: 'series-0' },
  { name: 'http-spawn', title: 'child_process.spawn', kind: 'series-3' },
  { name: 'http-bubblewrap', title: 'bubblewrap', kind: 'series-5' },
];

/** Requests answered in a second, by what answers them. */
export function httpChart({ subjects }: Results): string {
  const bars = [1, 10, 50].flatMap((connections) =>
    backends.map(({ name, title, kind }) => {
      const trials = subjects[`${name}-${connections}`]?.trials ?? [];
      return {
        connections,
        title,
        kind,
        value: quantile(valuesOf(trials, 'perSecond'), 0.5),
        latency: valuesOf(trials, 'latency'),
      };
    }),
  );
  const drawn = bars.filter(({ value }) => Number.isFinite(value));
  if (drawn.length === 0) return '';
  const x = linear(0, Math.max(...drawn.map(({ value }) => value)), 260, width - 270);
  const height = 24;
  return svg(
    width,
    24 + drawn.length * height,
    'Requests answered in a second',
    text(width, 14, 'p50 · p99', 'axis', 'end'),
    ...drawn.map(({ connections, title, kind, value, latency }, index) => {
      const y = 22 + index * height;
      const times = `${quantity(quantile(latency, 0.5), 'ns')} · ${quantity(quantile(latency, 0.99), 'ns')}`;
      return [
        text(0, y + 14, `${connections} ${connections === 1 ? 'connection' : 'connections'}`, 'axis'),
        text(110, y + 14, title),
        box(
          x(0),
          y + 3,
          x(value) - x(0),
          15,
          kind,
          `${title}, ${connections} connections: ${value.toFixed(0)} requests/s`,
        ),
        text(x(value) + 6, y + 14, `${value.toFixed(0)} /s`),
        text(width, y + 14, times, '', 'end'),
      ].join('');
    }),
  );
}
