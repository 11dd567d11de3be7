import type { TimelineStep } from '../jail/launcher.js';
import { stampNames } from './wire.js';

/** Every step of a launch. Times are CLOCK_MONOTONIC in nanoseconds, as process.hrtime.bigint() has them. */
export interface Timeline {
  /** The call of `launch()`. */
  readonly t0: bigint;
  /** The exit by which the monitor saw the guest's first hypercall. */
  readonly t1: bigint;
  /** The promise of `launch()` being resolved. */
  readonly t2: bigint;
  /** In the order in which they ended. The launcher's steps and the monitor's overlap: two processors work. */
  readonly steps: readonly (TimelineStep & {
    /**
     * Since the step before it of the same place, or of the place that started this one. The launcher's `vfork` counts
     * from the call of `execve`, and it waits for `jailed` since `clone3`.
     */
    readonly durationNs: number;
  })[];
}

/** Puts together what Node, the launcher, the child and the monitor noted. */
export function timeline(
  t0: bigint,
  t2: bigint,
  launch: readonly TimelineStep[],
  monitorStamps: readonly bigint[],
): Timeline {
  const monitor = stampNames.map((name, i): TimelineStep => ({ name, where: 'monitor', at: monitorStamps[i] ?? 0n }));
  const lastOf = new Map<string, bigint>();
  const before = (where: TimelineStep['where']): bigint =>
    lastOf.get(where) ?? (where === 'node' ? t0 : before(startedBy[where]));
  const steps = [...launch, ...monitor, { name: 'resolve', where: 'node' as const, at: t2 }]
    .filter(({ at }) => at !== 0n)
    .sort((left, right) => Number(left.at - right.at))
    .map((step) => {
      // Nothing of the child ends with its execve: that is when the launcher goes on, which may be before or after the
      // monitor's first instruction. Both are measured from the call, the child's last step.
      if (step.where === 'child' && step.name === 'exec') {
        const durationNs = Number(step.at - before('child'));
        return { name: 'vfork', where: 'launcher' as const, at: step.at, durationNs };
      }
      const durationNs = Math.max(0, Number(step.at - before(step.where)));
      lastOf.set(step.where, step.at);
      return { ...step, durationNs };
    });
  return { t0, t1: monitorStamps[stampNames.length - 1] ?? 0n, t2, steps };
}

/** What a place's first step is measured from: the last one of this place. */
const startedBy = { launcher: 'node', child: 'launcher', monitor: 'child' } as const;
