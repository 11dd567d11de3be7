import { text } from 'node:stream/consumers';
import { CasemateError, type ErrorCode, type LaunchOptions, launch, type VmExit } from 'casemate';
import type { ExecutionContext } from './index.js';

/** What a guest writes, and how it ends. */
export async function run(options: LaunchOptions): Promise<{ output: string; exit: VmExit }> {
  await using vm = await launch(options);
  const output = await text(vm.console);
  return { output, exit: await vm.exited };
}

/** The error of a launch that must fail. */
export async function refused(t: ExecutionContext, options: LaunchOptions, code: ErrorCode): Promise<CasemateError> {
  return (await t.throwsAsync(launch(options), { instanceOf: CasemateError, code })) as CasemateError;
}
