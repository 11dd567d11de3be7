/**
 * node build/test/hostile/faults/main.js [--every] [--list]
 *
 * Each call of a launch fails, of a bare-metal guest and of a Linux guest with devices, in its process and in the
 * launcher: once, or with --every in every way; then in the process once more, launched by a user. So do those of the
 * process that makes a tap. --list prints what came of each.
 */
import { spawnSync } from 'node:child_process';
import { statSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { has } from '../../helpers/capabilities.js';
import { failEach, faults, flaw, type GuestName, guests, sparedRequests } from './faults.js';

const { values } = parseArgs({
  options: { every: { type: 'boolean', default: false }, list: { type: 'boolean', default: false } },
});

if (process.geteuid?.() !== 0) {
  console.log('1..0 # SKIP a filter that asks needs root');
  process.exit();
}

/** A user who may open /dev/kvm, by his group. */
const user = statSync('/dev/kvm').gid;

/** Why there is no such user, or he cannot launch from here. */
function excuse(): string | undefined {
  if (user === 0) return "the group of /dev/kvm is root's";
  const helper = fileURLToPath(new URL('../../helpers/leaks.js', import.meta.url));
  const become = [`--reuid=${user}`, `--regid=${user}`, '--clear-groups', 'unshare', '--user', 'head', '-c1', helper];
  return spawnSync('setpriv', become).status === 0
    ? undefined
    : `user ${user} can make no user namespace, or not read ${helper}`;
}

const noUser = excuse();
let count = 0;
for (const guest of Object.keys(guests) as GuestName[]) {
  for (const [whose, uid] of [['monitor'], ['helper'], ['task'], ['monitor', user]] as const) {
    if (whose === 'helper' && (guest !== 'a Linux guest' || !has('tun'))) continue;
    if (uid !== undefined && noUser !== undefined) {
      count += 1;
      console.log(`ok ${count} - ${guest}: faults of the process, launched by a user # SKIP ${noUser}`);
      continue;
    }
    const by = whose === 'task' ? faults.slice(0, -1) : faults;
    const { outcomes, left } = await failEach(guest, whose, by, { ...values, uid });
    const flaws = outcomes.flatMap((outcome) => {
      const wrong = flaw(outcome);
      return wrong === undefined ? [] : [`${outcome.number}, ${outcome.call}, ${outcome.fault}: ${wrong}`];
    });
    if (whose === 'monitor') flaws.push(...sparedRequests(guest, outcomes).map((name) => `${name} has not failed`));
    count += 1;
    const isGood = flaws.length === 0 && left.length === 0;
    const who = uid === undefined ? '' : ', launched by a user';
    const what = { monitor: 'the process', helper: 'the one that makes its tap', task: 'the launcher' }[whose] + who;
    const slowest = Math.max(...outcomes.map(({ ms }) => ms));
    console.log(
      `${isGood ? 'ok' : 'not ok'} ${count} - ${guest}: ${outcomes.length} faults of ${what}, the slowest ${slowest} ms`,
    );
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
