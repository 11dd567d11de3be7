/**
 * Runs one scenario and tells how it goes, a JSON value a line. A process of its own: what goes wrong may be a crash.
 *
 *     node build/test/soak/subject.js <scenario> <rounds> <seed>
 */
import { openSync } from 'node:fs';
import { launch } from 'casemate';
import { guest } from '../helpers/guests.js';
import { leaks } from '../helpers/leaks.js';
import { orphansLeft } from '../helpers/scripts.js';
import { ends } from './ends.js';
import { launches } from './launches.js';
import { randomFrom, type Scenario } from './soak.js';

const scenarios: Readonly<Record<string, Scenario>> = { ...launches, ...ends };
/** What a scenario is not to do. */
const control: Scenario = {
  title: 'what is left behind is found',
  rounds: 1,
  short: 1,
  needs: ['kvm'],
  async run() {
    await launch({ guest: guest('spin') });
    openSync('/dev/zero', 'r');
  },
};
const [name = '', rounds, seed] = process.argv.slice(2);
const scenario = name === 'control' ? control : scenarios[name];
const tell = (value: object) => process.stdout.write(`${JSON.stringify(value)}\n`);

if (scenario === undefined) {
  const { has, capabilities } = await import('../helpers/capabilities.js');
  for (const [name, { title, rounds, short, needs }] of Object.entries(scenarios)) {
    const missing = needs.find((need) => !has(need));
    tell({ name, title, rounds, short, missing: missing && capabilities[missing].reason });
  }
} else {
  // What is opened once per process: by a launch, and by libuv at the first stream.
  tell({ done: 0 });
  await (await launch({ console: 'ignore' })).exited;
  const left = await leaks(
    () =>
      scenario.run({
        rounds: Number(rounds),
        random: randomFrom(Number(seed)),
        done: (count) => tell({ done: count }),
        note: (text) => tell({ note: text }),
      }),
    // A worker that is terminated while Node loads a module in it loses the file of that: Node's own loss, not a launch's.
    (line) => !/^\+ descriptors: .*\.js$/.test(line),
  );
  const orphans = await orphansLeft();
  tell({ left: [...left, ...orphans.map((pid) => `+ monitor ${pid}`)] });
  if (scenario === control) process.exit(0);
}
