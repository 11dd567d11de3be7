// Follows every launch and every end in this process, from outside the code that launches.
import { subscribe } from 'node:diagnostics_channel';
import { describeExit, type ExitMessage, type LaunchMessage, launch } from 'casemate';

subscribe('tracing:casemate:launch:asyncEnd', (message) => {
  const { id, vm } = message as LaunchMessage;
  if (vm === undefined) return;
  const { t0, t1 } = vm.timeline;
  console.log(`${id}: up after ${(t1 - t0) / 1000n} µs, as process ${vm.pid}`);
});
subscribe('tracing:casemate:launch:error', (message) => {
  const { id, error } = message as LaunchMessage;
  console.log(`${id}: ${error}`);
});
subscribe('casemate:exit', (message) => {
  const { id, exit } = message as ExitMessage;
  console.log(`${id}: ${describeExit(exit)}`);
});

const vm = await launch({ console: 'ignore' });
await vm.exited;
