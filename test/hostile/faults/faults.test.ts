/**
 * Some calls of a launch fail here, by faults that take turns; `npm run test:faults` has each one fail, and with --every in
 * every way.
 */
import { requires } from '../../helpers/index.js';
import { failEach, faults, flaw, type GuestName, type Whose } from './faults.js';

const { serial: test } = requires('kvm', 'root', 'programs');

for (const [guest, whose, title] of [
  ['a bare-metal guest', 'monitor', 'a call of the process of a bare-metal guest that fails'],
  ['a bare-metal guest', 'task', 'a call of the launcher that fails'],
] as const satisfies readonly [GuestName, Whose, string][]) {
  test(`${title} is told at once and as what it is, and leaves nothing`, async (t) => {
    // To kill Node's own threads is another matter.
    const { outcomes, left } = await failEach(guest, whose, whose === 'task' ? faults.slice(0, -1) : faults, {
      // Of the one hundred and more of a process; prime to how many faults there are, so that all have their turn.
      step: whose === 'task' ? 1 : 5,
    });
    t.deepEqual(
      outcomes.flatMap((outcome) => flaw(outcome) ?? []),
      [],
    );
    t.deepEqual(left, []);
    // Every step of the child that fails is one.
    if (whose === 'monitor') t.true(outcomes.some(({ error }) => error?.code === 'ERR_CASEMATE_LAUNCH_STEP'));
    t.true(outcomes.some(({ error }) => error !== undefined));
  });
}
