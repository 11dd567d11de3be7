import { constants } from 'node:os';
import { onAbort } from '../abort.js';
import { abortError, CasemateError } from '../errors.js';
import { encodePlan } from './encode.js';
import { launchError, launchPlan, reaped, runLaunch, type TimelineStep, timelineSteps } from './launcher.js';
import type { NativeChild } from './native.js';
import type { Plan } from './steps.js';

/** What {@link spawn} takes besides the plan. */
export interface SpawnOptions {
  /** Descriptors by the names that the plan gives them. They stay the caller's. */
  descriptors?: Readonly<Record<string, number>>;
  /**
   * `'host'` (the default): the plan's steps start out with the host's mounts. `'prepared'`: with an empty read-only
   * root that holds nothing but the monitor, as a VM's.
   */
  mounts?: 'host' | 'prepared';
  /** Kills the process. */
  signal?: AbortSignal;
}

/** A static program started by a plan. */
export class JailedProcess implements AsyncDisposable {
  readonly #child: NativeChild;
  readonly #slots: ReadonlyMap<string, number>;
  /** As this process's pid namespace has it. */
  readonly pid: number;
  /** How it ended: its exit code, or the number of the signal that ended it. */
  readonly exited: Promise<{ code: number | null; signal: number | null }>;
  /** The steps of its launch. */
  readonly steps: readonly TimelineStep[];

  /** @internal */
  constructor(child: NativeChild, slots: ReadonlyMap<string, number>, steps: readonly TimelineStep[]) {
    this.#child = child;
    this.#slots = slots;
    this.pid = child.pid;
    this.steps = steps;
    this.exited = reaped(child).then(({ code, signal }) => ({ code, signal }));
  }

  /** Sends a signal by pidfd; nothing happens where it has ended. */
  kill(signal: NodeJS.Signals = 'SIGKILL'): void {
    this.#child.kill(constants.signals[signal]);
  }

  /**
   * Our end of a socket pair of the plan, by the name it has there. It is the caller's from now on.
   *
   * @throws CasemateError ERR_CASEMATE_INVALID_OPTION where there is none of that name, or it was taken already.
   */
  takeDescriptor(name: string): number {
    const slot = this.#slots.get(name);
    const fd = slot === undefined ? -1 : this.#child.takeDescriptor(slot);
    if (fd >= 0) return fd;
    throw new CasemateError('ERR_CASEMATE_INVALID_OPTION', `There is no descriptor '${name}' to be taken`, {
      step: name,
      remedy: 'Take our end of a socketPair of the plan, by its name there, and once.',
    });
  }

  /** Kills it, and waits until it is gone. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.kill();
    await this.exited;
  }
}

/**
 * Starts a program by a plan: the very steps that launch a monitor, for any static program. No shell, no helper.
 *
 * @throws CasemateError ERR_CASEMATE_INVALID_OPTION for a plan that makes no sense; ERR_CASEMATE_LAUNCH_STEP with
 * the `step` that failed, and nothing left behind.
 */
export async function spawn(plan: Plan, options: SpawnOptions = {}): Promise<JailedProcess> {
  const { signal, descriptors = {} } = options;
  if (signal?.aborted) throw abortError(signal);
  const encoded = encodePlan(plan);
  if (plan.steps.at(-1)?.op !== 'exec') {
    throw new CasemateError('ERR_CASEMATE_INVALID_OPTION', 'A plan that starts a program ends with exec', {
      step: 'plan',
      remedy: 'Add steps.exec() as its last step; runSteps() runs steps without a program.',
    });
  }
  for (const name of encoded.given) {
    if (descriptors[name] !== undefined) continue;
    throw new CasemateError('ERR_CASEMATE_INVALID_OPTION', `The plan needs a descriptor '${name}'`, {
      step: `options.descriptors.${name}`,
      remedy: 'Give it the number of an open descriptor, or leave the name out of plan.descriptors.',
    });
  }
  const prepared = launchPlan(encoded, { inHostMounts: options.mounts !== 'prepared' });
  const { child, done } = runLaunch({ plan: prepared, descriptors });
  const outcome = await done;
  if (outcome.stage !== 'none') {
    await reaped(child);
    throw launchError(outcome);
  }
  const started = new JailedProcess(child, encoded.slots, timelineSteps(encoded, child.stamps));
  const unlisten = onAbort(signal, () => started.kill());
  if (signal?.aborted) started.kill();
  started.exited.then(unlisten);
  return started;
}
