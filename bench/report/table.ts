/** The results as text. */
import { columns } from '#lib/cli/format.js';
import { onPath } from '#lib/cli/steps.js';
import { metrics, type Results } from '../results.js';
import { disturbed, type Judgement, judgeAll, type Verdict } from '../targets.js';
import { number, quantity } from './format.js';
import { type Row, rowsOf, stepQuantiles } from './rows.js';

export const verdicts: Readonly<Record<Verdict, string>> = {
  holds: 'holds',
  close: 'holds, within noise',
  misses: 'MISSES',
  unsure: 'unsure, on a busy machine',
};

function rowCells({ metric, unit, summary, toFloor }: Row): string[] {
  const { n, p50, p90, p99, max } = summary;
  const numbers = [p50, p90, p99, max].map((value) => quantity(value, unit));
  return [`  ${metrics[metric].title}`, ...numbers, String(n), toFloor === undefined ? '' : number(toFloor.value)];
}

function targetCells({ target, undisturbed, found, verdict, why, floor }: Judgement): string[] {
  if (found === undefined) return [target.title, '–', '', '', '', `≤ ${number(target.limit)}`, `not measured (${why})`];
  const interval = `${number(found.low)} – ${number(found.high)}`;
  const fastest = undisturbed === undefined ? '' : number(undisturbed);
  return [
    target.title,
    number(found.value),
    interval,
    fastest,
    floor === undefined ? '' : number(floor),
    `≤ ${number(target.limit)}`,
    verdicts[verdict as Verdict],
  ];
}

/** The steps of launches beside those of the floor, medians. */
function stepLines({ subjects }: Results): string[] {
  const ours = stepQuantiles(subjects.launch);
  const floor = new Map(stepQuantiles(subjects.floor).map(({ key, took }) => [key, took]));
  if (ours.length === 0) return [];
  const rows = ours.map((step) => {
    const { key, place, name, start, took } = step;
    const theirs = floor.get(key);
    const cells = [start, took, theirs].map((value) => (value === undefined ? '' : (value / 1000).toFixed(0)));
    const more = theirs === undefined ? '' : ((took - theirs) / 1000).toFixed(0);
    return [place, name, ...cells, more, onPath(step) ? '' : 'beside the way'];
  });
  return columns([['where', 'step', 'at µs', 'took µs', 'floor µs', 'more µs', ''], ...rows], [2, 3, 4, 5]);
}

const heading = (text: string): string[] => ['', text, '─'.repeat(text.length)];

/** All of a run, for a terminal. */
export function renderTable(results: Results): string {
  const rows = rowsOf(results);
  const lines: string[][] = [['', 'p50', 'p90', 'p99', 'max', 'n', '× floor']];
  for (const [name, { title, skipped, trials }] of Object.entries(results.subjects)) {
    if (trials.length === 0) lines.push([`${name}: ${title} – not measured: ${skipped}`]);
    else lines.push([`${name}: ${title}`], ...rows.filter(({ subject }) => subject === name).map(rowCells));
  }
  // Titles of subjects stand alone in their lines: only rows of numbers decide how wide the columns are.
  const table = columns(
    lines.map((cells) => (cells.length === 1 ? [''] : cells)),
    [1, 2, 3, 4, 5, 6],
  ).map((line, index) => (lines[index]?.length === 1 ? (lines[index]?.[0] as string) : line));
  const machine = Object.entries(results.machine).map(([name, what]) => [name, what]);
  const judgements = judgeAll(results);
  const warning = disturbed(results);
  return [
    ...heading('The machine'),
    ...columns(machine),
    ...heading('Measured'),
    ...table,
    ...heading('The steps of a launch, medians'),
    ...stepLines(results),
    ...heading('Targets'),
    ...columns(
      [
        ['p50 where nothing else is said', 'found', '95 %', 'fastest tenth', 'floor', 'target', ''],
        ...judgements.map(targetCells),
      ],
      [1, 2, 3, 4],
    ),
    ...(warning === undefined || results.smoke ? [] : ['', warning]),
    ...(results.smoke ? ['', 'A smoke run: it shows that everything works. Its numbers mean nothing.'] : []),
    '',
  ].join('\n');
}
