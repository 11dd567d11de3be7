import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  statfsSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { threadId } from 'node:worker_threads';
import { CasemateError, isSystemError } from '../errors.js';
import { native } from '../native.js';
import { caller } from './launcher.js';
import type { NativeCgroup } from './native.js';

/** Controllers of cgroup v2 that limits are of. */
export type Controller = 'cpu' | 'io' | 'memory' | 'pids';

/** What is written into a new cgroup before there is a process in it. */
export interface CgroupSettings {
  readonly controllers: readonly Controller[];
  readonly files: readonly (readonly [file: string, text: string])[];
}

/** All VMs' cgroups of a caller lie in one of this name: it holds their controllers, for others switch off what they do not use. */
const directoryName = 'casemate';

/** CGROUP2_SUPER_MAGIC of linux/magic.h. */
const cgroup2Magic = 0x63677270;

let count = 0;

/** A cgroup with its limits. */
export interface LimitedCgroup {
  readonly handle: NativeCgroup;
  /** Those that were written: not the limit of swap, where the kernel has no swap. */
  readonly files: CgroupSettings['files'];
}

/**
 * A new cgroup with these limits, for one process to be born in.
 *
 * @throws CasemateError ERR_CASEMATE_LIMITS that says what is missing, or what the kernel does not take.
 */
export function limitedCgroup({ controllers, files: asked }: CgroupSettings): LimitedCgroup {
  const parent = parentFor(controllers);
  count += 1;
  const files = asked.filter(([file]) => file !== 'memory.swap.max' || parent.limitsSwap);
  try {
    return { handle: new native.Cgroup(parent.fd, `${owner()}-${threadId}-${count}`, files), files };
  } catch (cause) {
    if (!isSystemError(cause)) throw cause;
    throw new CasemateError('ERR_CASEMATE_LIMITS', `The limits cannot be set: ${cause.path}: ${cause.message}`, {
      step: 'options.limits',
      remedy: remedies[cause.path as string] ?? `See cgroup.max.descendants of ${parent.path} and of those above it.`,
      cause,
    });
  }
}

const remedies: Readonly<Record<string, string>> = {
  'io.max': 'Name whole block devices, no partitions.',
  'cpu.max': 'Is it more than a cgroup above this one has? See cpu.max there.',
};

/** Refuses limits that {@link limitedCgroup} could not set, without making anything that a launch would not. */
export function checkLimits({ controllers }: CgroupSettings): void {
  parentFor(controllers);
}

/**
 * Where VMs would get their cgroups, of which nothing is made.
 *
 * @throws CasemateError ERR_CASEMATE_LIMITS, as a launch would.
 */
export function directoryForLimits(controllers: readonly Controller[]): string {
  return search(controllers, (base, path) => {
    accessSync(at(base, 'cgroup.subtree_control'), constants.W_OK);
    return join(path, directoryName);
  });
}

/** Where the cgroups of this environment's VMs are made. */
interface Parent {
  readonly path: string;
  /** Its directory, open as long as this environment. */
  readonly fd: number;
  /** Those that its children have. */
  readonly controllers: ReadonlySet<string>;
  readonly limitsSwap: boolean;
}

let found: Parent | undefined;

function parentFor(controllers: readonly Controller[]): Parent {
  if (found !== undefined && controllers.every((name) => found?.controllers.has(name))) return found;
  const before = found;
  // Controllers that others use stay.
  found = search(controllers, (base, path) => {
    enable(base, controllers);
    return { ...openParent(base, controllers), path: join(path, directoryName) };
  });
  sweep(found.fd);
  if (before !== undefined) closeSync(before.fd);
  return found;
}

/**
 * Has `take` make something of the cgroup in which VMs get theirs: below the hierarchy's root for who may write there, else
 * below the nearest one, from this process's own upwards, that has the controllers and no process of its own: cgroups(7),
 * "no internal processes".
 */
function search<T>(controllers: readonly Controller[], take: (base: number, path: string) => T): T {
  const { mount, own, legacy } = ownCgroup(controllers);
  const refusals: Refusal[] = [];
  for (const path of candidates(mount, own)) {
    const answer = consider(path, controllers, legacy, take);
    if (!('problem' in answer)) return answer.taken;
    refusals.push(answer);
    // And so are those above it. But a root whose SELinux domain is confined may have no more than its own cgroup.
    if (answer.problem === 'forbidden' && path !== mount) break;
  }
  throw unavailable(controllers, refusals);
}

/** Why VMs cannot have their cgroups in one. */
interface Refusal {
  readonly problem: keyof typeof problems;
  readonly why: string;
}

/** What to do about it. */
const problems = {
  unmounted: 'Mount it (mount -t cgroup2 none /sys/fs/cgroup), or boot with systemd.unified_cgroup_hierarchy=1.',
  legacy: 'Boot with systemd.unified_cgroup_hierarchy=1: a controller is in one version at a time.',
  missing:
    'Have them delegated: `systemctl edit user@.service`, with "[Service]" and "Delegate=cpu cpuset io memory pids"; in ' +
    'a container, run it with them.',
  forbidden:
    'Start Node in a cgroup of its own: `systemd-run --user --scope -p Delegate=yes node ...`; Delegate=yes in a service.',
  busy:
    'Start Node in a cgroup below one that is delegated and has no process of its own: DelegateSubgroup= of systemd does ' +
    'that, and so does `mkdir main; echo $$ > main/cgroup.procs` there, before Node starts.',
} as const;

function unavailable(controllers: readonly Controller[], refusals: readonly Refusal[]): CasemateError {
  const why = refusals.map((refusal) => refusal.why).join('; ');
  return new CasemateError('ERR_CASEMATE_LIMITS', `Limits of ${controllers.join(', ')} cannot be set here: ${why}`, {
    step: 'options.limits',
    remedy: problems[(refusals[0] as Refusal).problem],
  });
}

/** Where cgroup v2 is mounted, this process's own cgroup in there, and whether there is version 1 besides. */
function ownCgroup(controllers: readonly Controller[]): { mount: string; own: string; legacy: boolean } {
  // mountinfo(5): id, parent, device, root, mount point, options, optional fields, -, type, source, super options.
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8').split('\n');
  const legacy = mounts.some((line) => line.includes(' - cgroup '));
  const unified = mounts.find((line) => line.includes(' - cgroup2 '));
  const [root = '/', mount] = unified?.split(' ').slice(3, 5).map(unescapePath) ?? [];
  if (mount === undefined) {
    const why = `cgroup v2 is not mounted${legacy ? ', only version 1' : ''}`;
    throw unavailable(controllers, [{ problem: 'unmounted', why }]);
  }
  const path = /^0::(.*)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8'))?.[1] ?? '/';
  const own = root === '/' ? path : path.slice(root.length);
  // Seen from another cgroup namespace, it begins with "/..": nothing of it is mounted.
  return { mount, own: own.startsWith('/..') ? '/' : own, legacy };
}

/** mountinfo writes spaces, tabs, newlines and backslashes of paths in octal. */
function unescapePath(path: string): string {
  return path.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}

function* candidates(mount: string, own: string): Iterable<string> {
  if (!caller().rootless) yield mount;
  for (let path = own; path.length > 1; path = dirname(path)) yield join(mount, path);
  if (caller().rootless) yield mount;
}

/** Has a cgroup taken, open, unless something speaks against it; what is forbidden to `take` does, too. */
function consider<T>(
  path: string,
  controllers: readonly Controller[],
  legacy: boolean,
  take: (base: number, path: string) => T,
): { readonly taken: T } | Refusal {
  let base: number | undefined;
  try {
    base = openDirectory(path);
    if (statfsSync(at(base)).type !== cgroup2Magic) return { problem: 'unmounted', why: `${path} is no cgroup v2` };
    const there = words(base, 'cgroup.controllers');
    const missing = controllers.filter((name) => !there.includes(name));
    if (missing.length > 0) {
      const why = `${path} lacks the controllers ${missing.join(', ')}${legacy ? ', with cgroup v1 in use' : ''}`;
      return { problem: legacy ? 'legacy' : 'missing', why };
    }
    // The kernel would say so itself, but of controllers that can be divided among threads only one level below. The
    // root, which alone has no type, may have processes besides.
    const busy = existsSync(at(base, 'cgroup.type')) && readFileSync(at(base, 'cgroup.procs'), 'utf8') !== '';
    if (busy) return { problem: 'busy', why: `${path} has processes of its own` };
    // A process can be born only where its launcher might have moved it.
    accessSync(at(base, 'cgroup.procs'), constants.W_OK);
    return { taken: take(base, path) };
  } catch (error) {
    if (!isSystemError(error)) throw error;
    return { problem: 'forbidden', why: `${path} is not this user's to change (${error.code}, ${error.syscall})` };
  } finally {
    if (base !== undefined) closeSync(base);
  }
}

function openParent(base: number, controllers: readonly Controller[]): Omit<Parent, 'path'> {
  mkdirSync(at(base, directoryName), { recursive: true, mode: 0o755 });
  const fd = openDirectory(at(base, directoryName));
  try {
    enable(fd, controllers);
    return {
      fd,
      controllers: new Set(words(fd, 'cgroup.subtree_control')),
      limitsSwap: existsSync(at(fd, 'memory.swap.max')),
    };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function enable(cgroup: number, controllers: readonly Controller[]): void {
  const enabled = words(cgroup, 'cgroup.subtree_control');
  const lacking = controllers.filter((name) => !enabled.includes(name));
  if (lacking.length === 0) return;
  writeFileSync(at(cgroup, 'cgroup.subtree_control'), lacking.map((name) => `+${name}`).join(' '));
}

const words = (cgroup: number, file: string) => readFileSync(at(cgroup, file), 'utf8').trim().split(' ');

const openDirectory = (path: string) =>
  openSync(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);

/** A file of an open directory, and of no other one, whatever its path leads to by now. */
const at = (directory: number, file = '') => `/proc/self/fd/${directory}/${file}`;

/** Removes what Nodes that are gone have left: a VM ends with its Node, but then nobody removes its cgroup. */
function sweep(parent: number): void {
  const here = pidNamespace();
  for (const name of readdirSync(at(parent))) {
    const [, namespace, pid, start] = /^(\d+)-(\d+)-(\d+)-\d+-\d+$/.exec(name) ?? [];
    if (namespace !== here || startTime(pid as string) === start) continue;
    try {
      rmdirSync(at(parent, name));
    } catch {
      // There is a process in it yet, or somebody else sweeps as well.
    }
  }
}

/** Whose a cgroup is: by its name another process can tell whether its Node still lives. */
function owner(): string {
  ownName ??= `${pidNamespace()}-${process.pid}-${startTime('self')}`;
  return ownName;
}

let ownName: string | undefined;

const pidNamespace = () => /\d+/.exec(readlinkSync('/proc/self/ns/pid'))?.[0];

/** When a process began; undefined where there is none. proc_pid_stat(5): pid (name) state ppid ..., starttime the 22nd. */
function startTime(pid: string): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined;
  }
}
