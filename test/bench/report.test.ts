import test from 'ava';
import { StepTable } from '#lib/cli/steps.js';
import { changesOf, renderComparison } from '../../bench/report/compare.js';
import { renderPage } from '../../bench/report/html.js';
import { renderTable } from '../../bench/report/table.js';
import type { Results } from '../../bench/results.js';
import { momentsOfFloor } from '../../bench/steps.js';
import { judgeAll } from '../../bench/targets.js';
import { around, run, subject } from './fixtures.js';

const floor = subject('t1', around(1_000_000, 1));
const judged = (results: Results) => {
  const [first] = judgeAll(results);
  return { verdict: first?.verdict, value: first?.found?.value, why: first?.why };
};

test('a target holds, misses, or was not measured', (t) => {
  t.is(judged(run({ floor, launch: subject('t1', around(1_050_000, 2)) })).verdict, 'holds');
  t.is(judged(run({ floor, launch: subject('t1', around(1_300_000, 2)) })).verdict, 'misses');
  const even = Array.from({ length: 20 }, () => [100]);
  const uneven = even.map((_, round) => [round < 11 ? 110 : 120]);
  t.is(judged(run({ floor: subject('t1', even), launch: subject('t1', uneven) })).verdict, 'close');
  const skipped = { ...subject('t1', []), skipped: 'needs root' };
  t.like(judged(run({ floor: skipped, launch: floor })), { verdict: undefined, why: 'floor: needs root' });
});

test('a target that the floor misses too is told from one that could be held', (t) => {
  const bubblewrap = (time: number) => ({ ...subject('ended', around(time, 3)) });
  const launch = subject('t1', around(1_100_000, 2));
  const words = /no launch can hold it on this machine: the floor has 0\.50/;
  t.regex(renderPage(run({ floor, launch, bubblewrap: bubblewrap(2_000_000) })), words);
  t.notRegex(renderPage(run({ floor, launch, bubblewrap: bubblewrap(3_500_000) })), /no launch can hold it/);
});

test('on a busy machine a median that the fastest launches gainsay is no proof', (t) => {
  const rounds = Array.from({ length: 20 }, () => [100, 100, 400, 400, 400]);
  const slower = rounds.map(() => [130, 130, 200, 200, 200]);
  const results = run({ floor: subject('t1', rounds), launch: subject('t1', slower) });
  t.is(judged(results).verdict, 'unsure');
  t.regex(renderTable(results), /The machine was busy/);
});

test('100 at once are held against the CPU time of one, spread over the processors', (t) => {
  const results = run({
    'burst-100': subject('t2', [[100_000_000]]),
    cpu: subject('cpu', [[2_000_000, 2_000_000]]),
  });
  const found = judgeAll(results).find(({ target }) => target.of.subject === 'burst-100')?.found;
  t.is(found?.value, 1); // 100 × 2 ms on two processors are 100 ms
});

test('a comparison names what changed beyond noise, and nothing else', (t) => {
  const before = run({ floor, launch: subject('t1', around(1_200_000, 2)), heap: subject('t1', around(1_200_000, 3)) });
  const after = run({
    floor: subject('t1', around(1_000_000, 4)),
    launch: subject('t1', around(1_800_000, 5)),
    heap: subject('t1', around(1_200_000, 6)),
  });
  const changed = changesOf(before, after).filter(({ beyondNoise }) => beyondNoise);
  t.deepEqual(
    changed.map(({ subject: name }) => name),
    ['launch'],
  );
  const text = renderComparison(before, { ...after, machine: { ...after.machine, kernel: '6.19' } });
  t.regex(text, /^kernel: 6\.18 → 6\.19$/m);
  t.regex(text, /launch: t0 → t1 +\d+ µs +\d+ µs +\+\d/);
  t.regex(text, /^1 of 3 rows changed beyond noise/m);
  t.regex(renderComparison(before, before), /Nothing changed beyond noise/);
});

test('the steps of the floor follow each other, place by place', (t) => {
  const table = new StepTable();
  table.add(momentsOfFloor({ socketPair: 10, clone3: 30, setns: 35, exec: 60, jailed: 90, guest: 100 }));
  t.deepEqual(
    table.steps.map(({ place, name, start, took }) => [place, name, start[0], took[0]]),
    [
      ['launcher', 'socketPair', 0, 10],
      ['launcher', 'clone3', 10, 20],
      ['child', 'setns', 30, 5],
      ['monitor', 'exec', 35, 25],
      ['launcher', 'jailed', 30, 60],
      ['monitor', 'guest', 60, 40],
    ],
  );
});

test('a step that is done again later is another step', (t) => {
  const table = new StepTable();
  const moment = (name: string, start: number, end: number) => ({ place: 'child', name, start, end });
  table.add([moment('setns', 0, 1), moment('rlimit', 1, 2), moment('rlimit', 2, 4), moment('setns', 4, 5)]);
  t.deepEqual(
    table.steps.map(({ name, took }) => [name, took[0]]),
    [
      ['setns', 1],
      ['rlimit', 3],
      ['setns 2', 1],
    ],
  );
});

test('table and page take any run, also one in which nothing was measured', (t) => {
  const results = [
    run({}),
    run({ launch: { ...subject('t1', []), skipped: 'a <reason>' } }),
    run({ floor, launch: floor }),
  ];
  for (const result of results) {
    t.regex(renderTable(result), /not measured/);
    t.regex(renderPage(result), /<\/html>\n$/);
    t.notRegex(renderPage(result), /NaN|undefined|<reason>/);
  }
  t.regex(renderPage(results[1] as Results), /a &lt;reason&gt;/);
});
