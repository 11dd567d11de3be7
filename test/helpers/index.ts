/**
 * What tests need of the host, and how they skip without it.
 *
 * ava cannot skip a test once it runs, so the decision falls when a test file is loaded: every capability is
 * probed synchronously, once per file that asks for it. A test that lacks one is declared with `test.skip`
 * under a title that ends in the reason: ava's own reporter prints it and counts it as skipped, and so does
 * the last line of `.ci/run`.
 *
 *     import { requires } from '../helpers/index.js';
 *
 *     const test = requires('kvm', 'userns');
 *     test('a guest says hello', async (t) => { ... });
 *
 * Tests run from build/test/. They import what is public from 'casemate', 'casemate/kvm', ..., and what is
 * not from '#lib/...'; both are the compiled lib/, whose source maps lead the coverage back to src/.
 */
import ava, { type ExecutionContext, type Implementation } from 'ava';
import { type Capability, capabilities, has } from './capabilities.js';

export { type Capability, has } from './capabilities.js';
export { root } from './root.js';

export type Declare = (title: string, body: Implementation<[]>) => void;

/** Declares tests that need these capabilities; `.serial` those that must not run beside others of their file. */
export function requires(...needed: Capability[]): Declare & { serial: Declare } {
  const missing = needed.find((capability) => !has(capability));
  const skip: Declare = (title, body) => {
    ava.skip(`${title} (skipped: ${missing && capabilities[missing].reason})`, body);
  };
  const run: Declare = (title, body) => ava(title, body);
  const serial: Declare = (title, body) => ava.serial(title, body);
  return missing === undefined ? Object.assign(run, { serial }) : Object.assign(skip, { serial: skip });
}

export type { ExecutionContext };
