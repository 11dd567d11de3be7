/** Times that are read off the steps of a launch, and the steps of the floor. */
import type { Timeline } from 'casemate';
import type { Moment } from '#lib/cli/steps.js';

/** From the execve call to the monitor's first own instruction. */
export function execTime({ steps }: Timeline): number | undefined {
  return steps.find(({ where, name }) => where === 'monitor' && name === 'exec')?.durationNs;
}

const launcherSteps = new Set(['socketPair', 'clone3', 'jailed', 'readBack', 'release']);
const monitorSteps = new Set('exec configure jail createVm memory irqchip vcpu confine load awaitRun guest'.split(' '));
/** Who goes on where a place has not done anything yet. */
const startedBy: Readonly<Record<string, string>> = { child: 'launcher', monitor: 'child' };

/** The steps of a launch of the floor, from when each ended. */
export function momentsOfFloor(ends: Readonly<Record<string, number>>): Moment[] {
  const last = new Map<string, number>();
  return Object.entries(ends)
    .sort(([, left], [, right]) => left - right)
    .map(([name, end]) => {
      const place = launcherSteps.has(name) ? 'launcher' : monitorSteps.has(name) ? 'monitor' : 'child';
      const start = last.get(place) ?? last.get(startedBy[place] ?? '') ?? 0;
      last.set(place, end);
      return { place, name: name === 'setnsUser' ? 'setns 2' : name, start, end };
    });
}
