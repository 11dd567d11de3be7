import { closeSync, openSync, readdirSync, readFileSync, readSync, statSync } from 'node:fs';
import { join } from 'node:path';

/**
 * What can be read about a host without the addon: files of /proc, /sys, /dev and /etc, nothing run and nothing
 * changed. Every function takes the root of the tree that it reads, so tests can feed it trees of their own.
 */
export interface HostFacts {
  /** `'linux'`, and `'x64'`: what Node was built for. */
  readonly platform: string;
  readonly arch: string;
  /** Kernel release, `'6.1.0-28-amd64'`. */
  readonly kernel: string;
  readonly node: string;
  readonly libc: Libc;
  readonly caller: CallerFacts;
  readonly kvmDevice: DeviceFacts | undefined;
  readonly virtualization: VirtualizationFacts;
  /** The parameter kvm.nx_huge_pages; undefined where KVM has none. */
  readonly nxHugePages: string | undefined;
  /** What the kernel says of the CPU flaw that nx_huge_pages is for, `'Not affected'`. */
  readonly itlbMultihit: string | undefined;
  readonly namespaces: NamespaceFacts;
  /** Whether cgroups are mounted with favordynmods. */
  readonly favorDynMods: boolean;
  /** Names of the seccomp actions that the kernel offers. */
  readonly seccompActions: readonly string[];
  /** Active security modules; undefined where securityfs is not mounted. */
  readonly securityModules: readonly string[] | undefined;
  readonly selinux: 'enforcing' | 'permissive' | 'disabled';
  /** The mount option hidepid of /proc, `'off'` where it hides nothing. */
  readonly hidepid: string;
  /** `'always'`, `'madvise'`, `'never'`; undefined where the kernel has none. */
  readonly transparentHugePages: string | undefined;
  readonly tun: DeviceFacts | undefined;
  /** Whether two hardware threads share a core here. */
  readonly smt: boolean;
  readonly memory: { readonly totalMib: number; readonly availableMib: number };
}

/** The C library that a program was linked against; `'static'` programs load no addons. */
export type Libc = 'glibc' | 'musl' | 'static' | 'unknown';

/** The process that asks. */
export interface CallerFacts {
  readonly uid: number;
  readonly groups: readonly number[];
  /** Whether it holds CAP_SYS_ADMIN, and is root for the launcher's purposes. */
  readonly admin: boolean;
  /** Its user namespace's map of uids, `inside outside count`. */
  readonly uidMap: readonly IdRange[];
  /** Ranges that /etc/subuid grants it. */
  readonly subordinateUids: readonly { readonly first: number; readonly count: number }[];
}

/** One line of a uid_map. */
export interface IdRange {
  readonly inside: number;
  readonly outside: number;
  readonly count: number;
}

/** A device file. */
export interface DeviceFacts {
  readonly isCharacterDevice: boolean;
  /** Permission bits, 0o660. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** The name of its group in /etc/group. */
  readonly group: string | undefined;
  /** Why it could not be opened for reading and writing, `'EACCES'`; undefined where it could. */
  readonly openError: string | undefined;
}

/** What is known about the virtualization of this machine. None of it says whether KVM works: KVM itself does. */
export interface VirtualizationFacts {
  /** Whether the CPU says that it runs under a hypervisor. */
  readonly hypervisor: boolean;
  readonly extensions: 'vmx' | 'svm' | undefined;
  /** KVM's loaded or built-in modules, `['kvm', 'kvm_amd']`. */
  readonly modules: readonly string[];
}

/** The kinds of namespaces that a jail is made of. */
export const NAMESPACES = ['user', 'mnt', 'pid', 'net', 'ipc', 'uts', 'cgroup'] as const;

export interface NamespaceFacts {
  /** Kinds that this kernel was built without. */
  readonly missing: readonly string[];
  /** user.max_*_namespaces by kind; a kind that the kernel does not limit is absent. */
  readonly limits: Readonly<Record<string, number>>;
  /** kernel.unprivileged_userns_clone, where the kernel has it (Debian, Arch). */
  readonly unprivilegedClone: boolean | undefined;
  /** kernel.apparmor_restrict_unprivileged_userns, where the kernel has it (Ubuntu). */
  readonly apparmorRestricted: boolean | undefined;
}

/** Reads all of it, from the tree below `root`. */
export function readHost(root = '/'): HostFacts {
  const mounts = readMounts(root);
  const caller = readCaller(root);
  return {
    platform: process.platform,
    arch: process.arch,
    kernel: readText(root, 'proc/sys/kernel/osrelease') ?? 'unknown',
    node: process.version,
    libc: readLibc(root),
    caller,
    kvmDevice: readDevice(root, 'dev/kvm'),
    virtualization: readVirtualization(root),
    nxHugePages: readText(root, 'sys/module/kvm/parameters/nx_huge_pages'),
    itlbMultihit: readText(root, 'sys/devices/system/cpu/vulnerabilities/itlb_multihit'),
    namespaces: readNamespaces(root),
    favorDynMods: mounts.some((mount) => /^cgroup2?$/.test(mount.type) && mount.options.has('favordynmods')),
    seccompActions: words(readText(root, 'proc/sys/kernel/seccomp/actions_avail')),
    securityModules: readText(root, 'sys/kernel/security/lsm')?.split(','),
    selinux: readSelinux(root),
    hidepid: readHidepid(mounts),
    transparentHugePages: /\[(\w+)\]/.exec(readText(root, 'sys/kernel/mm/transparent_hugepage/enabled') ?? '')?.[1],
    tun: readDevice(root, 'dev/net/tun'),
    smt: readText(root, 'sys/devices/system/cpu/smt/active') === '1',
    memory: readMemory(root),
  };
}

/** Whether a kernel release is that version or newer. */
export function kernelAtLeast(release: string, major: number, minor: number): boolean {
  const [, foundMajor, foundMinor] = /^(\d+)\.(\d+)/.exec(release) ?? [];
  const found = Number(foundMajor);
  return found > major || (found === major && Number(foundMinor) >= minor);
}

/**
 * The C library that Node runs on, from the interpreter that its own program file asks for. (The report of
 * process.report says it, too, and takes 15 to 23 ms to make.)
 */
export function readLibc(root = '/'): Libc {
  const interpreter = readInterpreter(join(root, 'proc/self/exe'));
  if (interpreter === undefined) return 'unknown';
  if (interpreter === '') return 'static';
  if (/\/ld-musl-/.test(interpreter)) return 'musl';
  return /\/ld-linux/.test(interpreter) ? 'glibc' : 'unknown';
}

const PT_INTERP = 3;
const PROGRAM_HEADER_SIZE = 56;
const PATH_MAX = 4096;

/** PT_INTERP of an ELF64 file; '' where it has none, undefined where it is no such file. */
function readInterpreter(path: string): string | undefined {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch {
    return undefined;
  }
  try {
    const header = readAt(fd, 0, 64);
    if (header.length < 64 || header.readUInt32BE(0) !== 0x7f454c46 || header[4] !== 2 /* 64-bit */) return undefined;
    const count = header.readUInt16LE(56);
    const table = readAt(fd, Number(header.readBigUInt64LE(32)), count * PROGRAM_HEADER_SIZE);
    for (let at = 0; at + PROGRAM_HEADER_SIZE <= table.length; at += PROGRAM_HEADER_SIZE) {
      if (table.readUInt32LE(at) !== PT_INTERP) continue;
      const size = Math.min(Number(table.readBigUInt64LE(at + 32)), PATH_MAX);
      return readAt(fd, Number(table.readBigUInt64LE(at + 8)), size)
        .toString('latin1')
        .replace(/\0.*$/s, '');
    }
    return '';
  } finally {
    closeSync(fd);
  }
}

function readAt(fd: number, position: number, size: number): Buffer {
  const buffer = Buffer.alloc(size);
  return buffer.subarray(0, readSync(fd, buffer, 0, size, position));
}

const CAP_SYS_ADMIN = 21n;

/** Reads who the calling process is, and what it may do. */
export function readCaller(root = '/'): CallerFacts {
  const status = readText(root, 'proc/self/status') ?? '';
  const field = (name: string) => new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(status)?.[1] ?? '';
  const uid = Number(words(field('Uid'))[1] ?? process.geteuid?.() ?? 0);
  const gid = Number(words(field('Gid'))[1] ?? process.getegid?.() ?? 0);
  const capabilities = BigInt(`0x${field('CapEff') || '0'}`);
  return {
    uid,
    groups: [...new Set([gid, ...words(field('Groups')).map(Number)])],
    admin: ((capabilities >> CAP_SYS_ADMIN) & 1n) === 1n,
    uidMap: lines(readText(root, 'proc/self/uid_map')).map((line) => {
      const [inside = 0, outside = 0, count = 0] = words(line).map(Number);
      return { inside, outside, count };
    }),
    subordinateUids: readSubordinateUids(root, uid),
  };
}

function readSubordinateUids(root: string, uid: number): { first: number; count: number }[] {
  const entry = lines(readText(root, 'etc/passwd')).find((line) => line.split(':')[2] === String(uid));
  const user = entry?.split(':')[0];
  return lines(readText(root, 'etc/subuid'))
    .map((line) => line.split(':'))
    .filter(([owner]) => owner === user || owner === String(uid))
    .map(([, first, count]) => ({ first: Number(first), count: Number(count) }));
}

function readDevice(root: string, path: string): DeviceFacts | undefined {
  const file = join(root, path);
  const stat = statSync(file, { throwIfNoEntry: false });
  if (!stat) return undefined;
  const group = lines(readText(root, 'etc/group')).find((line) => line.split(':')[2] === String(stat.gid));
  return {
    isCharacterDevice: stat.isCharacterDevice(),
    mode: stat.mode & 0o777,
    uid: stat.uid,
    gid: stat.gid,
    group: group?.split(':')[0],
    openError: openError(file),
  };
}

function openError(path: string): string | undefined {
  try {
    closeSync(openSync(path, 'r+'));
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code;
  }
}

function readVirtualization(root: string): VirtualizationFacts {
  const flags = words(/^flags\s*:\s*(.*)$/m.exec(readText(root, 'proc/cpuinfo') ?? '')?.[1]);
  return {
    hypervisor: flags.includes('hypervisor'),
    extensions: flags.includes('vmx') ? 'vmx' : flags.includes('svm') ? 'svm' : undefined,
    modules: list(root, 'sys/module').filter((name) => /^kvm(_\w+)?$/.test(name)),
  };
}

function readNamespaces(root: string): NamespaceFacts {
  const limits = NAMESPACES.flatMap((kind) => {
    const limit = readNumber(root, `proc/sys/user/max_${kind}_namespaces`);
    return limit === undefined ? [] : [[kind, limit] as const];
  });
  const built = list(root, 'proc/self/ns');
  return {
    missing: NAMESPACES.filter((kind) => !built.includes(kind)),
    limits: Object.fromEntries(limits),
    unprivilegedClone: readBoolean(root, 'proc/sys/kernel/unprivileged_userns_clone'),
    apparmorRestricted: readBoolean(root, 'proc/sys/kernel/apparmor_restrict_unprivileged_userns'),
  };
}

function readSelinux(root: string): HostFacts['selinux'] {
  const enforce = readText(root, 'sys/fs/selinux/enforce');
  if (enforce === undefined) return 'disabled';
  return enforce === '1' ? 'enforcing' : 'permissive';
}

function readHidepid(mounts: readonly Mount[]): string {
  const value = mounts.findLast((mount) => mount.path === '/proc')?.options.get('hidepid');
  return value === undefined || value === '0' ? 'off' : value;
}

function readMemory(root: string): HostFacts['memory'] {
  const text = readText(root, 'proc/meminfo') ?? '';
  const mib = (name: string) =>
    Math.floor(Number(new RegExp(`^${name}:\\s*(\\d+) kB`, 'm').exec(text)?.[1] ?? 0) / 1024);
  return { totalMib: mib('MemTotal'), availableMib: mib('MemAvailable') };
}

interface Mount {
  readonly path: string;
  readonly type: string;
  /** Of the mount and of the file system, with '' for options without a value. */
  readonly options: ReadonlyMap<string, string>;
}

/** /proc/self/mountinfo, proc_pid_mountinfo(5): optional fields end at a lone hyphen. */
function readMounts(root: string): Mount[] {
  return lines(readText(root, 'proc/self/mountinfo')).map((line) => {
    const [mount = '', fileSystem = ''] = line.split(' - ');
    const [, , , , path = '', mountOptions = ''] = mount.split(' ');
    const [type = '', , fileSystemOptions = ''] = fileSystem.split(' ');
    const options = `${mountOptions},${fileSystemOptions}`.split(',').map((option): [string, string] => {
      const [key = '', value = ''] = option.split('=', 2);
      return [key, value];
    });
    return { path, type, options: new Map(options) };
  });
}

/** The trimmed text of a file; undefined where there is none that this process may read. */
function readText(root: string, path: string): string | undefined {
  try {
    return readFileSync(join(root, path), 'utf8').trim();
  } catch {
    return undefined;
  }
}

function readNumber(root: string, path: string): number | undefined {
  const text = readText(root, path);
  return text === undefined || !/^\d+$/.test(text) ? undefined : Number(text);
}

function readBoolean(root: string, path: string): boolean | undefined {
  const value = readNumber(root, path);
  return value === undefined ? undefined : value !== 0;
}

function list(root: string, path: string): string[] {
  try {
    return readdirSync(join(root, path)).sort();
  } catch {
    return [];
  }
}

function words(text: string | undefined): string[] {
  return text?.split(/\s+/).filter(Boolean) ?? [];
}

function lines(text: string | undefined): string[] {
  return text?.split('\n').filter(Boolean) ?? [];
}

/** glibc's layout of dev_t; makedev(3). */
export function deviceNumbers(rdev: bigint): { major: number; minor: number } {
  return {
    major: Number(((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn)),
    minor: Number((rdev & 0xffn) | ((rdev >> 12n) & ~0xffn)),
  };
}
