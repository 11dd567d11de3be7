/** What /proc says of a process: the kernel's view, which no library of ours has a part in. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

export const namespaceKinds = ['mnt', 'cgroup', 'uts', 'ipc', 'user', 'pid', 'net', 'time'] as const;

export type Pid = number | 'self';

/** What a call gives, or undefined where what it reads has gone meanwhile. */
export function ifThere<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (error instanceof Error && 'syscall' in error) return undefined;
    throw error;
  }
}

export function readProc(pid: Pid, name: string): string {
  return readFileSync(`/proc/${pid}/${name}`, 'utf8');
}

/** The fields of /proc/pid/status; proc_pid_status(5). */
export function statusOf(pid: Pid, task = ''): Readonly<Record<string, string>> {
  const lines = readProc(pid, `${task}status`).trim().split('\n');
  return Object.fromEntries(lines.map((line) => line.split(/:\s*/, 2)));
}

/** The state of each of its threads, `R` for one that runs, `S` for one that sleeps; proc_pid_stat(5). */
export function threadStatesOf(pid: Pid): string[] {
  return readdirSync(`/proc/${pid}/task`).map((task) => {
    const stat = readProc(pid, `task/${task}/stat`);
    return stat.slice(stat.lastIndexOf(')') + 2)[0] as string;
  });
}

/** Its namespaces, `net:[4026531840]` by kind. */
export function namespacesOf(pid: Pid): Readonly<Record<(typeof namespaceKinds)[number], string>> {
  return Object.fromEntries(namespaceKinds.map((kind) => [kind, readlinkSync(`/proc/${pid}/ns/${kind}`)])) as never;
}

/** What its descriptors are, by number. */
export function descriptorsOf(pid: Pid): ReadonlyMap<number, string> {
  const found = new Map<number, string>();
  for (const name of readdirSync(`/proc/${pid}/fd`)) {
    const target = ifThere(() => readlinkSync(`/proc/${pid}/fd/${name}`));
    // The descriptor that this listing itself is read by.
    if (target !== undefined && !/^\/proc\/\d+\/fd$/.test(target)) found.set(Number(name), target);
  }
  return found;
}

/** Mounts that it sees, a line each; proc_pid_mountinfo(5). */
export function mountsOf(pid: Pid): { path: string; type: string; options: string[] }[] {
  const lines = readProc(pid, 'mountinfo').trim().split('\n');
  return lines.map((line) => {
    const [mount = '', filesystem = ''] = line.split(' - ');
    const [, , , , path = '', options = ''] = mount.split(' ');
    return { path, type: filesystem.split(' ')[0] ?? '', options: options.split(',') };
  });
}

/** Its children, those that nobody has waited for included. */
export function childrenOf(pid: Pid): number[] {
  return readdirSync(`/proc/${pid}/task`)
    .flatMap((task) => (ifThere(() => readProc(pid, `task/${task}/children`)) ?? '').split(' '))
    .filter((child) => child !== '')
    .map(Number)
    .sort((left, right) => left - right);
}

/** All processes below one, by their parents' word, with their depth. Some end meanwhile. */
export function descendantsOf(pid: Pid, depth = 1): { pid: number; depth: number }[] {
  const children = ifThere(() => childrenOf(pid)) ?? [];
  return children.flatMap((child) => [{ pid: child, depth }, ...descendantsOf(child, depth + 1)]);
}

/** For how many nanoseconds the kernel has had a process's first thread on a processor; proc(5), schedstat. */
export const cpuTimeOf = (pid: number): number => Number(readProc(pid, 'schedstat').split(' ')[0]);

/** Whether it exists and has not ended. */
export function isAlive(pid: number): boolean {
  const stat = ifThere(() => readProc(pid, 'stat'));
  return stat !== undefined && !/^\) [ZX]/.test(stat.slice(stat.lastIndexOf(')')));
}

/** How many times longer than usual this machine is waited for: the rig is emulated. */
export const patience = Number(process.env.CASEMATE_PATIENCE ?? 1);

/** Waits until something holds; false where it does not within the time. */
export async function within(ms: number, holds: () => boolean | Promise<boolean>): Promise<boolean> {
  for (const end = performance.now() + ms * patience; performance.now() < end; await delay(5)) {
    if (await holds()) return true;
  }
  return holds();
}

/**
 * Does something that has to happen within some time, with more and more time for as long as `tooSoon` says of what came
 * of it that this machine, busy with other things, had not come to it yet.
 */
export async function patiently<T>(attempt: (ms: number) => Promise<T>, tooSoon: (outcome: T) => boolean): Promise<T> {
  for (let ms = 100 * patience; ; ms *= 2) {
    const outcome = await attempt(ms);
    if (!tooSoon(outcome) || ms > 60_000 * patience) return outcome;
  }
}

/** This process's own cgroup v2 directory. */
export function ownCgroup(): string {
  const mount = /^\S+ \S+ \S+ \S+ (\S+) .* - cgroup2 /m.exec(readProc('self', 'mountinfo'))?.[1];
  const path = /^0::(.*)$/m.exec(readProc('self', 'cgroup'))?.[1];
  if (mount === undefined || path === undefined) throw new Error('no cgroup v2');
  return `${mount}${path}`.replace(/\/$/, '');
}
