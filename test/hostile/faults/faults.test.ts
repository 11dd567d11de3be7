/** Each call of a launch fails once here, by faults that take turns; `npm run test:faults` has each fail in every way. */
import { requires } from '../../helpers/index.js';
import { failEach, faults, flaw, type GuestName, type Whose } from './faults.js';

const { serial: test } = requires('kvm', 'root', 'programs');

for (const [guest, whose, title] of [
  ['a bare-metal guest', 'born', 'a call of the process of a bare-metal guest that fails'],
  ['a bare-metal guest', 'task', 'a call of the launcher that fails'],
] as const satisfies readonly [GuestName, Whose, string][]) {
  test(`${title} is told at once and as what it is, and leaves nothing`, async (t) => {
    // To kill Node's own threads is another matter.
    const { outcomes, left } = await failEach(guest, whose, whose === 'task' ? faults.slice(0, -1) : faults);
    t.deepEqual(
      outcomes.flatMap((outcome) => flaw(outcome) ?? []),
      [],
    );
    t.deepEqual(left, []);
    t.true(outcomes.some(({ error }) => error?.code === 'ERR_CASEMATE_LAUNCH_STEP'));
    t.true(outcomes.some(({ error }) => error?.code === 'ERR_CASEMATE_MONITOR'));
  });
}
