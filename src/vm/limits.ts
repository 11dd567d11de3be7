import { statSync } from 'node:fs';
import { CasemateError, isSystemError } from '../errors.js';
import { deviceNumbers } from '../host.js';
import { integer, invalid, object, string } from '../is.js';
import type { CgroupSettings, Controller } from '../jail/cgroup.js';

/** What a VM may take of its host at most: its guest's memory, its vCPUs and its monitor together. */
export interface Limits {
  /**
   * Memory in MiB, 4 or more; nothing of it is swapped out. A VM that needs more ends with reason `'out-of-memory'`, and
   * no other one is touched. Less than the guest's own memory is possible: what a guest has never used takes none.
   */
  memoryMib?: number;
  /** Time of processors, 0.01 to 1024: `0.5` is half of one, `2` are two. */
  cpus?: number;
  /** Tasks: the monitor's threads, one for each vCPU among them, and KVM's own. 2 to 4194304. */
  pids?: number;
  /** What passes to and from block devices, by device. */
  io?: readonly IoLimit[];
}

/** At most so much in a second. */
export interface IoLimit {
  /** The path of a block device, `'/dev/sda'`: a whole one, no partition. */
  device: string;
  /** Bytes read. */
  rbps?: number;
  /** Bytes written. */
  wbps?: number;
  /** Read operations. */
  riops?: number;
  /** Write operations. */
  wiops?: number;
}

/** In microseconds; the kernel's own default. */
const cpuPeriod = 100_000;

const rates = ['rbps', 'wbps', 'riops', 'wiops'] as const;

/** The limits that these options ask for, as cgroup files have them; in the kernel's Documentation/admin-guide/cgroup-v2.rst. */
export function parseLimits(options: unknown): CgroupSettings {
  const { memoryMib, cpus, pids, io } = object('options.limits', options, ['memoryMib', 'cpus', 'pids', 'io']);
  const controllers: Controller[] = [];
  const files: [file: string, text: string][] = [];
  if (memoryMib !== undefined) {
    const bytes = integer('options.limits.memoryMib', memoryMib, 4, 2 ** 32) * 2 ** 20;
    controllers.push('memory');
    // Without the swap limit a VM over its memory would slow down the host's disks instead of ending.
    files.push(['memory.swap.max', '0'], ['memory.oom.group', '1'], ['memory.max', String(bytes)]);
  }
  if (cpus !== undefined) {
    if (typeof cpus !== 'number' || !(cpus >= 0.01 && cpus <= 1024)) {
      throw invalid('options.limits.cpus', 'a number between 0.01 and 1024', cpus);
    }
    controllers.push('cpu');
    files.push(['cpu.max', `${Math.round(cpus * cpuPeriod)} ${cpuPeriod}`]);
  }
  if (pids !== undefined) {
    controllers.push('pids');
    files.push(['pids.max', String(integer('options.limits.pids', pids, 2, 2 ** 22))]);
  }
  if (io !== undefined) {
    if (!Array.isArray(io)) throw invalid('options.limits.io', 'an array', io);
    controllers.push('io');
    files.push(...Array.from(io, (limit, index) => parseIo(`options.limits.io[${index}]`, limit)));
  }
  if (files.length === 0) throw invalid('options.limits', 'at least one limit', options);
  return { controllers, files };
}

function parseIo(name: string, limit: unknown): [file: string, text: string] {
  const given = object(name, limit, ['device', ...rates]);
  const asked = rates
    .filter((rate) => given[rate] !== undefined)
    .map((rate) => `${rate}=${integer(`${name}.${rate}`, given[rate], 1, Number.MAX_SAFE_INTEGER)}`);
  if (asked.length === 0) throw invalid(name, `at least one of ${rates.join(', ')}`, limit);
  return ['io.max', `${deviceNumber(`${name}.device`, string(`${name}.device`, given.device))} ${asked.join(' ')}`];
}

/** `major:minor` of a block device. */
function deviceNumber(name: string, path: string): string {
  let rdev: bigint | undefined;
  let cause: unknown;
  try {
    const stat = statSync(path, { bigint: true });
    if (stat.isBlockDevice()) rdev = stat.rdev;
  } catch (error) {
    if (!isSystemError(error)) throw error;
    cause = error;
  }
  if (rdev === undefined) {
    throw new CasemateError('ERR_CASEMATE_FILE', `${name}: ${path} is no block device`, {
      step: name,
      remedy: 'Pass the path of a whole block device, as `lsblk --nodeps --paths` lists them.',
      cause,
    });
  }
  const { major, minor } = deviceNumbers(rdev);
  return `${major}:${minor}`;
}

/** Whether the kernel has killed something in a cgroup for want of memory, by its memory.events. */
export function killedForMemory(events: string): boolean {
  return /^oom_kill [1-9]/m.test(events);
}
