/** What a run of the bench leaves behind: one JSON file, from which the table, the page and comparisons are made. */
import { readFileSync } from 'node:fs';
import type { Step } from '#lib/cli/steps.js';

/** The version of this format: a file of another one is refused. */
export const format = 'casemate-bench-1';

/** What a number of a metric is. */
export type Unit = 'ns' | 'bytes' | 'share' | 'perSecond' | 'count';

/**
 * Everything that is measured of a subject. The moments are those of every launch: t0, it is asked for; t1, the guest's
 * first hypercall, or a program's first instruction; t2, whoever asked for it knows.
 */
export const metrics = {
  t1: { title: 't0 → t1', unit: 'ns' },
  t2: { title: 't0 → t2', unit: 'ns' },
  news: { title: 't1 → t2', unit: 'ns' },
  newsShare: { title: 't1 → t2, of t0 → t2', unit: 'share' },
  exec: { title: 'execve → first instruction', unit: 'ns' },
  ended: { title: 't0 → reaped', unit: 'ns' },
  reaped: { title: 'kill → reaped', unit: 'ns' },
  gone: { title: 'kill → network namespace gone', unit: 'ns' },
  load: { title: 'import of the package', unit: 'ns' },
  fromStart: { title: 'start of Node → t2', unit: 'ns' },
  call: { title: 'the call itself, synchronous', unit: 'ns' },
  busy: { title: 'JS thread busy', unit: 'ns' },
  busyShare: { title: 'JS thread busy, of t0 → t2', unit: 'share' },
  jsCpu: { title: 'CPU time of the JS thread', unit: 'ns' },
  block: { title: 'longest block of the event loop', unit: 'ns' },
  blockIdle: { title: 'the same while nothing is launched', unit: 'ns' },
  cpu: { title: 'CPU time, t0 → t2', unit: 'ns' },
  cpuNode: { title: 'CPU time of Node, t0 → t2', unit: 'ns' },
  cpuMonitor: { title: 'CPU time of the monitor, t0 → t2', unit: 'ns' },
  cpuCycle: { title: 'CPU time with teardown and refilled pools', unit: 'ns' },
  monitorMemory: { title: 'memory of the monitor beside guest RAM', unit: 'bytes' },
  perSecond: { title: 'sustained', unit: 'perSecond' },
  latency: { title: 'request → response', unit: 'ns' },
  errors: { title: 'failed requests', unit: 'count' },
  rss: { title: 'resident memory of the server', unit: 'bytes' },
} as const satisfies Record<string, { title: string; unit: Unit }>;

/** The name of a metric. */
export type Metric = keyof typeof metrics;

/** What one fresh process has measured: one number per launch (or request). */
export type Values = Partial<Record<Metric, readonly number[]>>;

/** What one trial gives. */
export interface Measured {
  readonly values: Values;
  readonly steps?: readonly Step[];
}

/** One process's measurements. Trials of one round were made close to each other in time. */
export interface Trial extends Measured {
  readonly round: number;
}

/** All trials of one subject, or why there are none. */
export interface SubjectResult {
  readonly title: string;
  readonly family: string;
  readonly trials: readonly Trial[];
  readonly skipped?: string;
}

/** The machine that a run was made on, as `name: what` for people. */
export type Machine = Readonly<Record<string, string>>;

/** One run. */
export interface Results {
  readonly format: typeof format;
  readonly machine: Machine;
  /** Processors that the run could use. */
  readonly processors: number;
  readonly smoke: boolean;
  readonly subjects: Readonly<Record<string, SubjectResult>>;
}

/** Reads a file of results. */
export function readResults(path: string): Results {
  const results = JSON.parse(readFileSync(path, 'utf8')) as Results;
  if (results.format !== format) throw new Error(`${path} is not of the format ${format}`);
  return results;
}
