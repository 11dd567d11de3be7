import { constants, mkdirSync, openSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { CasemateError, type ErrorCode, errnoRemedy, isSystemError, type SystemErrorCause } from '../errors.js';
import { readCaller } from '../host.js';
import { builtFile, native } from '../native.js';
import type { EncodedPlan } from './encode.js';
import {
  moments,
  type NativeCgroup,
  type NativeChild,
  type NativeFile,
  type NativeLauncher,
  type NativeOutcome,
  type NativePlan,
  stages,
} from './native.js';
import { type Caller, userIdRange } from './profiles.js';
import type { StepName } from './steps.js';

/** Who is calling; read once, as a process's rights for this do not come back once they are gone. */
export function caller(): Caller {
  known ??= readCallerOnce();
  return known;
}

let known: Caller | undefined;

function readCallerOnce(): Caller {
  const { admin, uid, uidMap } = readCaller('/');
  const gid = process.getegid?.() ?? uid;
  const userIds = admin ? userIdRange(uidMap) : { first: 0, count: 0 };
  // Root of a user namespace with no user but itself has none to give away: it launches as any other user does.
  return { rootless: userIds.count === 0, uid, gid, userIds };
}

/** Namespaces of each kind kept ready, and launches worked on at once. */
const pooledNamespaces = 8;
const launchTasks = Math.min(4, Math.max(2, availableParallelism()));

/** Bytes of this file are leases of user ids, one per living VM of the host (fcntl(2), F_OFD_SETLK). */
const leaseDirectory = '/run/casemate';

/** This environment's launcher: made at the first launch, ended with the environment. */
export function launcher(): NativeLauncher {
  made ??= makeLauncher();
  return made;
}

let made: NativeLauncher | undefined;

/** Has the launcher wake up while the options of a launch are looked at, where there is one already. */
export function expectLaunch(): void {
  made?.expect();
}

function makeLauncher(): NativeLauncher {
  const { rootless, uid, gid, userIds } = caller();
  try {
    if (!rootless) mkdirSync(leaseDirectory, { recursive: true, mode: 0o755 });
    return new native.Launcher({
      monitor: builtFile('casemate-vmm'),
      leases: rootless ? '' : `${leaseDirectory}/user-ids`,
      rootless,
      uid,
      gid,
      firstUserId: userIds.first,
      userIds: userIds.count,
      tasks: launchTasks,
      pooled: pooledNamespaces,
      Child: native.Child,
    });
  } catch (cause) {
    if (!isSystemError(cause)) throw cause;
    throw namespaceError('prepare', cause);
  }
}

/** Waits until the launcher's pools are full, or cannot be filled: a launch will say why. */
export async function poolsFilled(): Promise<void> {
  const on = launcher();
  for (let tries = 0; tries < 500; tries += 1) {
    const { network, user, sockets } = on.ready();
    if (network === pooledNamespaces && user === pooledNamespaces && sockets) return;
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** One step of a launch that has been done. */
export interface TimelineStep {
  /** `'setns'`, `'createVm'`. */
  readonly name: string;
  /** Who did it. */
  readonly where: 'node' | 'launcher' | 'child' | 'monitor';
  /** When it was done, CLOCK_MONOTONIC in nanoseconds (as process.hrtime.bigint()). */
  readonly at: bigint;
}

/** A plan made ready for any number of launches. */
export interface LaunchPlan extends EncodedPlan {
  readonly native: NativePlan;
}

/** How the launches of a plan go. */
export interface LaunchPlanOptions {
  /** For a program that speaks a control protocol: the name of our end of the socket, and the first message each way. */
  readonly control?: { readonly ours: string; readonly announcement: Uint8Array; readonly release: Uint8Array };
  /**
   * By the plan's names: descriptors that no launch need give, as all have the same. Used as they are and not copied:
   * to stay open for as long as this process.
   */
  readonly lasting?: Readonly<Record<string, number | undefined>>;
  /** The plan's paths are the host's, not those of the prepared mount namespace. */
  readonly inHostMounts?: boolean;
  /** A program of one thread, with few descriptors: it can be started in less time. */
  readonly lean?: boolean;
}

/** Has the addon check a plan. */
export function launchPlan(
  plan: EncodedPlan,
  { control, lasting = {}, inHostMounts = false, lean = false }: LaunchPlanOptions,
): LaunchPlan {
  return {
    ...plan,
    native: new native.Plan(plan.bytes, plan.given.length, {
      lasting: plan.given.map((name) => lasting[name] ?? -1),
      inHostMounts,
      lean,
      ...(control && {
        controlSlot: plan.slots.get(control.ours) as number,
        announcement: control.announcement,
        release: control.release,
      }),
    }),
  };
}

/** What a launch gives to be run. */
export interface LaunchRequest {
  readonly plan: LaunchPlan;
  /** By the plan's names: descriptors, which stay the caller's, and files, which are taken. */
  readonly descriptors: Readonly<Record<string, number | NativeFile | undefined>>;
  /** What a program with a control protocol finds at its birth. */
  readonly configuration?: Uint8Array;
  /** Made for this process, which is born in it by its descriptor; taken, and removed at the end. */
  readonly cgroup?: NativeCgroup | undefined;
  /** The SELinux label, for a plan that has none of its own. */
  readonly label?: string | undefined;
}

/** EOWNERDEAD, by which the launcher says that no step has failed, and that its process is gone nevertheless. */
const childDied = -130;

/** How long a program may take to say that it has given up its rights: it is a millisecond's work. */
const announcementTimeoutMs = 10_000;

/** A launch's outcome in words: where it stopped, or how far it went. */
export interface LaunchOutcome {
  readonly stage: (typeof stages)[number];
  readonly step: StepName | undefined;
  readonly error: SystemErrorCause | undefined;
  readonly mismatch: string | undefined;
  readonly event: Buffer | undefined;
}

/** A launch under way. */
export interface Launching {
  /** Its process, from its birth on: to be reaped. To kill it before is to give up the launch. */
  readonly child: NativeChild;
  /** How the launch ended. Never, where a program with a control protocol was launched well: its messages follow. */
  readonly done: Promise<LaunchOutcome>;
}

/** Begins one launch. A failed one has its `stage`. */
export function runLaunch({ plan, descriptors, configuration, cgroup, label }: LaunchRequest): Launching {
  const given = plan.given.map((name) => descriptors[name] ?? -1);
  let end: (outcome: LaunchOutcome) => void = () => {};
  const done = new Promise<LaunchOutcome>((resolve) => {
    end = resolve;
  });
  const onDone = (outcome: NativeOutcome) => end(describeOutcome(plan, outcome));
  const child = launcher().launch(plan.native, given, configuration, announcementTimeoutMs, onDone, cgroup, label);
  return { child, done };
}

function describeOutcome(plan: EncodedPlan, outcome: NativeOutcome): LaunchOutcome {
  const stage = stages[outcome.stage] ?? 'none';
  const { step = 0, error, mismatch, event } = outcome;
  const index = stage === 'child' ? plan.launcherSteps + step : step;
  return {
    stage,
    step: stage === 'launcher' || stage === 'child' ? plan.steps[index] : undefined,
    error,
    mismatch,
    event,
  };
}

/** The stamps of a launch with their names, in the order in which things happened. */
export function timelineSteps(plan: EncodedPlan, stamps: BigUint64Array): TimelineStep[] {
  const at = (index: number) => stamps[index] ?? 0n;
  const moment = (name: (typeof moments)[number]) => at(moments.indexOf(name));
  const first = moments.length + 1;
  const list: TimelineStep[] = [
    { name: 'submit', where: 'node', at: moment('submitted') },
    { name: 'take', where: 'launcher', at: moment('taken') },
  ];
  plan.steps.forEach((name, index) => {
    if (index === plan.launcherSteps) {
      list.push({ name: 'clone3', where: 'launcher', at: at(moments.length) });
    }
    const where = index < plan.launcherSteps ? 'launcher' : 'child';
    // execve does not return: its end is when the launcher goes on, where that waits for it.
    list.push({ name, where, at: name === 'exec' ? moment('cloned') : at(first + index) });
  });
  list.push({ name: 'jailed', where: 'launcher', at: moment('jailed') });
  list.push({ name: 'readBack', where: 'launcher', at: moment('checked') });
  list.push({ name: 'release', where: 'launcher', at: moment('released') });
  return list.filter((step) => step.at !== 0n);
}

/** The typed error of a launch that failed before its monitor spoke. */
export function launchError(outcome: LaunchOutcome): CasemateError {
  const { stage, step, error, mismatch } = outcome;
  if (error?.errno === childDied) {
    return new CasemateError('ERR_CASEMATE_LAUNCH_STEP', `The process was killed at launch step ${step ?? stage}`, {
      step: step ?? stage,
      remedy: 'Was it out of memory (see the log of the kernel), or did another program kill it?',
      cause: error,
    });
  }
  if (stage === 'check') {
    return new CasemateError(
      'ERR_CASEMATE_JAIL_MISMATCH',
      mismatch === undefined
        ? `The state of the jailed process could not be read back: ${error?.message}`
        : `The jailed process is not what was asked for: ${mismatch} differs`,
      {
        step: mismatch ?? 'readBack',
        remedy: 'It was killed before any guest code ran. Is another program changing its credentials or label?',
        cause: error,
      },
    );
  }
  if (stage === 'prepare' || (step === 'pooled' && error !== undefined)) return namespaceError(step ?? stage, error);
  if (step === 'tap') return tapError(error);
  const name = step ?? stage;
  return new CasemateError(
    codes[name] ?? 'ERR_CASEMATE_LAUNCH_STEP',
    `Launch step ${name} failed: ${error?.message ?? 'unknown'}`,
    {
      step: name,
      remedy: remedies[name] ?? 'Run `casemate doctor` to see what this host lacks.',
      cause: error,
    },
  );
}

/** Steps whose failure says that this host has no such layer. */
const codes: Readonly<Record<string, ErrorCode>> = {
  keyring: 'ERR_CASEMATE_LAYER_UNAVAILABLE',
  coreScheduling: 'ERR_CASEMATE_LAYER_UNAVAILABLE',
  execLabel: 'ERR_CASEMATE_SELINUX',
  socketLabel: 'ERR_CASEMATE_SELINUX',
};

const remedies: Readonly<Record<string, string>> = {
  clone: 'Namespaces of some kind cannot be made here: see /proc/sys/user/max_*_namespaces and `casemate doctor`.',
  execLabel: 'The loaded SELinux policy does not know this context, or the caller may not set it.',
  socketLabel: 'The loaded SELinux policy does not know this context, or the caller may not set it.',
  exec:
    'The monitor must lie on a filesystem that is not mounted noexec, and be executable by its own user; with SELinux it ' +
    'has a label of its own: run `casemate selinux check`.',
  coreScheduling: "This kernel has no core scheduling (CONFIG_SCHED_CORE): switch the layer 'coreScheduling' off.",
  keyring: 'This kernel has no keyrings, or its quota is used up: see /proc/sys/kernel/keys, or switch the layer off.',
};

/** What keeps a tap from being had, by the call that failed, with or without its errno. */
const tapRemedies: Readonly<Record<string, string>> = {
  'open(/dev/net/tun) ENOENT': 'There is no /dev/net/tun: load the module tun, or give the container this device.',
  'open(/dev/net/tun)': 'Has the kernel the module tun, and may this user open /dev/net/tun (it is usually 0666)?',
  'setns(net)':
    'Over the network namespace that is given, the caller needs CAP_SYS_ADMIN in the user namespace that owns it.',
  'ioctl(SIOCGIFINDEX) ENODEV': 'No device of this name is in the network namespace: create it first, as this user.',
  'ioctl(SIOCGIFINDEX of the bridge)': 'No bridge of this name is in the network namespace.',
  'ioctl(TUNSETIFF) EBUSY': 'A device of this name is there already, or the tap is in use by another process.',
  'ioctl(TUNSETIFF) EPERM':
    'A tap that exists must belong to this user (`ip tuntap add dev NAME mode tap user USER`); to make one takes ' +
    'CAP_NET_ADMIN over its network namespace.',
  'ioctl(TUNSETIFF) EINVAL': 'The device of this name is no tap of one queue.',
};

function tapError(cause: SystemErrorCause | undefined): CasemateError {
  const call = cause?.syscall ?? '';
  return new CasemateError('ERR_CASEMATE_NETWORK', `The tap cannot be had: ${cause?.message}`, {
    step: 'tap',
    remedy: tapRemedies[`${call} ${cause?.code}`] ?? tapRemedies[call] ?? errnoRemedy,
    cause,
  });
}

/** Namespaces of a jail, the calls that fail where no more can be had, and what decides how many there may be. */
const namespaceKinds = [
  { kind: 'network', calls: /CLONE_NEWNET/, limits: '/proc/sys/user/max_net_namespaces' },
  { kind: 'mount', calls: /CLONE_NEWNS/, limits: '/proc/sys/user/max_mnt_namespaces' },
  {
    kind: 'user',
    calls: /CLONE_NEWUSER|[gu]id_map|setgroups/,
    limits:
      '/proc/sys/user/max_user_namespaces, kernel.unprivileged_userns_clone and ' +
      'kernel.apparmor_restrict_unprivileged_userns',
  },
] as const;

/** Namespaces that cannot be made: by far the most frequent reason why a jail cannot be had. */
function namespaceError(step: string, cause: SystemErrorCause | undefined): CasemateError {
  const found = namespaceKinds.find(({ calls }) => calls.test(cause?.syscall ?? ''));
  const what = found === undefined ? 'The namespaces' : `A ${found.kind} namespace`;
  return new CasemateError('ERR_CASEMATE_NAMESPACES', `${what} of the jail cannot be made: ${cause?.message}`, {
    step,
    remedy:
      found === undefined
        ? 'Run `casemate doctor` to see what this host lacks.'
        : `See ${found.limits}; \`casemate doctor\` says what is in the way.`,
    cause,
  });
}

let nullDevice: number | undefined;

/** /dev/null, opened once: what a jailed process has for its standard streams. */
export function devNull(): number {
  nullDevice ??= openSync('/dev/null', constants.O_RDWR);
  return nullDevice;
}

/** How a process ended, and what of it its cgroup says. One of the first two is null. */
export interface ChildEnd {
  readonly code: number | null;
  readonly signal: number | null;
  readonly memoryEvents: string;
}

/** That of a process that was never born. */
export const unborn: ChildEnd = { code: null, signal: null, memoryEvents: '' };

/** Waits until a child of a failed launch is gone, so that a failure leaves nothing behind. */
export function reaped(child: NativeChild): Promise<ChildEnd> {
  return new Promise((resolve) => {
    if (child.pid === 0) return resolve(unborn);
    child.watch(
      () => {},
      (code, signal, memoryEvents) => resolve({ code, signal, memoryEvents }),
    );
  });
}
