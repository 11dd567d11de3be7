import { setTimeout as delay, setImmediate as immediate } from 'node:timers/promises';
import test from 'ava';
import { deadline } from '#lib/deadline.js';

/** Resolves with the names of those that are missed, in that order, once so many are. */
function missed(count: number, list: readonly (readonly [name: string, ms: number])[]): Promise<string[]> {
  return new Promise((resolve) => {
    const names: string[] = [];
    for (const [name, ms] of list) {
      deadline(ms, () => {
        names.push(name);
        if (names.length === count) resolve(names);
      });
    }
  });
}

/** Node does something else. */
const beBusy = (ms: number) => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);

test.serial('deadlines are missed one after the other, whatever the order in which they were set', async (t) => {
  // Theirs is a timer that does not keep Node alive.
  const alive = setInterval(() => {}, 1000);
  t.teardown(() => clearInterval(alive));
  t.deepEqual(
    await missed(4, [
      ['late', 60],
      ['soon', 5],
      ['later', 90],
      ['then', 30],
    ]),
    ['soon', 'then', 'late', 'later'],
  );
});

test.serial('those that are over at once are missed in their order, too', async (t) => {
  const names = missed(3, [
    ['last', 20],
    ['first', 1],
    ['second', 10],
  ]);
  beBusy(50);
  t.deepEqual(await names, ['first', 'second', 'last']);
});

test.serial('one that is met is not missed, and others still are', async (t) => {
  const alive = setInterval(() => {}, 1000);
  t.teardown(() => clearInterval(alive));
  const met = deadline(5, () => t.fail());
  const others = missed(1, [['other', 20]]);
  met();
  t.deepEqual(await others, ['other']);
});

test.serial('what was met while Node was busy is met, though Node hears of it after its time', async (t) => {
  const met = deadline(1, () => t.fail());
  beBusy(20);
  await immediate(); // as what is read in the first turn of the loop
  met();
  await delay(20);
  t.pass();
});

test.serial('it does not keep Node from ending', (t) => {
  t.false(process.getActiveResourcesInfo().includes('Timeout'));
  const met = deadline(60_000, () => t.fail());
  t.false(process.getActiveResourcesInfo().includes('Timeout'));
  met();
});
