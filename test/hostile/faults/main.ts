/**
 * node build/test/hostile/faults/main.js [--every] [--list]
 *
 * Each call of a launch fails, of a bare-metal guest and of a Linux guest with devices, in its process and in the
 * launcher: once, or with --every in every way. --list prints what came of each.
 */
import { parseArgs } from 'node:util';
import { failEach, faults, flaw, type GuestName, guests } from './faults.js';

const { values } = parseArgs({
  options: { every: { type: 'boolean', default: false }, list: { type: 'boolean', default: false } },
});

if (process.geteuid?.() !== 0) {
  console.log('1..0 # SKIP a filter that asks needs root');
  process.exit();
}

let count = 0;
for (const guest of Object.keys(guests) as GuestName[]) {
  for (const whose of ['born', 'task'] as const) {
    const { outcomes, left } = await failEach(guest, whose, whose === 'task' ? faults.slice(0, -1) : faults, values);
    const flaws = outcomes.flatMap((outcome) => {
      const wrong = flaw(outcome);
      return wrong === undefined ? [] : [`${outcome.number}, ${outcome.call}, ${outcome.fault}: ${wrong}`];
    });
    count += 1;
    const isGood = flaws.length === 0 && left.length === 0;
    const what = whose === 'born' ? 'the process' : 'the launcher';
    console.log(`${isGood ? 'ok' : 'not ok'} ${count} - ${guest}: ${outcomes.length} faults of ${what}`);
    for (const line of [...flaws, ...left]) console.log(`  # ${line}`);
    if (!isGood) process.exitCode = 1;
    if (!values.list) continue;
    for (const { number, call, fault, exit, error, ms } of outcomes) {
      const came = error === undefined ? exit?.reason : `${error.code} ${error.step}: ${error.message}`;
      console.log(`  # ${number} ${call} ${fault}: ${came} (${ms} ms)`);
    }
  }
}
console.log(`1..${count}`);
