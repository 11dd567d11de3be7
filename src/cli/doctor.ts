import { CasemateError } from '../errors.js';
import { type HostFacts, kernelAtLeast, readHost } from '../host.js';
import { indent } from './format.js';
import { type LiveFacts, probe, tryLaunch } from './probe.js';

/** `'fail'`: a strict launch cannot work. `'warn'`: it works, and something is missing or slow. */
export type CheckStatus = 'ok' | 'info' | 'warn' | 'fail';

/** One requirement of the host, as `casemate doctor` shows it. */
export interface Check {
  readonly name: string;
  readonly status: CheckStatus;
  /** What was found. */
  readonly found: string;
  /** What that costs or blocks. */
  readonly effect?: string;
  /** What to do about it. */
  readonly remedy?: string;
}

/** The answer of `casemate doctor`; what `--json` prints. */
export interface Diagnosis {
  /** Whether a strict launch works here. */
  readonly ok: boolean;
  readonly checks: readonly Check[];
}

type Finding = Omit<Check, 'name'>;

const REQUIREMENTS: readonly (readonly [name: string, judge: (host: HostFacts, live: LiveFacts) => Finding])[] = [
  ['System', judgeSystem],
  ['Kernel', judgeKernel],
  ['Node', judgeNode],
  ['Addon', (_, live) => judgeBuilt(live.addon)],
  ['Monitor', (_, live) => judgeBuilt(live.monitor)],
  ['/dev/kvm', judgeDevice],
  ['KVM', judgeKvm],
  ['Virtualization', judgeVirtualization],
  ['nx_huge_pages', judgeNxHugePages],
  ['Namespaces', judgeNamespaces],
  ['User namespaces', judgeUserNamespaces],
  ['User ids', judgeIds],
  ['Control groups', (_, live) => judgeLimits(live)],
  ['Landlock', judgeLandlock],
  ['seccomp', judgeSeccomp],
  ['SELinux', judgeSelinux],
  ['hidepid', judgeHidepid],
  ['Huge pages', judgeHugePages],
  ['SMT', judgeSmt],
  ['Memory', judgeMemory],
  ['/dev/net/tun', judgeTun],
];

/** Judges a host by what was read and tried of it. */
export function examine(host: HostFacts, live: LiveFacts): Check[] {
  return REQUIREMENTS.map(([name, judge]) => ({ name, ...judge(host, live) }));
}

/** Examines this host and, where nothing speaks against it, launches the built-in guest in the strict jail. */
export async function diagnose(): Promise<Diagnosis> {
  const checks = examine(readHost(), probe());
  if (isHealthy(checks)) checks.push({ name: 'Strict launch', ...judgeLaunch(await tryLaunch()) });
  return { ok: isHealthy(checks), checks };
}

function isHealthy(checks: readonly Check[]): boolean {
  return checks.every((check) => check.status !== 'fail');
}

const MARKS: Readonly<Record<CheckStatus, string>> = { ok: '✓', info: '·', warn: '!', fail: '✗' };

/** A line for each requirement, what follows from it and what to do indented beneath. */
export function renderDiagnosis({ ok, checks }: Diagnosis): string {
  const width = Math.max(...checks.map((check) => check.name.length));
  const rows = checks.map((check) => {
    const notes = [check.effect, check.remedy && `→ ${check.remedy}`].filter((note) => note !== undefined);
    return [`${MARKS[check.status]} ${check.name.padEnd(width)}  ${check.found}`, ...indent(notes, width + 4)].join(
      '\n',
    );
  });
  const failed = checks.filter((check) => check.status === 'fail').map((check) => check.name);
  const verdict = ok
    ? 'This host is ready: a VM in the strict jail works here.'
    : `This host is not ready. What stands in the way: ${failed.join(', ')}.`;
  const legend = '✓ fine   · good to know   ! works, but something is slow or missing   ✗ stops casemate';
  return `${rows.join('\n')}\n\n${legend}\n${verdict}\n`;
}

function ok(found: string): Finding {
  return { status: 'ok', found };
}

function info(found: string, effect?: string): Finding {
  return effect === undefined ? { status: 'info', found } : { status: 'info', found, effect };
}

function warn(found: string, effect: string, remedy: string): Finding {
  return { status: 'warn', found, effect, remedy };
}

function fail(found: string, effect: string, remedy: string): Finding {
  return { status: 'fail', found, effect, remedy };
}

function judgeSystem({ platform, arch }: HostFacts): Finding {
  const found = `${platform} ${arch}`;
  if (platform === 'linux' && arch === 'x64') return ok(found);
  return fail(found, 'casemate needs KVM of Linux on x86-64.', 'Use a 64-bit Linux host with an Intel or AMD CPU.');
}

/** clone3 into a cgroup, close_range, mount_setattr, Landlock, cgroup.kill and core scheduling: all in 5.14. */
function judgeKernel({ kernel }: HostFacts): Finding {
  if (kernelAtLeast(kernel, 5, 14)) return ok(`Linux ${kernel}`);
  return fail(`Linux ${kernel}`, 'The jail needs system calls of Linux 5.14.', 'Install a kernel of 5.14 or newer.');
}

function judgeNode({ node, libc }: HostFacts): Finding {
  const found = `Node ${node} (${libc === 'unknown' ? 'unknown C library' : libc})`;
  if (Number(/\d+/.exec(node)?.[0]) < 20) return fail(found, 'casemate needs Node 20.', 'Install Node 20 or newer.');
  if (libc === 'static') {
    return fail(
      found,
      'A statically linked Node cannot load addons.',
      'Install a Node from nodejs.org or your distribution.',
    );
  }
  if (libc === 'glibc') return ok(found);
  return warn(found, 'casemate is tested with glibc alone.', 'Build the addon on this machine: npm run build.');
}

function judgeBuilt(error: Error | undefined): Finding {
  if (error === undefined) return ok('built');
  return fail(error.message, 'No VM can be launched.', remedyOf(error) ?? 'Build it: npm run build.');
}

function judgeDevice({ kvmDevice, caller, virtualization }: HostFacts): Finding {
  if (!kvmDevice) {
    const loaded = virtualization.modules.some((name) => name !== 'kvm');
    return fail(
      loaded ? 'not there, though KVM is loaded' : 'not there',
      'Without KVM no VM can run.',
      loaded
        ? 'In a container, hand the device in (docker run --device /dev/kvm); else check udev.'
        : 'Load KVM (modprobe kvm_intel or kvm_amd) after switching virtualization on in the firmware; ' +
            'in a VM, have nested virtualization switched on by its host.',
    );
  }
  const { mode, uid, gid, group, openError, isCharacterDevice } = kvmDevice;
  const owner = `mode ${mode.toString(8).padStart(4, '0')}, user ${uid}, group ${group ?? gid}`;
  if (!isCharacterDevice) {
    return fail(
      `not a device (${owner})`,
      'Without KVM no VM can run.',
      'Remove the file and let udev make the device.',
    );
  }
  if (openError === undefined) return ok(`opens for reading and writing (${owner})`);
  const blocked = `does not open: ${openError} (${owner})`;
  if (openError !== 'EACCES' && openError !== 'EPERM') {
    return fail(blocked, 'Without KVM no VM can run.', 'Load KVM for this CPU: modprobe kvm_intel or kvm_amd.');
  }
  const member = caller.groups.includes(gid);
  return fail(blocked, 'This user may not run VMs.', deviceRemedy(group, member, (mode & 0o060) === 0o060));
}

function deviceRemedy(group: string | undefined, member: boolean, groupMayOpen: boolean): string {
  if (!groupMayOpen) return 'Give its group the right, as root: chgrp kvm /dev/kvm && chmod 660 /dev/kvm.';
  // A member by its groups whom the kernel refuses: a cgroup's device rules or an LSM.
  if (member)
    return 'Permissions allow it: look at device rules of the container or cgroup, and at SELinux or AppArmor.';
  return `Join its group, then log in again: sudo usermod -aG ${group ?? 'kvm'} "$USER".`;
}

function judgeKvm({ kvmDevice }: HostFacts, { kvm, addon }: LiveFacts): Finding {
  // Said already, with its own remedy, by the lines above.
  if (addon) return info('not asked: the addon does not load');
  if (kvmDevice?.openError !== undefined || !kvmDevice?.isCharacterDevice)
    return info('not asked: there is no device to ask');
  if (kvm instanceof Error) {
    return fail(kvm.message, 'Without KVM no VM can run.', remedyOf(kvm) ?? 'Use the KVM of a current Linux kernel.');
  }
  if (kvm.missing.length === 0) return ok('API version 12, with all that casemate needs');
  return fail(
    `without ${kvm.missing.join(', ')}`,
    'VMs cannot be set up.',
    'Use a newer kernel, or another provider of nested KVM.',
  );
}

/** Information and never a verdict: KVM works without vmx and svm where it is paravirtual. */
function judgeVirtualization({ virtualization, kvmDevice }: HostFacts): Finding {
  const { hypervisor, extensions, modules } = virtualization;
  const loaded = modules.length > 0 ? `; modules: ${modules.join(', ')}` : '';
  if (modules.includes('kvm_pvm') || (kvmDevice && !extensions)) {
    return info(
      `paravirtual KVM${loaded}`,
      'Guests at CPL 3 (the default) run natively. Guests at CPL 0 are emulated, about 1 µs an instruction.',
    );
  }
  if (hypervisor && extensions) {
    return info(
      `nested KVM, ${extensions} under a hypervisor${loaded}`,
      'Every exit of a guest passes through the hypervisor below.',
    );
  }
  return extensions ? ok(`hardware, ${extensions}${loaded}`) : info(`none seen${loaded}`);
}

function judgeNxHugePages({ nxHugePages, itlbMultihit, kernel, favorDynMods }: HostFacts): Finding {
  const favor = `cgroups ${favorDynMods ? 'with' : 'without'} favordynmods`;
  if (nxHugePages === undefined) return info('no such parameter');
  if (nxHugePages === 'never' || favorDynMods) return ok(`${nxHugePages}, ${favor}`);
  // From 6.13 on the recovery thread is a task of the VM's process: no move between cgroups to wait for.
  if (kernelAtLeast(kernel, 6, 13)) return ok(`${nxHugePages}, ${favor}: this kernel needs neither`);
  return warn(
    `${nxHugePages}, ${favor}`,
    'In a cgroup each new VM can wait some 27 ms for its huge-page recovery thread.',
    itlbMultihit === 'Not affected'
      ? 'This CPU does not need it: boot with kvm.nx_huge_pages=never.'
      : 'Mount cgroups with favordynmods (Linux 6.0): mount -o remount,favordynmods /sys/fs/cgroup.',
  );
}

function judgeNamespaces({ namespaces }: HostFacts): Finding {
  const { missing, limits } = namespaces;
  const forbidden = Object.keys(limits).filter((kind) => limits[kind] === 0);
  if (missing.length > 0) {
    return fail(
      `this kernel has no namespaces of kind ${missing.join(', ')}`,
      'The jail needs them.',
      'Use the kernel of a distribution.',
    );
  }
  if (forbidden.length > 0) {
    return fail(
      `user.max_${forbidden[0]}_namespaces is 0`,
      'The jail cannot be made.',
      forbidden.map((kind) => `sysctl -w user.max_${kind}_namespaces=10000`).join('; '),
    );
  }
  return ok('mnt, pid, net, ipc, uts and cgroup can be made');
}

function judgeUserNamespaces({ namespaces, caller }: HostFacts): Finding {
  const { unprivilegedClone, apparmorRestricted } = namespaces;
  const restrictions = [
    ...(unprivilegedClone === false ? ['kernel.unprivileged_userns_clone=0'] : []),
    ...(apparmorRestricted === true ? ['kernel.apparmor_restrict_unprivileged_userns=1'] : []),
  ];
  if (restrictions.length === 0) return ok('not restricted');
  const found = `restricted by ${restrictions.join(' and ')}`;
  if (caller.admin) return info(found, 'Does not concern root, who launches here.');
  const remedies = [
    ...(unprivilegedClone === false ? ['sysctl -w kernel.unprivileged_userns_clone=1'] : []),
    ...(apparmorRestricted === true
      ? [
          'an AppArmor profile with "userns," for this Node (or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0)',
        ]
      : []),
  ];
  return fail(found, 'Without root, the jail starts with a user namespace.', `As root: ${remedies.join('; ')}.`);
}

const ALL_IDS = 0xffffffff;

function judgeIds({ caller }: HostFacts): Finding {
  if (caller.admin) {
    const count = caller.uidMap.reduce((sum, range) => sum + range.count, 0);
    return ok(`root with ${count >= ALL_IDS ? 'all' : count} user ids`);
  }
  const identity = caller.uid === 0 ? 'root without CAP_SYS_ADMIN' : `user ${caller.uid}, not root`;
  const granted = caller.subordinateUids.map(({ first, count }) => `${first}-${first + count - 1}`).join(', ');
  return info(
    granted ? `${identity}; /etc/subuid grants ${granted}, which casemate does not need` : identity,
    'All VMs share this user id on the host; launched by root, each has an id of its own.',
  );
}

function judgeLimits({ limits }: LiveFacts): Finding {
  if (!(limits instanceof Error)) return ok(`VMs with limits get cgroups in ${limits}`);
  const remedy = limits instanceof CasemateError ? limits.remedy : 'See docs/limits.md.';
  return warn(limits.message, 'VMs cannot be given limits of memory, CPU and processes by cgroup.', remedy);
}

function judgeLandlock({ securityModules }: HostFacts, { landlockAbi }: LiveFacts): Finding {
  if (landlockAbi === undefined) return info('not asked: the addon does not load');
  if (landlockAbi > 0) return ok(`ABI ${landlockAbi}`);
  return fail(
    securityModules ? `not among the security modules (${securityModules.join(', ')})` : 'not in this kernel',
    'The strict jail has it as a layer.',
    'Boot with landlock in the list of lsm= (CONFIG_SECURITY_LANDLOCK).',
  );
}

/** What the filters of the monitor answer with. */
const SECCOMP_ACTIONS = ['allow', 'trap', 'kill_process'];

function judgeSeccomp({ seccompActions }: HostFacts): Finding {
  const missing = SECCOMP_ACTIONS.filter((action) => !seccompActions.includes(action));
  if (missing.length === 0) return ok('filters, with all actions needed');
  const found = seccompActions.length === 0 ? 'not in this kernel' : `without the actions ${missing.join(', ')}`;
  return fail(found, 'The monitor cannot be confined to its system calls.', 'Use a kernel with CONFIG_SECCOMP_FILTER.');
}

function judgeSelinux({ selinux }: HostFacts): Finding {
  if (selinux === 'enforcing') return ok('enforcing');
  return info(selinux, 'VMs are not separated by SELinux categories; all other layers of the jail hold.');
}

function judgeHidepid({ hidepid, caller }: HostFacts): Finding {
  if (hidepid === 'off') return ok('off');
  if (caller.admin) return info(hidepid, 'Does not concern root, who launches here.');
  return warn(
    hidepid,
    'The monitor cannot be looked at from outside, so its jail cannot be proven.',
    'Mount /proc with gid= of a group that this user is in, or without hidepid.',
  );
}

function judgeHugePages({ transparentHugePages }: HostFacts): Finding {
  if (transparentHugePages === undefined)
    return info('not in this kernel', 'Guest memory takes a fault for every 4 KiB.');
  if (transparentHugePages === 'never') return info('never', 'Guest memory takes a fault for every 4 KiB.');
  return ok(transparentHugePages);
}

function judgeSmt({ smt }: HostFacts): Finding {
  if (!smt) return ok('off: no two VMs share a core at a time');
  return info(
    'on: two VMs can share a core, with its caches',
    "Where the guests do not trust each other, launch with jail: { layers: { coreScheduling: 'required' } }.",
  );
}

/** A monitor, the smallest guests, and Node beside them. */
const SCARCE_MEMORY_MIB = 256;

function judgeMemory({ memory }: HostFacts): Finding {
  const found = `${memory.availableMib} of ${memory.totalMib} MiB available`;
  if (memory.availableMib >= SCARCE_MEMORY_MIB) return ok(found);
  return warn(found, 'Guests may be killed for want of memory.', 'Free memory, or launch fewer and smaller VMs.');
}

function judgeTun({ tun }: HostFacts): Finding {
  if (!tun) return info('not there', 'Guests without a network, as all are today, do not need it.');
  return info(tun.openError === undefined ? 'opens' : `does not open: ${tun.openError}`);
}

function judgeLaunch(outcome: { microseconds: number } | Error): Finding {
  if (!(outcome instanceof Error))
    return ok(`works: the built-in guest ran ${outcome.microseconds} µs after the call of launch()`);
  const code = 'code' in outcome ? `${outcome.code}: ` : '';
  return fail(
    `${code}${outcome.message}`,
    'No VM can be launched in the strict jail.',
    remedyOf(outcome) ?? 'Run casemate run with CASEMATE_DEBUG=1 for the whole error.',
  );
}

function remedyOf(error: Error): string | undefined {
  return error instanceof CasemateError ? error.remedy : undefined;
}
