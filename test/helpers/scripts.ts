/** Scripts in Node processes of their own, looked at from outside: how they end, and what they leave. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { basename } from 'node:path';
import { text } from 'node:stream/consumers';
import { wire } from '#lib/vm/wire.js';
import { ifThere, isAlive, within } from './proc.js';
import { root } from './root.js';

/** What each script finds. */
const prelude = `
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { setImmediate as immediate, setTimeout as delay } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { launch, warmUp } from 'casemate';
import { guest } from '${new URL('guests.js', import.meta.url)}';
import { childrenOf, descriptorsOf, ifThere, isAlive, patiently, readProc, within } from '${new URL('proc.js', import.meta.url)}';
const tell = (value) => process.stdout.write(JSON.stringify(value) + '\\n');
function holdings() {
  const held = { children: childrenOf('self').length, threads: readdirSync('/proc/self/task').length };
  for (const target of descriptorsOf('self').values()) {
    const kind = target.replace(/:\\[\\d+\\]$/, '');
    held[kind] = (held[kind] ?? 0) + 1;
  }
  return held;
}
/** What doing something once more adds to what this process holds. */
async function added(body) {
  await body();
  await warmUp();
  let before = holdings();
  for (let quiet = 0; quiet < 5; ) {
    await delay(10);
    const now = holdings();
    quiet = JSON.stringify(now) === JSON.stringify(before) ? quiet + 1 : 0;
    before = now;
  }
  await body();
  await warmUp();
  let more;
  await within(10_000, () => {
    const after = Object.entries(holdings());
    more = after.map(([what, count]) => [what, count - (before[what] ?? 0)]).filter(([, extra]) => extra > 0);
    return more.length === 0;
  });
  return more;
}
`;

export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** What it told, in order. */
  readonly told: readonly unknown[];
  readonly errors: string;
}

/** Runs an ES module to its end, of the package in `cwd`; `meanwhile` gets the process at once. */
export async function script(
  source: string,
  meanwhile?: (child: ChildProcess) => void,
  cwd: string = root,
): Promise<Ended> {
  const child = spawn(process.execPath, ['--input-type=module', '-e', prelude + source], {
    cwd,
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 180_000,
    killSignal: 'SIGKILL',
  });
  meanwhile?.(child);
  const closed = new Promise<[number | null, NodeJS.Signals | null]>((resolve) => {
    child.on('close', (code, signal) => resolve([code, signal]));
  });
  const [output, errors, [code, signal]] = await Promise.all([text(child.stdout), text(child.stderr), closed]);
  const told = output
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line) as unknown);
  return { code, signal, told, errors };
}

/** Whether a monitor runs a guest of this build; where it cannot be read, whoever launched it, it is taken for one. */
function isOurs(pid: number): boolean {
  return ifThere(() => readlinkSync(`/proc/${pid}/fd/${wire.descriptors.guest}`))?.startsWith(root) ?? true;
}

/** Monitors whose Node is gone; another checkout's tests, which may run meanwhile, have their own. */
function orphans(): number[] {
  return readdirSync('/proc')
    .map(Number)
    .filter((pid) => {
      const stat = Number.isNaN(pid) ? undefined : ifThere(() => readFileSync(`/proc/${pid}/stat`, 'utf8'));
      const [, name, parent] = /^\d+ \((.*)\) \S (\d+)/.exec(stat ?? '') ?? [];
      if (name !== 'casemate-vmm') return false;
      // Not its exe: that of a Node is for root only while it is not dumpable.
      const [program = ''] = (ifThere(() => readFileSync(`/proc/${parent}/cmdline`, 'utf8')) ?? '').split('\0');
      return basename(program) !== basename(process.execPath) && isOurs(pid);
    });
}

/** Waits, ten seconds at most, until the monitors of Nodes that are gone are gone too; those that are not. */
export async function orphansLeft(): Promise<number[]> {
  const found = orphans();
  await within(10_000, () => !found.some(isAlive));
  return found.filter(isAlive);
}
