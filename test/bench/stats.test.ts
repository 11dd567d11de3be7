import test from 'ava';
import { quantile, summarise } from '#lib/cli/statistics.js';
import { change, estimate, percentileCurve, ratio } from '../../bench/stats.js';
import { around, subject } from './fixtures.js';

const hundred = Array.from({ length: 100 }, (_, index) => 100 - index);
const median = (result: ReturnType<typeof subject>) => ({ subject: result, metric: 't1' as const, statistic: 0.5 });

test('a quantile is a value that was measured: the least that so many do not exceed', (t) => {
  t.is(quantile(hundred, 0.5), 50);
  t.is(quantile(hundred, 0.99), 99);
  t.is(quantile(hundred, 1), 100);
  t.is(quantile(hundred, 0), 1);
  t.is(quantile([7], 0.99), 7);
  t.is(quantile([], 0.5), Number.NaN);
});

test('a summary leaves what it is given as it was', (t) => {
  const values = [3, 1, 2];
  t.deepEqual(summarise(values), { n: 3, mean: 2, p50: 2, p90: 3, p99: 3, max: 3 });
  t.deepEqual(values, [3, 1, 2]);
});

test('a percentile curve rises from the least to the most', (t) => {
  const curve = percentileCurve(hundred.map((value) => value * 1e6));
  t.is(curve[0]?.[0], 0);
  t.true(Math.abs((curve.at(-1)?.[1] ?? 0) / 100e6 - 1) < 1e-4); // four digits
  for (const [index, [share, value]] of curve.entries()) {
    t.true(index === 0 || (share > (curve[index - 1]?.[0] ?? 1) && value >= (curve[index - 1]?.[1] ?? 0)));
    t.true(share < 1);
  }
  t.deepEqual(percentileCurve([]), []);
});

test('a ratio is taken of the rounds that both took part in', (t) => {
  const upper = subject('t1', [[20], [40], [60]]);
  const lower = subject('t1', [[10], [20]]);
  t.is(ratio(median(upper), median(lower))?.value, 2);
  t.is(ratio(median(upper), median(subject('t2', [[1]]))), undefined);
  t.is(ratio(median(subject('t1', [])), median(lower)), undefined);
});

test('a slow while that both met does not make their ratio unsure', (t) => {
  const slowness = [1, 3, 1.5, 2, 1.1, 2.7];
  const upper = subject(
    't1',
    slowness.map((factor) => [200 * factor, 210 * factor]),
  );
  const lower = subject(
    't1',
    slowness.map((factor) => [100 * factor, 105 * factor]),
  );
  const found = ratio(median(upper), median(lower));
  t.true(found !== undefined && found.low > 1.85 && found.high < 2.15, JSON.stringify(found));
});

test('intervals contain the value and are the same each time', (t) => {
  const measure = median(subject('t1', around(1_000_000, 1)));
  const found = estimate(measure);
  t.true(found !== undefined && found.low <= found.value && found.value <= found.high && found.low < found.high);
  t.deepEqual(estimate(measure), found);
  t.is(estimate(median(subject('t1', []))), undefined);
});

test('a change of 10 % is seen in noise, and no change is not', (t) => {
  const before = median(subject('t1', around(1_000_000, 1)));
  const slower = change(before, median(subject('t1', around(1_100_000, 2))));
  t.true(slower !== undefined && slower.low > 1 && slower.high < 1.25, JSON.stringify(slower));
  const same = change(before, median(subject('t1', around(1_000_000, 3))));
  t.true(same !== undefined && same.low < 1 && same.high > 1, JSON.stringify(same));
});

test('what changed in the machine is divided out', (t) => {
  const yardstick = {
    before: median(subject('t1', around(800_000, 4))),
    after: median(subject('t1', around(1_600_000, 5))),
  };
  const found = change(
    median(subject('t1', around(1_000_000, 6))),
    median(subject('t1', around(2_000_000, 7))),
    yardstick,
  );
  t.true(found !== undefined && found.low < 1 && found.high > 1, JSON.stringify(found));
});
