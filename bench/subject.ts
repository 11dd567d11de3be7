/** A subject is something that is started and timed: one of our launches, the floor, a peer. */
import { spawn, spawnSync } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Measured, Metric, Values } from './results.js';
import type { Request } from './trial.js';

/** The top folder of the repository. */
export const root = fileURLToPath(new URL('../..', import.meta.url));

/** Where `make -C bench/floor` and `make -C bench/peers` put their programs. */
export const built = (name: string): string => join(root, 'build/bench', name);

/** How much one trial does: a smoke run only shows that everything works. */
export interface Effort {
  readonly smoke: boolean;
  /** Launches that are measured in each process. */
  readonly launches: number;
}

export interface Subject {
  /** `'launch'`, `'floor'`: what targets and comparisons call it. */
  readonly name: string;
  readonly title: string;
  readonly family: string;
  /** Takes part in one of so many rounds. Default 1. */
  readonly every?: number;
  /** Left out of a smoke run. */
  readonly long?: boolean;
  /** Why it cannot be measured here; undefined where it can. */
  missing(): string | undefined;
  /** Starts a fresh process, and returns what that has measured. */
  trial(effort: Effort): Promise<Measured>;
}

/** The path of a program that can be called by its name. */
export function findProgram(name: string): string | undefined {
  for (const folder of (process.env.PATH ?? '').split(delimiter)) {
    try {
      accessSync(join(folder, name), constants.X_OK);
      return join(folder, name);
    } catch {}
  }
  return undefined;
}

/** Why a subject that needs these programs cannot be measured. */
export function lacks(...programs: string[]): string | undefined {
  const missing = programs.find((name) => findProgram(name) === undefined);
  return missing === undefined ? undefined : `${missing} is not installed`;
}

export function needsRoot(): string | undefined {
  return process.geteuid?.() === 0 ? undefined : 'needs root';
}

/** Runs a program to its end and returns what it printed; one that fails rejects with what it said. */
export function output(command: string, args: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    let printed = '';
    let said = '';
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      printed += chunk;
    });
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
      said += chunk;
    });
    child.on('error', reject);
    child.on('close', (code, signal) => {
      if (code === 0) resolve(printed);
      else reject(new Error(said.trim() || `${command} ${args.join(' ')} ended with ${signal ?? code}`));
    });
  });
}

/** Measures in a fresh process of Node; `around` is a command that this process is started by. */
export async function inFreshNode(
  request: Request,
  { around = [], nodeOptions = [] }: { around?: readonly string[]; nodeOptions?: readonly string[] } = {},
): Promise<Measured> {
  const command = [...around, process.execPath, ...nodeOptions, built('trial.js'), JSON.stringify(request)];
  return JSON.parse(await output(command[0] as string, command.slice(1))) as Measured;
}

/** The lines of JSON of a program, each a trial of its own, as lists of values. */
export function valuesOfLines(lines: string, names: readonly Metric[]): Values {
  const trials = lines
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, number>);
  return Object.fromEntries(
    names
      .filter((name) => trials.every((trial) => trial[name] !== undefined))
      .map((name) => [name, trials.map((trial) => trial[name] as number)]),
  );
}

/** Builds the C programs of the floor and beside the peers; says why where that cannot be done. */
export function buildPrograms(): string | undefined {
  for (const folder of ['bench/floor', 'bench/peers']) {
    const { status, stderr, error } = spawnSync('make', ['-s', '-C', folder], { cwd: root, encoding: 'utf8' });
    if (status !== 0) return `make -C ${folder}: ${error?.message ?? stderr.trim()}`;
  }
  return undefined;
}
