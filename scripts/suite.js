// Runs one suite that speaks the Test Anything Protocol and counts its tests.
// The native unit tests and ava speak it both; lint checks are counted as tests.
import { spawn } from 'node:child_process';
import { appendFileSync } from 'node:fs';
import { createInterface } from 'node:readline';

/** Counts the lines of one TAP stream as they come. */
export class Tally {
  passed = 0;
  failed = 0;
  skipped = 0;
  #planned = 0;

  add(line) {
    const [, not, directive] = /^(not )?ok\b(?:.*# (SKIP|TODO)\b)?/i.exec(line) ?? [null];
    if (directive !== undefined) this.skipped++;
    else if (not !== undefined) this.failed++;
    else if (/^ok\b/.test(line)) this.passed++;
    this.#planned = Number(/^1\.\.(\d+)/.exec(line)?.[1] ?? this.#planned);
  }

  /** What was planned and did not come has failed; a suite that ended badly has failed, whatever it said before. */
  end(badly) {
    this.failed += Math.max(0, this.#planned - this.passed - this.failed - this.skipped);
    if (badly && this.failed === 0) this.failed = 1;
  }
}

/** Runs a program, passes its output on, and resolves to what its TAP says. */
export async function runTap(command, args, env = {}) {
  const child = spawn(command, args, {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, ...env },
  });
  const ended = new Promise((resolve) => {
    child.on('error', (error) => resolve(error.message));
    child.on('close', (code, signal) => resolve(code === 0 ? undefined : (signal ?? `exit code ${code}`)));
  });
  const tally = new Tally();
  for await (const line of createInterface({ input: child.stdout })) {
    console.log(line);
    tally.add(line);
  }
  const end = await ended;
  tally.end(end !== undefined);
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
 * Says what the suites came to and sets the exit code. `.ci/run` adds up several such runs: it asks for
 * their numbers in a file.
 */
export function conclude(tallies) {
  const sum = total(Object.values(tallies));
  console.log();
  for (const [name, tally] of Object.entries(tallies)) console.log(`${name}: ${format(tally)}`);
  if (process.env.CASEMATE_TALLY !== undefined) {
    appendFileSync(process.env.CASEMATE_TALLY, `${sum.passed} ${sum.failed} ${sum.skipped}\n`);
  }
  process.exitCode = sum.failed > 0 ? 1 : 0;
}
