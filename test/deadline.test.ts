import { setTimeout as delay, setImmediate as immediate } from 'node:timers/promises';
import test from 'ava';
import { deadline } from '#lib/deadline.js';

/**
 * The names of all in the order in which they are missed, with something done once they are set. They are set one after
 * the other: where this machine stood still meanwhile, they are set once more and further apart.
 */
async function missed(
  list: readonly (readonly [name: string, ms: number])[],
  meanwhile: (scale: number) => void = () => {},
): Promise<string[]> {
  for (let scale = 1; ; scale *= 2) {
    const names: string[] = [];
    const begun = performance.now();
    const all = new Promise<void>((resolve) => {
      for (const [name, ms] of list) {
        deadline(ms * scale, () => {
          names.push(name);
          if (names.length === list.length) resolve();
        });
      }
    });
    const took = performance.now() - begun;
    meanwhile(scale);
    await all;
    if (took < 5 * scale) return names;
  }
}

/** Node does something else. */
const beBusy = (ms: number) => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);

test.serial('deadlines are missed one after the other, whatever the order in which they were set', async (t) => {
  // Theirs is a timer that does not keep Node alive.
  const alive = setInterval(() => {}, 1000);
  t.teardown(() => clearInterval(alive));
  t.deepEqual(
    await missed([
      ['late', 60],
      ['soon', 5],
      ['later', 90],
      ['then', 30],
    ]),
    ['soon', 'then', 'late', 'later'],
  );
});

test.serial('those that are over at once are missed in their order, too', async (t) => {
  const names = await missed(
    [
      ['last', 20],
      ['first', 1],
      ['second', 10],
    ],
    (scale) => beBusy(50 * scale),
  );
  t.deepEqual(names, ['first', 'second', 'last']);
});

test.serial('one that is met is not missed, and others still are', async (t) => {
  const alive = setInterval(() => {}, 1000);
  t.teardown(() => clearInterval(alive));
  const met = deadline(5, () => t.fail());
  const others = missed([['other', 20]]);
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
