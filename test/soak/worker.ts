/** A worker of the soak: launches, and ends as it is told. */
import { setTimeout as delay } from 'node:timers/promises';
import { workerData } from 'node:worker_threads';
import { launch } from 'casemate';
import { guest } from '../helpers/guests.js';

const { end, launches, afterMs } = workerData as { end: string; launches: number; afterMs: number };
const names = end === 'run' ? ['exit', 'info'] : ['spin', 'echo', 'flood', 'silent', 'exit'];
const all = Array.from({ length: launches }, async (_, i) => {
  const vm = await launch({
    guest: guest(names[i % names.length] as string),
    args: ['0'],
    input: new Uint8Array(4096),
  });
  return vm.exited;
});
if (end === 'run') {
  await Promise.all(all);
} else {
  for (const one of all) one.catch(() => {});
  await delay(afterMs);
  if (end === 'exit') process.exit(7);
  if (end === 'throw') throw new Error('thrown');
  await delay(60_000);
}
