import { CasemateError, errnoRemedy } from '../errors.js';
import { native } from '../native.js';
import { encodePlan } from './encode.js';
import type { NamespaceKind, Step, StepName } from './steps.js';

/** What {@link runSteps} takes besides the steps. */
export interface RunStepsOptions {
  /** Descriptors by the names that the steps give them. They stay the caller's. */
  descriptors?: Readonly<Record<string, number>>;
  /** Namespaces of the thread that are wanted afterwards. */
  keep?: readonly NamespaceKind[];
}

/** These change the whole process and not only the thread that they run on. */
const ofTheProcess: ReadonlySet<StepName> = new Set([
  'execLabel',
  'socketLabel',
  'socketPair',
  'pooled',
  'tap',
  'rlimit',
  'session',
  'coreScheduling',
  'descriptors',
  'parentDeath',
  'exec',
]);

/** SECCOMP_FILTER_FLAG_TSYNC: the filter is every thread's. */
const forEveryThread = 1;

function isOfTheProcess(step: Step): boolean {
  return ofTheProcess.has(step.op) || (step.op === 'seccomp' && (step.flags & forEveryThread) !== 0);
}

/**
 * Runs steps on a thread of their own, which then ends: unshare(2), setns(2), mounts and the like, without changing
 * anything of Node. What remains are descriptors of the thread's namespaces, for {@link steps.setns} in a plan.
 *
 * A user namespace cannot be entered this way (the kernel refuses it to a thread): that takes a process.
 *
 * @throws CasemateError ERR_CASEMATE_INVALID_OPTION for steps that would change the whole process;
 * ERR_CASEMATE_LAUNCH_STEP where one fails, with its name as `step`.
 * @example
 * ```ts
 * const { net } = await runSteps([steps.unshare('net')], { keep: ['net'] });
 * ```
 */
export async function runSteps<K extends NamespaceKind = never>(
  steps: readonly Step[],
  options: RunStepsOptions & { keep?: readonly K[] } = {},
): Promise<Record<K, number>> {
  const { descriptors = {}, keep = [] } = options;
  const forbidden = steps.find(isOfTheProcess);
  if (forbidden !== undefined) {
    throw new CasemateError('ERR_CASEMATE_INVALID_OPTION', `The step ${forbidden.op} belongs to a process`, {
      step: forbidden.op,
      remedy: 'Use it in a plan for spawn().',
    });
  }
  const given = Object.keys(descriptors);
  const plan = encodePlan({ clone: [], descriptors: given, steps, check: [] });
  return new Promise((resolve, reject) => {
    native.runSteps(plan.bytes, Object.values(descriptors), keep, ({ step, error, descriptors: kept }) => {
      if (error === null) {
        resolve(Object.fromEntries(keep.map((kind, index) => [kind, kept[index]])) as Record<K, number>);
        return;
      }
      const name = plan.steps[step] ?? 'keep';
      reject(
        new CasemateError('ERR_CASEMATE_LAUNCH_STEP', `Step ${name} failed: ${error.message}`, {
          step: name,
          remedy: errnoRemedy,
          cause: error,
        }),
      );
    });
  });
}
