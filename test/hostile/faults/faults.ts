/**
 * Launches of which one system call fails, or at one of which the process is killed: any that its process makes, from
 * `clone3` up to its guest's end, and any of the threads that launch. test/programs/fault.c has the kernel ask it about
 * each call, so nothing here knows which ones there are.
 */
import { constants } from 'node:os';
import { syscallName, syscalls } from '#lib/jail/syscalls.js';
import { guest } from '../../helpers/guests.js';
import { tellsOf } from '../../helpers/node.js';
import { program } from '../../helpers/programs.js';

/** How a call fails: with an error, or with its process killed. */
export const faults = ['EPERM', 'ENOMEM', 'EMFILE', 'EAGAIN', 'EINTR', 'SIGKILL'] as const;
export type Fault = (typeof faults)[number];

/** Whose calls: of the monitor-to-be, of the process that makes its tap, or of the threads that launch. */
export type Whose = 'monitor' | 'helper' | 'task';

/** What came of a launch of which one call failed. */
export interface Outcome {
  /** From 1 on. */
  readonly number: number;
  readonly call: string;
  readonly fault: Fault;
  /** How it ended, or why it did not come to that. */
  readonly exit?: { readonly reason: string };
  readonly error?: { name: string; code?: string; step?: string; errno?: number; remedy?: string; message: string };
  readonly ms: number;
}

export interface Outcomes {
  readonly outcomes: readonly Outcome[];
  /** What this Node and its host have more of than before: nothing, if all is well. */
  readonly left: readonly string[];
}

/** Options of the launches, as source. The second one has all that a plan may have, as far as this host has it. */
export const guests = {
  'a bare-metal guest': `{ guest: '${guest('touch')}', args: ['writes', '1000000', '2000000'], memoryMib: 64 }`,
  'a Linux guest': `{
    kernel: kernel(follow(0x228), powerOff), cmdline: 'x', vcpus: 2, balloon: true, vsock: true,
    disks: [{ path: shared, readOnly: true }, { path: disk }],
    ...(has('tun') && { network: { tap: { addresses: ['10.11.12.1/24'] } } }),
    ...(has('limits') && { limits: { memoryMib: 512, pids: 64 } }),
  }`,
} as const;

export type GuestName = keyof typeof guests;

/**
 * Each call fails once, or each `step`-th one, in its turn by the next of these; or by all of them, with `every`. Of calls that a step makes
 * many of in a row, as of the 41 capabilities that go one by one, the first three. `uid`: of who launches, and of his group.
 */
export async function failEach(
  guest: GuestName,
  whose: Whose,
  by: readonly Fault[],
  { every = false, step = 1, uid }: { every?: boolean; step?: number; uid?: number | undefined } = {},
): Promise<Outcomes> {
  const ways = by.map((fault) => [fault, fault === 'SIGKILL' ? -9 : constants.errno[fault]]);
  const script = `
    import { mkdtempSync, readSync, readdirSync, rmSync, writeFileSync, writeSync } from 'node:fs';
    import { tmpdir } from 'node:os';
    import { join } from 'node:path';
    import { launch, warmUp } from 'casemate';
    import { leaks } from '${new URL('../../helpers/leaks.js', import.meta.url)}';
    import { follow, kernel, powerOff } from '${new URL('../../helpers/kernels.js', import.meta.url)}';
    import { has } from '${new URL('../../helpers/capabilities.js', import.meta.url)}';
    import { ifThere, within } from '${new URL('../../helpers/proc.js', import.meta.url)}';
    import { fileContext, isEnabled } from 'casemate/selinux';
    const folder = mkdtempSync(join(tmpdir(), 'casemate-faults-'));
    const [shared, disk] = ['shared', 'disk'].map((name) => join(folder, name));
    for (const path of [shared, disk]) writeFileSync(path, Buffer.alloc(4096));
    const labels = () => (isEnabled() ? [disk].map(fileContext) : []);
    const before = labels();
    // Of root's VMs with limits: nobody else has any meanwhile.
    const cgroups = () => (ifThere(() => readdirSync('/sys/fs/cgroup/casemate')) ?? []).filter((name) => !name.includes('.'));
    const options = { console: 'ignore', timeoutMs: 20_000, ...${guests[guest]} };
    const answer = Buffer.alloc(64);
    // Where there is a tap, who makes it is born first.
    const which = { task: 'task', helper: 'first', monitor: options.network ? 'second' : 'first' }.${whose};
    const order = (number, error) => writeSync(3, which + ' ' + number + ' ' + error + '\\n');
    const failedCall = () => {
      writeSync(3, '\\n');
      const [, call, request] = answer.toString('latin1', 0, readSync(4, answer)).split(' ').map(Number);
      return { call, request };
    };
    const ways = ${JSON.stringify(ways)};
    const outcomes = [];
    async function one(number, [fault, error]) {
      await warmUp();
      const begun = performance.now();
      order(number, error);
      let came;
      try {
        came = { exit: await (await launch(options)).exited };
      } catch (error) {
        came = { error: failure(error) };
      }
      const { call, request } = failedCall();
      order(0, 0);
      if (call < 0) return;
      outcomes.push({ number, call, request, fault, ms: Math.round(performance.now() - begun), ...came });
      return call === ${syscalls.ioctl} ? 'ioctl ' + request : call;
    }
    async function all() {
      let last;
      let times = 0;
      for (let number = 1; ; number += ${step}) {
        const repeats = times > 3;
        const turns = ${every} && !repeats ? ways : [ways[number % ways.length]];
        let call;
        for (const way of turns) call = await one(number, way);
        // A fault early in a series may have made it shorter.
        if (call === undefined) break;
        times = call === last ? times + 1 : 1;
        last = call;
      }
    }
    await warmUp();
    await (await launch(options)).exited;
    const left = await leaks(all);
    if (options.limits !== undefined && !(await within(10_000, () => cgroups().length === 0)))
      left.push(...cgroups().map((name) => '+ cgroup: ' + name));
    for (const [i, label] of labels().entries()) if (label !== before[i]) left.push('+ label: ' + label);
    rmSync(folder, { recursive: true });
    tell({ outcomes, left });`;
  type Told = Omit<Outcome, 'call'> & { readonly call: number; readonly request: number };
  const told = await tellsOf<{ outcomes: Told[]; left: string[] }>(script, {
    through: [program('fault')],
    ...(uid !== undefined && { uid }),
  });
  return { ...told, outcomes: told.outcomes.map((each) => ({ ...each, call: nameOf(each.call, each.request) })) };
}

/** Requests of KVM by their numbers (linux/kvm.h), of those that a monitor makes up to its guest's end. */
const requests: Readonly<Record<number, string>> = {
  1: 'KVM_CREATE_VM',
  3: 'KVM_CHECK_EXTENSION',
  4: 'KVM_GET_VCPU_MMAP_SIZE',
  65: 'KVM_CREATE_VCPU',
  70: 'KVM_SET_USER_MEMORY_REGION',
  71: 'KVM_SET_TSS_ADDR',
  106: 'KVM_SET_GSI_ROUTING',
  121: 'KVM_IOEVENTFD',
  128: 'KVM_RUN',
  137: 'KVM_SET_MSRS',
  139: 'KVM_SET_SIGNAL_MASK',
  144: 'KVM_SET_CPUID2',
  163: 'KVM_ENABLE_CAP',
  165: 'KVM_SIGNAL_MSI',
  173: 'KVM_KVMCLOCK_CTRL',
  198: 'KVM_X86_SET_MSR_FILTER',
};

function nameOf(call: number, request: number): string {
  const name = syscallName(call);
  if (name !== 'ioctl') return name;
  const isKvm = ((request >> 8) & 0xff) === 0xae;
  return `ioctl(${(isKvm ? requests[request & 0xff] : undefined) ?? `0x${request.toString(16)}`})`;
}

const anyGuest = [
  'KVM_CREATE_VM',
  'KVM_SET_USER_MEMORY_REGION',
  'KVM_ENABLE_CAP',
  'KVM_CREATE_VCPU',
  'KVM_SET_CPUID2',
  'KVM_RUN',
];

/** Without these no VM starts, on whatever host: each of them fails once, or the rest shows less than it says. */
const neededRequests: Readonly<Record<GuestName, readonly string[]>> = {
  'a bare-metal guest': anyGuest,
  'a Linux guest': [...anyGuest, 'KVM_X86_SET_MSR_FILTER', 'KVM_SET_MSRS', 'KVM_IOEVENTFD'],
};

/** And while the guest runs: with these the VM has an end, and its launch no error. */
const neededWhileRunning: Readonly<Record<GuestName, readonly string[]>> = {
  'a bare-metal guest': ['KVM_SET_USER_MEMORY_REGION'],
  'a Linux guest': [],
};

/** Those that have not failed where each call of a monitor was to. */
export const sparedRequests = (guest: GuestName, outcomes: readonly Outcome[]): string[] => [
  ...neededRequests[guest].filter((name) => !outcomes.some(({ call }) => call === `ioctl(${name})`)),
  ...neededWhileRunning[guest]
    .filter((name) => !outcomes.some(({ call, exit }) => call === `ioctl(${name})` && exit !== undefined))
    .map((name) => `${name}, while its guest runs,`),
];

/** What is wrong with an outcome, or undefined where it is as it should be: prompt, typed, and true. */
export function flaw({ error, exit, fault, ms }: Outcome): string | undefined {
  if (error === undefined) return exit?.reason === 'timeout' ? `it hangs, for ${ms} ms` : undefined;
  const { name, code = '', step, remedy, errno } = error;
  if (name !== 'CasemateError' || !/^ERR_CASEMATE_/.test(code)) return `${name} ${code}, not one of ours`;
  // Ten seconds, where something waits for what does not come.
  if (code === 'ERR_CASEMATE_TIMEOUT') return `a timeout, after ${ms} ms`;
  if (!step || !remedy) return `${code} without step or remedy`;
  // Of what was caused by it, like a hang-up, the error is another one.
  if (code === 'ERR_CASEMATE_LAUNCH_STEP' && fault !== 'SIGKILL' && errno !== -constants.errno[fault]) {
    return `${code} with errno ${errno}, for ${fault}`;
  }
  return undefined;
}
