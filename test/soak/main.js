// Torture: launches by the thousand, ends at random moments, nothing left of anything. Each scenario is a Node of its own.
//
//   node test/soak/main.js [--short] [--minutes N] [--seed N] [scenario...]
//
// --short: a few rounds of each, to see that it works. --minutes: all of them again and again, with other random numbers,
// for that long. A seed repeats the random numbers of a run that said it, not what the kernel did meanwhile.
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { conclude, Tally } from '../../scripts/suite.js';

process.chdir(fileURLToPath(new URL('../..', import.meta.url)));
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    short: { type: 'boolean', default: false },
    minutes: { type: 'string', default: '0' },
    seed: { type: 'string', default: String(Math.floor(Math.random() * 2 ** 31)) },
  },
});

/** Runs the subject, calls back for each line that it tells, and resolves to why it ended badly, if it did. */
async function subject(args, told, env = {}) {
  const child = spawn(process.execPath, ['--expose-gc', 'build/test/soak/subject.js', ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  });
  let errors = '';
  child.stderr.setEncoding('utf8').on('data', (text) => {
    errors += text;
  });
  const closed = new Promise((resolve) => child.on('close', (code, signal) => resolve(signal ?? code)));
  // One that tells nothing more for so long hangs, which is worth knowing, too.
  let last = performance.now();
  const watch = setInterval(() => {
    if (performance.now() - last < 120_000) return;
    errors += 'It told nothing more for two minutes\n';
    child.kill('SIGKILL');
  }, 1000);
  for await (const line of createInterface({ input: child.stdout })) {
    last = performance.now();
    told(JSON.parse(line));
  }
  clearInterval(watch);
  const end = await closed;
  return end === 0 ? undefined : `It ended with ${end}\n${errors}`;
}

const scenarios = [];
const broken = await subject([], (scenario) => scenarios.push(scenario));
if (broken !== undefined) throw new Error(broken);
const strangers = positionals.filter((name) => !scenarios.some((scenario) => scenario.name === name));
if (strangers.length > 0)
  throw new Error(`No scenario ${strangers.join(', ')}: ${scenarios.map(({ name }) => name).join(', ')}`);

const tally = new Tally();

async function run({ name, title, rounds, short, missing }, seed) {
  if (missing !== undefined) {
    tally.say(`ok - ${name}: ${title} # SKIP ${missing}`);
    return;
  }
  const planned = values.short ? short : rounds;
  const started = performance.now();
  const seconds = () => Math.round((performance.now() - started) / 1000);
  const notes = [];
  let left;
  let said = started;
  const failure = await subject([name, planned, seed], (told) => {
    if (told.note !== undefined) notes.push(told.note);
    left = told.left ?? left;
    if (told.done === undefined || performance.now() - said < 10_000) return;
    said = performance.now();
    console.log(`# ${name}: ${told.done} of ${planned}, after ${seconds()} s`);
  });
  const wrong = failure ?? (left?.length === 0 ? undefined : `It left behind:\n${left?.join('\n')}`);
  if (wrong !== undefined) console.log(`${wrong}\n# seed ${seed}`);
  const about = [`${planned} rounds`, `${seconds()} s`, ...notes].join(', ');
  tally.say(`${wrong === undefined ? 'ok' : 'not ok'} - ${name}: ${title} (${about})`);
}

/** The soak finds what it is there to find: a scenario that leaves a VM and a descriptor has failed. */
async function runControl() {
  let left = [];
  const note = (told) => {
    left = told.left ?? left;
  };
  // What is never closed need not be waited for.
  const failure = await subject(['control', '1', '0'], note, { CASEMATE_PATIENCE: '0.1' });
  const found =
    failure === undefined &&
    ['children', 'descriptors: /dev/zero'].every((what) => left.some((line) => line.startsWith(`+ ${what}`)));
  if (!found) console.log(failure ?? left.join('\n'));
  tally.say(`${found ? 'ok' : 'not ok'} - control: what is left behind is found`);
}

const asked = scenarios.filter(({ name }) => positionals.length === 0 || positionals.includes(name));
const until = performance.now() + Number(values.minutes) * 60_000;
let seed = Number(values.seed);
console.log(`# seed ${seed}`);
if (asked.some(({ missing }) => missing === undefined)) await runControl();
do {
  for (const scenario of asked) await run(scenario, seed);
  seed += 1;
} while (performance.now() < until);
conclude({ soak: tally });
