/** Runs of the bench that never were. */
import type { Metric, Results, SubjectResult, Trial } from '../../bench/results.js';

/** A subject with one metric: what each round's process measured. */
export function subject(metric: Metric, rounds: readonly (readonly number[])[]): SubjectResult {
  const trials = rounds.map((values, round): Trial => ({ round, values: { [metric]: values } }));
  return { title: 'a subject', family: 'test', trials };
}

/** Twenty processes of ten launches each around a time: some machine noise, the same in each run of this test. */
export function around(time: number, seed: number): number[][] {
  let state = seed;
  const noise = () => {
    state = (state * 48271) % 0x7fffffff;
    return state / 0x7fffffff - 0.5;
  };
  return Array.from({ length: 20 }, () => {
    const slow = 1 + 0.1 * noise(); // this process
    return Array.from({ length: 10 }, () => Math.round(time * slow * (1 + 0.2 * noise())));
  });
}

export function run(subjects: Results['subjects']): Results {
  const machine = { date: '2026-01-01', kernel: '6.18', commit: 'abc' };
  return { format: 'casemate-bench-1', machine, processors: 2, smoke: false, subjects };
}
