import { readdirSync } from 'node:fs';
import { relative } from 'node:path';
import { descendantsOf, ifThere, patience, readProc } from './build/test/helpers/proc.js';

// The rig brings this file along, and is the only place where its own tests run.
const inRig = process.env.CASEMATE_RIG !== undefined;

/**
 * For so long no test of any file may begin or end, or those that run have failed. The slowest takes 10 s on a machine
 * that is busy with others; the rig has limits of its own.
 */
const limitMs = Math.min(240_000, 60_000 * patience);

/** What the threads of a process wait for. proc_pid_wchan(5) */
const waiting = ({ pid, depth }) => {
  const read = (thread, name) => ifThere(() => readProc(pid, `task/${thread}/${name}`).trim()) ?? '';
  const threads = (ifThere(() => readdirSync(`/proc/${pid}/task`)) ?? []).map(
    (thread) => `${read(thread, 'comm')} in ${read(thread, 'wchan')}`,
  );
  return `${'  '.repeat(depth)}${pid}: ${threads.join(', ')}`;
};

/**
 * Ends what hangs, and says what it was. ava's own timeout does not: its TAP reporter breaks off at a test that has not
 * ended, and passes over a file that has none, because its process hangs before its tests or behind them.
 */
async function observeRun({ events }) {
  const begun = new Map(); // the tests of a file that have not ended, until that has
  const ended = new Set();
  const limit = setTimeout(() => {
    for (const [file, [...titles]] of begun)
      console.log(`not ok - ${relative('.', file)} hangs, with ${titles.length} tests to go: ${titles.join(', ')}`);
    const processes = descendantsOf('self');
    console.log(processes.map(waiting).join('\n'));
    // Not only those of the files: ava waits for whoever else has their output, too.
    for (const { pid } of processes) ifThere(() => process.kill(pid, 'SIGKILL'));
  }, limitMs).unref();
  for await (const { type, testFile, title, stats, skip, todo } of events) {
    if (type === 'worker-stdout' || type === 'worker-stderr') continue;
    limit.refresh();
    if (type === 'stats') {
      for (const file of stats.byFile.keys()) if (!begun.has(file) && !ended.has(file)) begun.set(file, new Set());
    } else if (type === 'selected-test' && !skip && !todo) {
      begun.get(testFile).add(title);
    } else if (type === 'test-passed' || type === 'test-failed') {
      begun.get(testFile).delete(title);
    } else if (type === 'worker-finished' || type === 'worker-failed') {
      begun.delete(testFile);
      ended.add(testFile);
    }
  }
  clearTimeout(limit);
}

export default {
  files: ['build/test/**/*.test.js', ...(inRig ? [] : ['!build/test/rig/**'])],
  workerThreads: false,
  timeout: `${2 * limitMs}ms`, // which is never over
  nodeArguments: ['--enable-source-maps'],
  require: ['./build/test/helpers/lingering.js'],
  nonSemVerExperiments: { observeRunsFromConfig: true },
  observeRun,
};
