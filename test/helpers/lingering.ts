/**
 * ava loads this into the process of each test file. Such a process ends by itself when its tests are done and nothing
 * else keeps it alive. ava waits for that, and kills it when its own timeout is over, without a word: what keeps it is
 * known in here only.
 */
import { relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import ava, { registerCompletionHandler } from 'ava';
import { childrenOf, ifThere, patience, readProc } from './proc.js';
import { root } from './root.js';

/** A matter of milliseconds, but the machine may be busy. */
const limitMs = 20_000 * patience;

registerCompletionHandler(() => {
  setTimeout(() => {
    const children = childrenOf('self');
    const names = children.map((pid) => ifThere(() => readProc(pid, 'comm').trim()) ?? 'that has ended');
    const what = [...process.getActiveResourcesInfo(), ...names.map((name) => `a child ${name}`)];
    // With our output, which ava reads to its end.
    for (const pid of children) ifThere(() => process.kill(pid, 'SIGKILL'));
    // An uncaught error is one of this file's to ava, and ends the process.
    const file = relative(root, fileURLToPath(ava.meta.file));
    throw new Error(
      `${file} has run its tests and does not end. It has ${what.join(', ') || 'nothing that Node knows of'}`,
    );
  }, limitMs).unref();
});
