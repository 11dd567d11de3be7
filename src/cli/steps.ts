import type { Timeline } from '../index.js';

/** A step of many launches. One done several times in a row (rlimit) is one. */
export interface Step {
  readonly place: string;
  readonly name: string;
  /** When it began, since t0, and how long it took: one number per launch, in nanoseconds. */
  readonly start: readonly number[];
  readonly took: readonly number[];
}

/** A step of one launch, in nanoseconds since t0. */
export interface Moment {
  readonly place: string;
  readonly name: string;
  readonly start: number;
  readonly end: number;
}

/** Steps that belong together. */
const stampedAs: Readonly<Record<string, string>> = { domainname: 'hostname', chdir: 'checkCwd' };

/** Gathers the steps of one launch after another. */
export class StepTable {
  readonly #steps = new Map<string, { place: string; name: string; start: number[]; took: number[] }>();

  /** Adds a launch's steps, in the order in which they ended. */
  add(moments: readonly Moment[]): void {
    const joined: { place: string; name: string; start: number; end: number }[] = [];
    for (const { place, name, start, end } of moments) {
      const before = joined.findLast((step) => step.place === place);
      if (before?.name === name) before.end = end;
      else joined.push({ place, name, start, end });
    }
    const seen = new Map<string, number>();
    for (const { place, name, start, end } of joined) {
      const key = `${place} ${name}`;
      const turn = (seen.get(key) ?? 0) + 1;
      seen.set(key, turn);
      const unique = turn === 1 ? name : `${name} ${turn}`;
      let step = this.#steps.get(`${place} ${unique}`);
      if (step === undefined) {
        step = { place, name: unique, start: [], took: [] };
        this.#steps.set(`${place} ${unique}`, step);
      }
      step.start.push(start);
      step.took.push(end - start);
    }
  }

  get steps(): Step[] {
    return [...this.#steps.values()];
  }
}

/** The steps of a launch of ours. */
export function momentsOf({ t0, t1, steps }: Timeline): Moment[] {
  return steps.map(({ name, where, at, durationNs }) => {
    const end = Number(at - t0);
    // All the while before, Node waits.
    const start = name === 'resolve' ? Number(t1 - t0) : end - durationNs;
    return { place: where, name: stampedAs[name] ?? name, start, end };
  });
}

/** What goes on beside a launch's way: the launcher waits for the monitor and looks at it while that makes the VM. */
const besides: ReadonlySet<string> = new Set(['vfork', 'jailed', 'readBack', 'release']);

/** Whether a launch waits for this step: those that it waits for follow each other without a gap, and add up to t2. */
export const onPath = ({ name }: { readonly name: string }): boolean => !besides.has(name);
