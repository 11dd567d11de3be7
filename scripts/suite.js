// Runs one suite that speaks the Test Anything Protocol and counts its tests.
// The native unit tests and ava speak it both; lint checks are counted as tests.
import { spawn } from 'node:child_process';
import { appendFileSync } from 'node:fs';
import { createInterface } from 'node:readline';

/** Counts the lines of one TAP stream as they come. Any suite can speak like that. */
export class Tally {
  passed = 0;
  failed = 0;
  skipped = 0;
  /** What has failed, in its own words: a line, and those that say why. */
  failures = [];
  /** Comments of ava on files, of which some tests never came to an end. */
  #remarks = [];
  #planned = 0;
  #isExplained = false;

  /** Prints a line that counts. */
  say(line) {
    console.log(line);
    this.add(line);
  }

  add(line) {
    this.#isExplained &&= line.startsWith('  ');
    if (this.#isExplained) this.failures.push(line);
    const [, not, directive] = /^(not )?ok\b(?:.*# (SKIP|TODO)\b)?/i.exec(line) ?? [null];
    if (directive !== undefined) this.skipped++;
    else if (not !== undefined) {
      this.#fail(line.trim());
      this.#isExplained = true;
    } else if (/^ok\b/.test(line)) this.passed++;
    if (/^# \d+ tests? remaining in /.test(line)) this.#remarks.push(`  ${line}`);
    this.#planned = Number(/^1\.\.(\d+)/.exec(line)?.[1] ?? this.#planned);
  }

  /**
   * What was planned and did not come has failed; a suite that ended badly has failed, whatever it said before.
   *
   * @param how - it ended, where that was badly: `exit code 1`, `SIGSEGV`.
   */
  end(how) {
    const missing = this.#planned - this.passed - this.failed - this.skipped;
    if (missing > 0) this.#fail(`${missing} tests that were planned did not come`, missing);
    if (how !== undefined && this.failed === 0) this.#fail(`it ended badly: ${how}`);
    if (missing > 0 || how !== undefined) this.failures.push(...this.#remarks);
  }

  #fail(what, count = 1) {
    this.failed += count;
    this.failures.push(what);
  }
}

/** Runs a program, passes its output on, and resolves to what its TAP says. */
export async function runTap(command, args, env = {}, cwd = '.') {
  const child = spawn(command, args, {
    cwd,
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, ...env },
  });
  const ended = new Promise((resolve) => {
    child.on('error', (error) => resolve(error.message));
    child.on('close', (code, signal) => resolve(code === 0 ? undefined : (signal ?? `exit code ${code}`)));
  });
  const tally = new Tally();
  for await (const line of createInterface({ input: child.stdout })) {
    tally.say(line);
  }
  const end = await ended;
  tally.end(end);
  if (end !== undefined) console.log(`# ${command} ended with ${end}`);
  return tally;
}

export const total = (tallies) =>
  tallies.reduce((sum, tally) => ({
    passed: sum.passed + tally.passed,
    failed: sum.failed + tally.failed,
    skipped: sum.skipped + tally.skipped,
  }));

export const format = ({ passed, failed, skipped }) => `${passed} passed, ${failed} failed, ${skipped} skipped`;

/**
 * Says what the suites came to and sets the exit code. `.ci/run` adds up several such runs: it asks for their numbers in
 * a file, and for what has failed, behind numbers that add nothing, for its end is what people look at.
 */
export function conclude(tallies) {
  const sum = total(Object.values(tallies));
  console.log();
  for (const [name, tally] of Object.entries(tallies)) console.log(`${name}: ${format(tally)}`);
  const failures = Object.entries(tallies).flatMap(([name, tally]) => tally.failures.map((what) => `${name}: ${what}`));
  for (const failure of failures) console.log(failure);
  if (process.env.CASEMATE_TALLY !== undefined) {
    const lines = [`${sum.passed} ${sum.failed} ${sum.skipped}`, ...failures.map((failure) => `0 0 0 ${failure}`)];
    appendFileSync(process.env.CASEMATE_TALLY, `${lines.join('\n')}\n`);
  }
  process.exitCode = sum.failed > 0 ? 1 : 0;
}
