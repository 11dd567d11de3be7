/**
 * The bench: `npm run bench`.
 *
 * Each trial is a fresh process; all subjects take turns, round by round, so that a machine that is slow for a while is
 * slow for all of them, and ratios hold.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { availableParallelism, loadavg } from 'node:os';
import { join, relative } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { describeMachine } from './machine.js';
import { renderComparison } from './report/compare.js';
import { renderPage } from './report/html.js';
import { renderTable } from './report/table.js';
import { format, type Results, readResults, type SubjectResult, type Trial } from './results.js';
import { allSubjects } from './rows/index.js';
import { buildPrograms, built, type Effort, root, type Subject } from './subject.js';

const help = `Measures what a launch costs, beside its floor and its peers.

Usage: npm run bench -- [options]
       npm run bench -- compare BEFORE.json AFTER.json
       npm run bench -- report RESULTS.json

Prints a table, and writes results.json and index.html (charts) into a folder.

Options:
  --smoke          shows only that everything works: one short trial each; the numbers mean nothing
  --rows NAMES     only subjects whose name begins with one of these, 'launch,floor,nothing'
  --trials N       processes for each subject (default: 20)
  --launches N     launches that each process measures (default: 25)
  --out DIR        where the results go (default: build/bench/report)
  --list           the names of all subjects, and what is missing for those that cannot be measured
  --install-peers  install bubblewrap, crun, QEMU and what else is compared with (Debian), and end
  -h, --help       this text

compare says what changed between two runs beyond noise; report makes the page and the table again.
`;

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    smoke: { type: 'boolean', default: false },
    rows: { type: 'string' },
    trials: { type: 'string' },
    launches: { type: 'string' },
    out: { type: 'string' },
    list: { type: 'boolean', default: false },
    'install-peers': { type: 'boolean', default: false },
    help: { type: 'boolean', short: 'h', default: false },
  },
});

/** What a process leaves to the kernel (namespaces above all) is gone before the next one starts. */
const settleMs = 150;

function positive(name: string, text: string): number {
  if (!/^[1-9]\d{0,5}$/.test(text)) throw new Error(`--${name} takes a number from 1 on, not '${text}'`);
  return Number(text);
}

function chosen(): Subject[] {
  const beginnings = options.rows?.split(',');
  return allSubjects.filter(
    ({ name, long }) =>
      (beginnings?.some((beginning) => name.startsWith(beginning)) ?? true) && !(options.smoke && long),
  );
}

/** Runs all rounds. What fails is said at once, and in the results. */
async function measure(subjects: readonly Subject[]): Promise<{ results: Results; failures: number }> {
  const machine = describeMachine();
  const effort: Effort = {
    smoke: options.smoke,
    launches: positive('launches', options.launches ?? (options.smoke ? '2' : '25')),
  };
  const rounds = positive('trials', options.trials ?? (options.smoke ? '1' : '20'));
  const trials = new Map<Subject, Trial[]>(subjects.map((subject) => [subject, []]));
  const skipped = new Map<Subject, string>();
  let failures = 0;
  for (const subject of subjects) {
    const missing = subject.missing();
    if (missing !== undefined) skipped.set(subject, missing);
  }
  for (let round = 0; round < rounds; round += 1) {
    const due = subjects.filter((subject) => !skipped.has(subject) && round % (subject.every ?? 1) === 0);
    // Each round begins with another one: none is always measured behind the same neighbour.
    for (let turn = 0; turn < due.length; turn += 1) {
      const subject = due[(turn + round) % due.length] as Subject;
      progress(`round ${round + 1} of ${rounds}: ${subject.name}`);
      try {
        trials.get(subject)?.push({ round, ...(await subject.trial(effort)) });
      } catch (error) {
        failures += 1;
        skipped.set(subject, `failed: ${(error as Error).message}`);
        progress('');
        console.error(`${subject.name}: ${(error as Error).message}`);
      }
      await sleep(settleMs);
    }
  }
  progress('');
  const results: Results = {
    format,
    machine: { ...machine, 'load afterwards': (loadavg()[0] as number).toFixed(2) },
    processors: availableParallelism(),
    smoke: options.smoke,
    subjects: Object.fromEntries(
      subjects.map((subject): [string, SubjectResult] => {
        const why = skipped.get(subject);
        const { name, title, family } = subject;
        return [name, { title, family, trials: trials.get(subject) ?? [], ...(why !== undefined && { skipped: why }) }];
      }),
    ),
  };
  return { results, failures };
}

/** One line that is written over; nothing where nobody watches. */
function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
}

function write(results: Results, folder: string): void {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'results.json'), `${JSON.stringify(results)}\n`);
  writeFileSync(join(folder, 'index.html'), renderPage(results));
  process.stdout.write(renderTable(results));
  const page = relative('', join(folder, 'index.html'));
  console.log(`\n${page} shows it with charts; results.json next to it holds every number.`);
}

async function main(): Promise<number> {
  const [command, ...files] = positionals;
  if (options.help) {
    process.stdout.write(help);
    return 0;
  }
  if (options['install-peers'])
    return spawnSync(join(root, 'bench/peers/install.sh'), { stdio: 'inherit' }).status ?? 1;
  const folder = options.out ?? built('report');
  if (command === 'compare' && files.length === 2) {
    process.stdout.write(renderComparison(readResults(files[0] as string), readResults(files[1] as string)));
    return 0;
  }
  if (command === 'report' && files.length === 1) {
    write(readResults(files[0] as string), folder);
    return 0;
  }
  if (command !== undefined) {
    process.stderr.write(help);
    return 2;
  }
  const problem = buildPrograms();
  if (problem !== undefined) console.error(`Without what is built in C: ${problem}`);
  if (options.list) {
    for (const { name, title, missing } of allSubjects) console.log(`${name.padEnd(18)} ${missing() ?? title}`);
    return 0;
  }
  const { results, failures } = await measure(chosen());
  write(results, folder);
  return failures === 0 ? 0 : 1;
}

process.exitCode = await main();
