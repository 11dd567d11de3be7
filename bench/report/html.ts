/** The page: everything of a run in one file, for a reader who has never seen casemate. */
import { quantile } from '#lib/cli/statistics.js';
import { onPath } from '#lib/cli/steps.js';
import { metrics, type Results } from '../results.js';
import { valuesOf } from '../stats.js';
import { disturbed, type Judgement, judgeAll, type Verdict } from '../targets.js';
import { httpChart, memoryChart, percentileChart, stepChart, targetChart, timelineChart } from './charts.js';
import { number, quantity } from './format.js';
import { rowsOf, type StepQuantile, stepQuantiles } from './rows.js';
import { escapeText } from './svg.js';
import { verdicts } from './table.js';

const style = `
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5d6778; --paper: #fff; --card: #f4f6f9; --rule: #dde2ea;
  --node: #3d6fe0; --launcher: #12897a; --child: #c9851a; --monitor: #b8437a; --floor: #9aa4b2;
  --good: #1f8a4c; --fair: #b57b00; --bad: #c8352f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf1; --soft: #97a2b4; --paper: #12161d; --card: #1b212b;
  --rule: #2c3441; --node: #6f97f5; --launcher: #35b5a3; --child: #e0a64a; --monitor: #dd74a4; --floor: #66707f;
  --good: #4cc07f; --fair: #dda93a; --bad: #ef6b64; } }
body { margin: 0 auto; padding: 32px 24px 80px; max-width: 1060px; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 44px 0 6px; }
p { max-width: 78ch; margin: 6px 0 14px; } .soft, figcaption { color: var(--soft); }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 22px 0; }
.card { background: var(--card); border-radius: 8px; padding: 12px 18px; min-width: 130px; flex: 1; }
.card b { display: block; font-size: 24px; } .card span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; } td, th { padding: 3px 10px 3px 0; vertical-align: top; }
tr + tr td { border-top: 1px solid var(--rule); } .r { text-align: right; white-space: nowrap; }
tr.subject td { padding-top: 12px; font-weight: 600; }
figure { margin: 12px 0; } svg { width: 100%; height: auto; display: block; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg .axis { fill: var(--soft); } svg .strong { font-weight: 600; }
svg .on { fill: #fff; } svg .off { fill: var(--soft); }
.grid { stroke: var(--rule); } .limit { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 4 3; }
rect.node { fill: var(--node); } rect.launcher { fill: var(--launcher); } rect.child { fill: var(--child); }
rect.monitor { fill: var(--monitor); } rect.floor { fill: var(--floor); } rect.beside { fill-opacity: .22; }
circle.verdict { stroke: none; } line.verdict { stroke-width: 3; stroke-opacity: .45; }
.verdict.holds { fill: var(--good); stroke: var(--good); } .verdict.close, .verdict.unsure { fill: var(--fair); stroke: var(--fair); }
.verdict.misses { fill: var(--bad); stroke: var(--bad); }
td.holds { color: var(--good); } td.close, td.unsure { color: var(--fair); } td.misses { color: var(--bad); font-weight: 600; }
.curve { fill: none; stroke-width: 2; }
${[
  'var(--monitor)',
  'var(--ink)',
  'var(--floor)',
  'var(--node)',
  '#7a6ff0',
  'var(--launcher)',
  'var(--child)',
  '#a0522d',
]
  .map(
    (colour, index) =>
      `.curve.series-${index} { stroke: ${colour}; } svg text.series-${index}, rect.series-${index} { fill: ${colour}; }`,
  )
  .join('\n')}
`;

/** The steps by which one way is longer than the other, the largest first. */
function longest(ours: readonly StepQuantile[], theirs: readonly StepQuantile[], untilT1: boolean): string {
  const base = new Map(theirs.map(({ key, took }) => [key, took]));
  const more = ours
    .filter((step) => onPath(step) && !(untilT1 && step.name === 'resolve'))
    .map(({ place, name, key, took }) => ({ place, name, by: took - (base.get(key) ?? 0) }))
    .filter(({ by }) => by > 0)
    .sort((left, right) => right.by - left.by)
    .slice(0, 3);
  return more.map(({ place, name, by }) => `${place} ${name} ${(by / 1000).toFixed(0)} µs`).join(', ');
}

/** Which steps hold the time of a target that is missed, and whether it could be less. */
function heldBy(results: Results, judgement: Judgement): string {
  const { target, verdict, floor } = judgement;
  if (verdict !== 'misses') return '';
  if (floor === undefined || floor <= target.limit) return longestSteps(results, judgement);
  return `no launch can hold it on this machine: the floor has ${number(floor)}; ${longestSteps(results, judgement)}`;
}

function longestSteps({ subjects }: Results, { target }: Judgement): string {
  const { metric } = target.of;
  if (metric === 'busyShare') {
    const call = quantile(valuesOf(subjects.launch?.trials ?? [], 'call'), 0.5);
    return `the call itself ${quantity(call, 'ns')}; the rest are callbacks`;
  }
  if (metric !== 't1' && metric !== 't2') return '';
  const share = target.of.statistic === 'mean' ? 0.5 : target.of.statistic;
  const ours = stepQuantiles(subjects[target.of.subject], share);
  const theirs = stepQuantiles(subjects[target.against?.subject ?? ''], share);
  if (ours.length === 0) return '';
  const found = longest(ours, theirs, metric === 't1');
  return theirs.length > 0 ? `longer than there: ${found || 'no single step'}` : `longest: ${found}`;
}

function targetRows(results: Results): string {
  return judgeAll(results)
    .map((judgement) => {
      const { target, undisturbed, found, verdict, why, floor } = judgement;
      const fastest = undisturbed === undefined ? '' : number(undisturbed);
      const cells =
        found === undefined
          ? `<td class="r">–</td><td></td><td></td><td></td><td class="r">≤ ${number(target.limit)}</td><td class="soft">not measured: ${escapeText(why ?? '')}</td>`
          : `<td class="r">${number(found.value)}</td><td class="r soft">${number(found.low)} – ${number(found.high)}</td><td class="r soft">${fastest}</td>` +
            `<td class="r soft">${floor === undefined ? '' : number(floor)}</td>` +
            `<td class="r">≤ ${number(target.limit)}</td><td class="${verdict}">${verdicts[verdict as Verdict]}</td>`;
      return `<tr><td>${escapeText(target.title)}</td>${cells}<td class="soft">${escapeText(heldBy(results, judgement))}</td></tr>`;
    })
    .join('\n');
}

function everyRow(results: Results): string {
  const rows = rowsOf(results);
  return Object.entries(results.subjects)
    .flatMap(([name, { title, trials, skipped }]) => {
      const head = `<tr class="subject"><td colspan="7">${escapeText(title)} <span class="soft">${name}</span></td></tr>`;
      if (trials.length === 0)
        return [head, `<tr><td class="soft" colspan="7">not measured: ${escapeText(skipped ?? '')}</td></tr>`];
      const lines = rows
        .filter(({ subject }) => subject === name)
        .map(({ metric, unit, summary: { p50, p90, p99, max, n }, toFloor }) => {
          const numbers = [p50, p90, p99, max].map((value) => `<td class="r">${quantity(value, unit)}</td>`).join('');
          const ratio = toFloor === undefined ? '' : number(toFloor.value);
          return `<tr><td>${metrics[metric].title}</td>${numbers}<td class="r">${n}</td><td class="r">${ratio}</td></tr>`;
        });
      return [head, ...lines];
    })
    .join('\n');
}

function cards(results: Results): string {
  const { subjects } = results;
  const p50 = (subject: string, metric: 't1' | 't2' | 'monitorMemory') =>
    quantile(valuesOf(subjects[subject]?.trials ?? [], metric), 0.5);
  const list = [
    [quantity(p50('launch', 't1'), 'ns'), 't0 → t1, median'],
    [quantity(p50('floor', 't1'), 'ns'), 'the floor: the same in C'],
    [number(p50('launch', 't1') / p50('floor', 't1')), '× the floor'],
    [quantity(p50('bubblewrap', 't1'), 'ns'), 'bubblewrap, a process'],
    [quantity(p50('crun', 't1'), 'ns'), 'crun, a container'],
    [quantity(p50('qemu', 't2'), 'ns'), 'QEMU microvm'],
  ].filter(([value]) => !value?.includes('NaN'));
  return list.map(([value, what]) => `<div class="card"><b>${value}</b><span>${what}</span></div>`).join('');
}

function section(title: string, words: string, chart: string, caption = ''): string {
  if (chart === '') return '';
  const under = caption === '' ? '' : `<figcaption>${caption}</figcaption>`;
  return `<h2>${title}</h2>\n<p>${words}</p>\n<figure>${chart}${under}</figure>`;
}

const paragraph = (words: string | undefined): string => (words === undefined ? '' : `<p><b>${words}</b></p>`);

/** The whole page. */
export function renderPage(results: Results): string {
  const measured = stepQuantiles(results.subjects.launch).length > 0;
  const machine = Object.entries(results.machine)
    .map(([name, what]) => `<tr><th>${escapeText(name)}</th><td>${escapeText(what)}</td></tr>`)
    .join('\n');
  const warning = results.smoke
    ? '<p><b>A smoke run:</b> it shows that everything works. Its numbers mean nothing.</p>'
    : paragraph(disturbed(results));
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>casemate: what a launch costs</title>
<style>${style}</style>
<h1>What a launch costs</h1>
<p class="soft">casemate ${escapeText(results.machine.commit ?? '')} · ${escapeText(results.machine.processor ?? '')} · Linux
${escapeText(results.machine.kernel ?? '')} · ${escapeText(results.machine.kvm ?? '')} · Node ${escapeText(results.machine.node ?? '')}
· ${escapeText(results.machine.date ?? '')}</p>
${warning}
<div class="cards">${cards(results)}</div>
<p>A launch begins with the call of <code>launch()</code>, <b>t0</b>. At <b>t1</b> the guest has run: its first call to
its machine has reached the monitor. At <b>t2</b> the promise resolves, and the program in Node goes on. In between a
process is made in namespaces of its own, gives up every right, becomes the monitor, and builds a virtual machine.
The <b>floor</b> is a C program that has the kernel do the same work and does nothing else: no launch can take less.
Only ratios within one run mean something on another machine.</p>
${
  measured
    ? section(
        'Where each microsecond goes',
        'Medians of each step, where in time it is done and who does it: Node’s JavaScript thread, the launcher’s thread, the new process before it becomes the monitor, the monitor. What a launch waits for is in full colour; pale is what goes on beside that. Point at a box for its name and time.',
        timelineChart(results),
      ) +
      section(
        'The steps that a launch waits for',
        'They follow each other without a gap: in each launch they add up to t0 → t2. The grey bar below each is the same step of the floor.',
        stepChart(results),
      )
    : ''
}
${section(
  'Targets',
  'Each ratio against what it may be at most, the dashed line: left of it, the target holds. The bar is the 95 % interval (bootstrap over processes).',
  targetChart(results),
)}
<table><tr><th>ratio of medians, where nothing else is said</th><th class="r">found</th><th class="r">95 %</th>
<th class="r">fastest tenth</th><th class="r">the floor’s</th><th class="r">target</th><th></th><th>where the time is</th></tr>
${targetRows(results)}
</table>
${section(
  'How slow the slowest are',
  'To the right, the rarer. Each curve says which time so many per cent of the launches do not exceed. Of the peers it is the time to the first instruction of a static program that does nothing, of QEMU and child_process.spawn until the one who started it knows.',
  percentileChart(results),
)}
${section('By the memory of the guest', 'Time to t1.', memoryChart(results))}
${section(
  'An embedder’s view',
  'A plain web server that answers each request from a fresh VM (examples/http-vm-per-request), and the same server answering from a process. The load generator runs on the same processors.',
  httpChart(results),
)}
<h2>Everything that was measured</h2>
<p>Each trial is a fresh process; all take turns. The last column is the median against that of the jailed floor.</p>
<table><tr><th></th><th class="r">p50</th><th class="r">p90</th><th class="r">p99</th><th class="r">max</th>
<th class="r">n</th><th class="r">× floor</th></tr>
${everyRow(results)}
</table>
<h2>The machine</h2>
<table>${machine}</table>
<p class="soft">Made by <code>npm run bench</code>; every number is in results.json beside this page.</p>
</html>
`;
}
