/** Launches of labelled VMs of which one call fails: with disks, a tap and a cgroup, and labels on all of it. */
import test from 'ava';
import { failEach, faults, flaw, type Whose } from '../../hostile/faults/faults.js';

for (const [whose, title] of [
  ['task', 'a call of the launcher of a labelled Linux guest that fails'],
  ['helper', 'a call of the process that makes its tap that fails'],
  ['monitor', 'a call of the process of a labelled Linux guest that fails'],
] as const satisfies readonly [Whose, string][]) {
  test.serial(`${title} is told as what it is, and leaves nothing, labels included`, async (t) => {
    t.timeout(1_200_000);
    // To kill Node's own threads is another matter. The step is prime to how many faults there are.
    const [by, step] = whose === 'task' ? [faults.slice(0, -1), 1] : [faults, whose === 'helper' ? 1 : 7];
    const { outcomes, left } = await failEach('a Linux guest', whose, by, { step });
    t.deepEqual(
      outcomes.flatMap((outcome) => flaw(outcome) ?? []),
      [],
    );
    t.deepEqual(left, []);
    t.true(outcomes.some(({ error }) => error !== undefined));
    // Labels are written, of the program and of its sockets, and cleared.
    if (whose === 'task') t.true(outcomes.some(({ error }) => /attr/.test(error?.message ?? '')));
  });
}
