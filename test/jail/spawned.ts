import { closeSync, openSync } from 'node:fs';
import { Socket } from 'node:net';
import {
  type JailedProcess,
  type NamespaceKind,
  type Plan,
  type Step,
  type StepName,
  spawn,
  steps,
} from 'casemate/jail';
import { program } from '../helpers/programs.js';

/** What test/programs/report.c says. */
export interface Report {
  readonly args: readonly string[];
  readonly env: readonly string[];
  readonly descriptors: readonly { fd: number; device: number; inode: number; closeOnExec: number }[];
  /** Soft and hard, by the number of the resource. */
  readonly limits: readonly (readonly [string, string])[];
  readonly blockedSignals: number;
  /** Those whose action is not the default one. */
  readonly handledSignals: readonly number[];
  readonly maxNamespaces: Readonly<Record<NamespaceKind, number>>;
  readonly root: readonly string[];
  /** What comes of opening /etc/passwd: `'open'`, or the name of the error. */
  readonly password: string;
  readonly pid: number;
  readonly session: number;
  readonly group: number;
  readonly cwd: string;
  readonly hostname: string;
  readonly domainname: string;
  readonly umask: number;
  readonly parentDeath: number;
  readonly securebits: number;
  readonly dumpable: number;
  readonly keyring: number;
}

export interface ReportOptions {
  clone?: readonly NamespaceKind[];
  descriptors?: Readonly<Record<string, number>>;
  cgroup?: string;
}

const byLauncher: ReadonlySet<StepName> = new Set(['execLabel', 'socketLabel', 'socketPair', 'pooled', 'tap']);

/** The plan that starts the reporting program after these steps. */
export function reportPlan(list: readonly Step[], { clone = [], descriptors = {}, cgroup }: ReportOptions = {}): Plan {
  const child = list.filter(({ op }) => !byLauncher.has(op));
  const has = (op: StepName) => list.some((step) => step.op === op);
  return {
    clone,
    descriptors: ['null', ...Object.keys(descriptors)],
    cgroup,
    steps: [
      steps.socketPair('stream', 'theirs', 'ours'),
      ...list.filter(({ op }) => byLauncher.has(op)),
      ...(has('descriptors') ? [] : [steps.descriptors({ null: [0, 1, 2], theirs: 3 })]),
      ...child,
      ...(has('exec') ? [] : [steps.exec(program('report'))]),
    ],
    check: [],
  };
}

/** A reporting program that waits. */
export class Spawned implements AsyncDisposable {
  readonly #socket: Socket;

  constructor(
    readonly process: JailedProcess,
    readonly report: Report,
    socket: Socket,
  ) {
    this.#socket = socket;
  }

  get pid(): number {
    return this.process.pid;
  }

  /** Lets it end by itself. */
  end(): Promise<{ code: number | null; signal: number | null }> {
    this.#socket.end();
    return this.process.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process[Symbol.asyncDispose]();
    await closed(this.#socket);
  }
}

async function closed(socket: Socket): Promise<void> {
  if (socket.closed) return;
  await new Promise<void>((resolve) => {
    socket.once('close', () => resolve());
    socket.destroy();
  });
}

/** Runs a plan whose descriptors are given, and /dev/null besides. */
export async function run(plan: Plan, descriptors: Readonly<Record<string, number>> = {}): Promise<JailedProcess> {
  const nothing = openSync('/dev/null', 'r+');
  try {
    return await spawn(plan, { descriptors: { null: nothing, ...descriptors } });
  } finally {
    closeSync(nothing);
  }
}

/** Starts the reporting program after these steps. */
export async function spawnReport(list: readonly Step[], options: ReportOptions = {}): Promise<Spawned> {
  const process = await run(reportPlan(list, options), options.descriptors);
  const socket = new Socket({ fd: process.takeDescriptor('ours') });
  let text = '';
  try {
    for await (const chunk of socket.setEncoding('utf8').iterator({ destroyOnReturn: false })) {
      text += chunk;
      if (text.endsWith('\n')) break;
    }
    if (!text.endsWith('\n')) throw new Error(`It said nothing: ${JSON.stringify(await process.exited)}`);
    return new Spawned(process, JSON.parse(text), socket);
  } catch (error) {
    await process[Symbol.asyncDispose]();
    await closed(socket);
    throw error;
  }
}
