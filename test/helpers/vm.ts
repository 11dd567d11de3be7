import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { CasemateError, type ErrorCode, type LaunchOptions, launch, type Vm, type VmExit } from 'casemate';
import type { ExecutionContext } from './index.js';
import { patiently, threadStatesOf, within } from './proc.js';

/** What a guest writes, and how it ends. */
export async function run(options: LaunchOptions): Promise<{ output: string; exit: VmExit }> {
  await using vm = await launch(options);
  const output = await text(vm.console);
  return { output, exit: await vm.exited };
}

/** Whether the guest `echo` of a VM comes to wait for its input: it has said all that it will, and takes no more time. */
export async function comesToRest(vm: Vm): Promise<boolean> {
  vm.console.write('ready');
  await once(vm.console, 'data');
  return within(5000, () => threadStatesOf(vm.pid)[0] === 'S');
}

/** How a VM ends whose time, from launch() on, is over while it runs. */
export async function timedOut(options: LaunchOptions): Promise<VmExit> {
  const end = await patiently(
    (timeoutMs) =>
      launch({ ...options, timeoutMs }).then(
        (vm) => vm.exited,
        (error: CasemateError) => error,
      ),
    (end) => end instanceof CasemateError && end.code === 'ERR_CASEMATE_TIMEOUT',
  );
  if (end instanceof Error) throw end;
  return end;
}

/** The error of a launch whose monitor was ready in time, and whose guest was not. */
export async function guestTooSlow(t: ExecutionContext, options: LaunchOptions): Promise<CasemateError> {
  return patiently(
    (startTimeoutMs) => refused(t, { ...options, startTimeoutMs }, 'ERR_CASEMATE_TIMEOUT'),
    ({ step }) => step !== 'guest',
  );
}

/** The error of a launch that must fail. */
export async function refused(t: ExecutionContext, options: LaunchOptions, code: ErrorCode): Promise<CasemateError> {
  const launched = launch(options);
  // One that does not fail would keep the tests from ending.
  launched.then(
    (vm) => vm.kill(),
    () => {},
  );
  return (await t.throwsAsync(launched, { instanceOf: CasemateError, code })) as CasemateError;
}
