/** How long each step of a launch took, by what the launch noted. */

import test from 'ava';
import type { TimelineStep } from '#lib/jail/launcher.js';
import { timeline } from '#lib/vm/timeline.js';
import { stampNames } from '#lib/vm/wire.js';

const monitor = Array.from(stampNames, (_, index) => BigInt(70 + index));

/** A launch that called execve at 50 and whose monitor began at 70, told when its launcher was woken. */
function launched(wokenAt: bigint) {
  const launch: TimelineStep[] = [
    { name: 'submit', where: 'node', at: 10n },
    { name: 'take', where: 'launcher', at: 20n },
    { name: 'clone3', where: 'launcher', at: 40n },
    { name: 'capabilities', where: 'child', at: 50n },
    { name: 'exec', where: 'child', at: wokenAt },
    { name: 'jailed', where: 'launcher', at: 75n },
  ];
  const { steps } = timeline(0n, 100n, launch, monitor);
  return steps.map(({ name, where, durationNs }) => `${where} ${name} ${durationNs}`);
}

for (const [when, wokenAt] of [
  ['before', 60n],
  ['after', 72n],
] as const) {
  test(`execve is measured from its call where the launcher wakes ${when} the monitor begins`, (t) => {
    const steps = launched(wokenAt);
    t.deepEqual(steps.slice(0, 4), [
      'node submit 10',
      'launcher take 10',
      'launcher clone3 20',
      'child capabilities 10',
    ]);
    t.true(steps.includes('monitor exec 20'));
    t.true(steps.includes(`launcher vfork ${wokenAt - 50n}`));
    t.true(steps.includes('launcher jailed 35'));
    t.is(steps.indexOf('monitor exec 20') < steps.indexOf(`launcher vfork ${wokenAt - 50n}`), when === 'after');
    t.is(steps.filter((step) => step.startsWith('child ')).length, 1);
  });
}
