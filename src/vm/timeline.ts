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
    /** Since the step before it of the same place, or of the place that started this one. */
    readonly durationNs: number;
  })[];
}

/** Puts together what Node, the launcher, the child and the monitor noted. */
export function timeline(
  t0: bigint,
  t2: bigint,
  launch: readonly TimelineStep[],
  monitorStamps: BigUint64Array,
): Timeline {
  const monitor = stampNames.map((name, i): TimelineStep => ({ name, where: 'monitor', at: monitorStamps[i] ?? 0n }));
  const cloned = launch.find(({ name }) => name === 'exec')?.at ?? t0;
  const lastOf = new Map<string, bigint>();
  const steps = [...launch, ...monitor, { name: 'resolve', where: 'node' as const, at: t2 }]
    .filter(({ at }) => at !== 0n)
    .sort((left, right) => Number(left.at - right.at))
    .map((step) => {
      const before = lastOf.get(step.where) ?? startOf(step.where, lastOf, t0, cloned);
      lastOf.set(step.where, step.at);
      return { ...step, durationNs: Math.max(0, Number(step.at - before)) };
    });
  return { t0, t1: monitorStamps[stampNames.length - 1] ?? 0n, t2, steps };
}

/** What a place's first step is measured from. */
function startOf(
  where: TimelineStep['where'],
  lastOf: ReadonlyMap<string, bigint>,
  t0: bigint,
  cloned: bigint,
): bigint {
  switch (where) {
    case 'node':
      return t0;
    case 'launcher':
      return lastOf.get('node') ?? t0;
    case 'child':
      return lastOf.get('launcher') ?? t0;
    case 'monitor':
      return lastOf.get('child') ?? cloned;
  }
}
