import { onAbort } from '../abort.js';
import { agentInitrd } from '../agent/initrd.js';
import { deadline } from '../deadline.js';
import { abortError, CasemateError } from '../errors.js';
import { checkLimits, type LimitedCgroup, limitedCgroup } from '../jail/cgroup.js';
import { encodePlan } from '../jail/encode.js';
import {
  type ChildEnd,
  caller,
  devNull,
  expectLaunch,
  type Launching,
  type LaunchOutcome,
  type LaunchPlan,
  launchError,
  launchPlan,
  poolsFilled,
  runLaunch,
  timelineSteps,
} from '../jail/launcher.js';
import type { NativeFile } from '../jail/native.js';
import { inputName, type Jail, type MonitorLimits, monitorPlan } from '../jail/profiles.js';
import { syscallName } from '../jail/syscalls.js';
import { native } from '../native.js';
import { FileLabels } from '../selinux/files.js';
import { giveBack, labelFor, labelOf, type Unlabelled, type VmLabel } from '../selinux/label.js';
import { watchLabelled } from '../selinux/watch.js';
import { channels } from './channels.js';
import type { Device } from './devices.js';
import type { EvidenceRequest } from './evidence.js';
import { describeExit, type VmExit } from './exit.js';
import { builtInGuest, type FileSource, LaunchFiles } from './files.js';
import { kvmDevice, vcpuFacts } from './kvm-device.js';
import { killedForMemory } from './limits.js';
import { type LaunchOptions, type ParsedOptions, parseOptions } from './options.js';
import { timeline } from './timeline.js';
import { unpackedKernel } from './unpack.js';
import { Vm } from './vm.js';
import { bare, decodeEvent, encodeConfiguration, encodeDevices, type MonitorEvent, wire } from './wire.js';

let count = 0;

/**
 * Launches a virtual machine in a jail and resolves at its guest's first hypercall (its doorbell), which for a Linux
 * guest is its kernel's first access to a device of its machine: from then on guest code has run.
 *
 * Options are checked before anything is created. A failure at any step leaves nothing behind: no process,
 * descriptor, mount, cgroup or namespace.
 *
 * @throws CasemateError with `code`, `step`, `errno` and `remedy`; an AbortError where `signal` is aborted.
 * @example
 * ```ts
 * await using vm = await launch({ guest: 'guest.elf', args: ['42'] });
 * vm.console.pipe(process.stdout);
 * console.log(await vm.exited);
 * ```
 */
export async function launch(options: LaunchOptions = {}): Promise<Vm> {
  const t0 = process.hrtime.bigint();
  expectLaunch();
  const parsed = parseOptions(options);
  if (parsed.signal?.aborted) throw abortError(parsed.signal);
  count += 1;
  const id = `${process.pid}-${count}`;
  const context = { id, options: parsed };
  channels.launch.start.publish(context);
  try {
    const vm = await launchParsed(id, parsed, t0);
    channels.launch.asyncEnd.publish({ ...context, vm });
    return vm;
  } catch (error) {
    channels.launch.error.publish({ ...context, error });
    throw error;
  }
}

async function launchParsed(id: string, options: ParsedOptions, t0: bigint): Promise<Vm> {
  checkLayers(options.jail);
  const begun = beginLaunch(options, isLinux(options) ? await kernelOf(options) : undefined);
  // All that Node has to do for a launch, while the launcher is at work: later it would be in the monitor's way.
  const vm = takeOver(id, options, begun, t0);
  const stamps = await vm.started;
  // Aborted before this promise resolves is aborted, though the guest may have rung just before it was killed.
  if (stamps === undefined || options.signal?.aborted) throw await startError(vm, options);
  const t2 = process.hrtime.bigint();
  const { plan, launching } = begun;
  vm.launched(() => timeline(t0, t2, timelineSteps(plan, launching.child.stamps), stamps()));
  return vm;
}

/** A launch that the launcher works on. */
interface Begun {
  readonly plan: LaunchPlan;
  readonly launching: Launching;
  readonly limits: LimitedCgroup['files'] | undefined;
  readonly resources: MonitorLimits;
  readonly label: VmLabel | Unlabelled;
  readonly fileLabels: FileLabels | undefined;
}

/** @param kernel - what was unpacked of `options.guest`. */
function beginLaunch(options: ParsedOptions, kernel: NativeFile | undefined): Begun {
  const found = labelFor(options.jail.selinux);
  const label = labelOf(found);
  const fileLabels = label && new FileLabels(label);
  const files = new LaunchFiles(fileLabels);
  const names = isLinux(options) ? linuxNames : bareMetalNames;
  let cgroup: LimitedCgroup | undefined;
  try {
    cgroup = options.limits && limitedCgroup(options.limits);
    const kvm = kvmDevice(options.kvmFd);
    const devices = openDevices(options.devices, files);
    const resources = resourcesOf(options, files.largestDisk);
    const plan = planFor(options, resources, label);
    const { cpuid, runSize } = vcpuFacts(kvm, options);
    const configuration = encodeConfiguration({
      memorySize: options.memoryMib * 1024 * 1024,
      flags: plan.flags | (options.startPaused ? wire.flags.paused : 0),
      format: options.format,
      vcpus: options.vcpus,
      inputs: inputCount(options),
      pageShift: pageShifts[options.hugePages ?? 'any'],
      cpl: options.cpl,
      cpuid,
      runSize,
      devices: tableOf(options.devices),
      args: options.args,
    });
    const descriptors: Record<string, number | NativeFile | undefined> = {
      ...devices,
      kvm,
      guest: kernel ?? (options.guest === undefined ? builtInGuest() : files.open(names.guest, options.guest)),
      networkNamespace: options.jail.networkNamespaceFd,
      cgroup: cgroup?.handle.fd ?? options.jail.cgroupFd,
    };
    const { agent, inputs } = options;
    if (agent !== undefined) {
      descriptors[inputName(0)] = agentInitrd(agent.modules, options.devices.flatMap(driversOf));
    }
    const first = inputCount(options) - inputs.length;
    inputs.forEach((file, i) => {
      descriptors[inputName(first + i)] = files.open(names.input(inputs, i), file);
    });
    if (label?.lease !== undefined) descriptors.categories = label.lease;
    if (fileLabels !== undefined) {
      // What is not opened for this launch alone.
      if (options.guest === undefined) fileLabels.shareOwn(descriptors.guest as number);
      if (kernel !== undefined) fileLabels.share('options.kernel', 'what was unpacked of it', kernel);
      if (agent !== undefined) fileLabels.share('options.agent', 'its initrd', descriptors[inputName(0)] as NativeFile);
    }
    const launching = runLaunch({
      plan,
      descriptors,
      configuration,
      cgroup: cgroup?.handle,
      label: label?.context,
    });
    return { plan, launching, limits: cgroup?.files, resources, label: found, fileLabels };
  } catch (error) {
    fileLabels?.restore();
    throw error;
  } finally {
    // What the launcher has not taken.
    files.close();
    cgroup?.handle.close();
    label?.lease?.close();
  }
}

const noDevices = encodeDevices([]);

function tableOf(devices: readonly Device[]): Uint8Array {
  if (devices.length === 0) return noDevices;
  return encodeDevices(devices.map((device) => ({ ...device, descriptors: device.descriptors.length })));
}

/** The descriptors of devices, in their order: the name of each in the plan. */
const descriptorsOf = (devices: readonly Device[]) =>
  devices.flatMap(({ descriptors }) => descriptors).map((source, index) => ({ name: nameOf(source, index), source }));

const nameOf = (source: unknown, index: number): string => (typeof source === 'string' ? source : `device${index}`);

/** Those of them that the plan does not make itself. */
function openDevices(devices: readonly Device[], files: LaunchFiles): Record<string, number | NativeFile> {
  if (devices.length === 0) return {};
  return Object.fromEntries(
    descriptorsOf(devices).flatMap(({ name, source }) => (typeof source === 'string' ? [] : [[name, source(files)]])),
  );
}

const bareMetalNames = { guest: 'options.guest', input: () => 'options.input' };
const linuxNames = {
  guest: 'options.kernel',
  input: ({ length }: readonly unknown[], i: number) => (length === 1 ? 'options.initrd' : `options.initrd[${i}]`),
};
/** The agent's initrd is the first of them: whatever the others are, it is unpacked. */
const inputCount = ({ agent, inputs }: ParsedOptions): number => inputs.length + (agent === undefined ? 0 : 1);

/** What a kernel has as modules to use a device, and a disk that is its root; and to say that it panics. */
const drivers: Partial<Record<Device['type'], readonly string[]>> = {
  rng: ['pvpanic_mmio'],
  block: ['virtio_blk', 'ext4', 'erofs'],
  net: ['virtio_net'],
  console: ['virtio_console'],
  balloon: ['virtio_balloon'],
};
const driversOf = ({ type }: Device): readonly string[] => drivers[type] ?? [];

const bornInCgroup = ({ limits, jail }: ParsedOptions): boolean => limits !== undefined || jail.cgroupFd !== undefined;

const hasVsock = ({ devices }: ParsedOptions): boolean => devices.some(({ type }) => type === 'vsock');

const isLinux = ({ format }: ParsedOptions): boolean => format === 'linux' || format === 'pvh';

/** The kernel in a bzImage. A launch that is aborted does not wait for it; others may. */
function kernelOf({ guest, jail, signal }: ParsedOptions): Promise<NativeFile | undefined> {
  const kernel = unpackedKernel(guest as FileSource, jail);
  return new Promise((resolve, reject) => {
    const unlisten = onAbort(signal, () => reject(abortError(signal as AbortSignal)));
    kernel.then(resolve, reject).finally(unlisten);
  });
}

/** The VM to be of a launch under way, with everything that can end it. */
function takeOver(id: string, options: ParsedOptions, begun: Begun, t0: bigint): Vm {
  const { plan, launching, limits, resources, fileLabels } = begun;
  const label = labelOf(begun.label);
  const { jail, signal, timeoutMs } = options;
  const { child } = launching;
  let isRestored: boolean | undefined;
  const vm = new Vm({
    id,
    launching,
    console: options.console
      ? { output: plan.slots.get('ourConsoleOut') as number, input: plan.slots.get('ourConsoleIn') as number }
      : undefined,
    startPaused: options.startPaused,
    agent: options.agent,
    devices: options.devices.map(({ option }) => option),
    vsock: hasVsock(options) ? { label: label?.context } : undefined,
    memoryMib: options.memoryMib,
    label,
    released: () => {
      isRestored = fileLabels?.restore();
    },
    ended: (exit) => channels.exit.publish({ id, vm, exit }),
    evidence: () => ({
      jail,
      rootless: caller().rootless,
      // What a rootless launcher calls 0, in a user namespace of its own, is the caller.
      userId: caller().rootless ? caller().uid : child.userId,
      limits: limits && { files: limits, read: (file) => child.cgroupFile(file) },
      selinux: begun.label,
      descriptors: bornWith(options, label),
      network: networkOf(options),
      resources,
    }),
  });
  if (label !== undefined) {
    watchLabelled(vm, label, jail.selinux.onModeChange, () => {
      // A pair that a file of the VM still has is not for another one. Nor is one that a permissive policy has let do what it
      // denies: the kernel remembers that for the label, and says nothing of it again.
      if (isRestored && vm.denials.every(({ enforced }) => enforced)) giveBack(label);
    });
  }
  const kill = () => vm.end({ reason: 'killed' });
  const unlisten = onAbort(signal, kill);
  // It may have been aborted where nobody listened, by a subscriber of ours.
  if (signal?.aborted) kill();
  const end = () => vm.end({ reason: 'timeout' });
  const met = deadline(options.startTimeoutMs, end);
  const outlived = timeoutMs === undefined ? undefined : deadline(timeoutMs - msSince(t0), end);
  vm.started.then(met);
  vm.exited.then(() => {
    outlived?.();
    unlisten();
  });
  return vm;
}

const msSince = (then: bigint): number => Number(process.hrtime.bigint() - then) / 1e6;

/** Why a VM ended before its guest rang. */
async function startError(vm: Vm, options: ParsedOptions): Promise<Error> {
  const exit = await vm.exited;
  if (options.signal?.aborted) return abortError(options.signal);
  const { failure, violation, launch, end } = vm.trouble;
  if (launch !== undefined && exit.reason === 'timeout') return monitorTimeout(launch);
  if (launch !== undefined) {
    return launch.stage === 'monitor' ? monitorError(options, launch, end) : launchError(launch);
  }
  if (failure !== undefined) return failureError(options, failure);
  if (violation !== undefined) {
    return new CasemateError('ERR_CASEMATE_PROTOCOL', `The monitor sent ${violation}; it was killed`, {
      step: 'control',
      remedy: 'Treat the guest as hostile: this is what a taken-over monitor does.',
    });
  }
  const sign = firstSign(options);
  if (exit.reason === 'timeout') {
    return new CasemateError('ERR_CASEMATE_TIMEOUT', `The guest made no ${sign} within its time; it was killed`, {
      step: 'guest',
      remedy: isLinux(options)
        ? 'Raise options.startTimeoutMs or options.timeoutMs: kernels are slow where KVM is emulated or paravirtual.'
        : 'Ring the doorbell early (docs/guest-abi.md), or raise options.startTimeoutMs or options.timeoutMs.',
    });
  }
  return earlyExit(options, exit);
}

/** @param exit - of a VM whose guest has not rung. */
function earlyExit(options: ParsedOptions, exit: VmExit): CasemateError {
  const sign = firstSign(options);
  return new CasemateError('ERR_CASEMATE_EARLY_EXIT', `Before its first ${sign} ${describeExit(exit)}`, {
    step: 'guest',
    remedy: earlyExitRemedy(options, exit),
    cause: exit,
  });
}

function earlyExitRemedy(options: ParsedOptions, exit: VmExit): string {
  if (exit.reason === 'out-of-memory') return 'Raise options.limits.memoryMib: it has to do for the monitor, too.';
  return isLinux(options)
    ? 'Is it a kernel for x86-64, and is there enough memory for it in options.memoryMib?'
    : 'Is the guest built for the ABI of docs/guest-abi.md, and for this CPL?';
}

/** How a guest first shows that it runs. */
const firstSign = (options: ParsedOptions): string => (isLinux(options) ? 'access to a device' : 'hypercall');

/** A monitor that gave up before it was released. */
function monitorError(options: ParsedOptions, outcome: LaunchOutcome, end: ChildEnd): CasemateError {
  if (killedForMemory(end.memoryEvents)) return earlyExit(options, { reason: 'out-of-memory' });
  const event = outcome.event && decodeEvent(outcome.event, outcome.event.length);
  if (event?.type === 'failed') return failureError(options, event);
  if (outcome.error?.code === 'ETIMEDOUT') return monitorTimeout(outcome);
  const how = end.signal === null ? `with code ${end.code}` : `by signal ${end.signal}`;
  return new CasemateError('ERR_CASEMATE_MONITOR', `The monitor ended ${how} before it was ready`, {
    step: event?.type === 'blocked' ? `system call ${syscallName(event.syscall)}` : 'monitor',
    remedy: 'Please report this, with the output of `casemate doctor`.',
    cause: outcome.error,
  });
}

function monitorTimeout(outcome: LaunchOutcome): CasemateError {
  return new CasemateError('ERR_CASEMATE_TIMEOUT', 'The monitor did not give up its rights in time; it was killed', {
    step: 'monitor',
    remedy: 'Is the machine overloaded, or the monitor stopped by a debugger?',
    cause: outcome.error,
  });
}

function failureError(options: ParsedOptions, event: Extract<MonitorEvent, { type: 'failed' }>): CasemateError {
  const { step, errno, call, image } = event;
  if (image !== undefined && isLinux(options)) {
    return new CasemateError('ERR_CASEMATE_GUEST_IMAGE', `The kernel cannot be loaded: ${image}`, {
      step: 'options.kernel',
      remedy: 'Pass the bzImage or the vmlinux of an x86-64 kernel, and memory for all of it in options.memoryMib.',
    });
  }
  if (image !== undefined) {
    return new CasemateError('ERR_CASEMATE_GUEST_IMAGE', `The guest image cannot be loaded: ${image}`, {
      step: 'options.guest',
      remedy: 'Build it with the linker script and the header of the package (docs/guest-abi.md).',
    });
  }
  if (options.hugePages !== undefined && step === 'memory' && call === 'mmap') {
    const folder = { '2M': 'hugepages-2048kB', '1G': 'hugepages-1048576kB' }[options.hugePages];
    const size = `${options.memoryMib} MiB of huge pages of ${options.hugePages}`;
    throw new CasemateError('ERR_CASEMATE_HUGE_PAGES', `The host has no ${size} to give`, {
      step: 'options.hugePages',
      remedy: `Have it set some apart, early after its start: /sys/kernel/mm/hugepages/${folder}/nr_hugepages.`,
      cause: native.systemError(errno, call),
    });
  }
  const code = kvmSteps.has(step) ? 'ERR_CASEMATE_KVM' : 'ERR_CASEMATE_MONITOR';
  const cause = errno === 0 ? undefined : native.systemError(errno, call);
  return new CasemateError(code, `The monitor failed at step ${step}: ${cause?.message ?? call}`, {
    step,
    remedy: monitorRemedies[step] ?? 'Run `casemate doctor` to see what this host lacks.',
    cause,
  });
}

const pageShifts = { any: 0, '2M': 21, '1G': 30 } as const;

const kvmSteps: ReadonlySet<string> = new Set(['createVm', 'memory', 'irqchip', 'vcpu']);

const monitorRemedies: Readonly<Record<string, string>> = {
  descriptors: 'A descriptor did not arrive as what it was: does the SELinux policy let the monitor use it?',
  memory: 'Is there enough memory for options.memoryMib?',
};

/** The kernel's, asked once. */
let landlockAbi: number | undefined;

/** What is asked for and known to be missing is refused before anything is created. */
function checkLayers(jail: Jail): void {
  landlockAbi ??= native.landlockAbi();
  if (jail.layers.landlock === 'required' && landlockAbi === 0) {
    throw new CasemateError('ERR_CASEMATE_LAYER_UNAVAILABLE', 'This kernel has no Landlock, or has it switched off', {
      step: 'landlock',
      remedy:
        "Add landlock to the kernel's lsm= parameter (Linux 5.13 or newer), or use profile 'custom' with " +
        "layers: { landlock: 'off' }.",
    });
  }
}

function configurationFlags({ console, jail }: ParsedOptions, label: VmLabel | undefined): number {
  const { flags } = wire;
  const on = (layer: 'landlock' | 'seccomp' | 'noNewPrivs') => jail.layers[layer] === 'required';
  const ownUserId = jail.layers.userNamespace === 'required' && !caller().rootless;
  return (
    flags.parentDeath |
    (console ? flags.console : 0) |
    (ownUserId ? flags.lease : 0) |
    (label?.lease === undefined ? 0 : flags.categories) |
    (on('landlock') ? flags.landlock : 0) |
    (on('seccomp') ? flags.seccomp : 0) |
    (on('noNewPrivs') ? flags.noNewPrivs : 0)
  );
}

/** The network device, which has the first descriptor of all devices. */
function networkOf({ devices }: ParsedOptions): EvidenceRequest['network'] {
  const device = devices.find(({ type }) => type === 'net');
  return device && { descriptor: wire.descriptors.devices, tap: device.tap };
}

/** The numbers of the descriptors that a monitor is born with. */
function bornWith(options: ParsedOptions, label: VmLabel | undefined): number[] {
  const { console, jail, devices } = options;
  const { control, kvm, guest, lease, categories } = wire.descriptors;
  const ownUserId = jail.layers.userNamespace === 'required' && !caller().rootless;
  return [
    0,
    1,
    2,
    control,
    kvm,
    guest,
    ...(console ? [wire.descriptors.consoleOut, wire.descriptors.consoleIn] : []),
    ...wire.descriptors.inputs.slice(0, inputCount(options)),
    ...(ownUserId ? [lease] : []),
    ...(label?.lease === undefined ? [] : [categories]),
    ...descriptorsOf(devices).map((_, index) => wire.descriptors.devices + index),
  ];
}

const resourcesOf = (options: ParsedOptions, fileSize: number): MonitorLimits => ({
  fileSize,
  streams: hasVsock(options) ? wire.maxStreams : 0,
});

/** A plan, and what else its launches have in common. */
interface VmPlan extends LaunchPlan {
  /** Of the configuration; all but whether the guest is to be paused. */
  readonly flags: number;
}

const plans = new Map<string, VmPlan>();
const maxPlans = 64;

const tapOf = ({ devices }: ParsedOptions) => devices.find((device) => device.tap !== undefined)?.tap;

const hasOwnKvm = ({ kvmFd }: ParsedOptions): boolean => kvmFd === undefined;
const hasBuiltInGuest = ({ guest }: ParsedOptions): boolean => guest === undefined;

/** Of what makes another plan. */
function planKey(options: ParsedOptions, { fileSize, streams }: MonitorLimits, label: VmLabel | undefined): string {
  const { jail, console, devices } = options;
  const labelled = label === undefined ? '' : label.lease === undefined ? 'labelled ' : 'leased ';
  const yesNo =
    (console ? 1 : 0) |
    (isLinux(options) ? 2 : 0) |
    (bornInCgroup(options) ? 4 : 0) |
    (hasOwnKvm(options) ? 8 : 0) |
    (hasBuiltInGuest(options) ? 16 : 0);
  const key = `${labelled}${jail.key} ${yesNo} ${inputCount(options)} ${fileSize} ${streams}`;
  if (devices.length === 0) return key; // as of every bare-metal guest: this is on its way
  return `${key} ${descriptorsOf(devices).map(({ name }) => name)} ${JSON.stringify(tapOf(options))}`;
}

/** The plan of a launch: the same for all launches that ask for the same jail. */
function planFor(options: ParsedOptions, resources: MonitorLimits, label: VmLabel | undefined): VmPlan {
  const key = planKey(options, resources, label);
  let plan = plans.get(key);
  if (plan === undefined) {
    const { jail, console } = options;
    const monitor = {
      console,
      inputs: inputCount(options),
      cgroup: bornInCgroup(options),
      isLabelled: label !== undefined,
      isLeased: label?.lease !== undefined,
      devices: descriptorsOf(options.devices).map(({ name, source }) => ({
        name,
        isGiven: typeof source !== 'string',
      })),
      tap: tapOf(options),
      resources,
      numbers: wire.descriptors,
    };
    const encoded = encodePlan(monitorPlan(jail, caller(), monitor));
    const common = launchPlan(encoded, {
      control: { ours: 'ourControl', announcement: bare(wire.events.jailed), release: bare(wire.commands.run) },
      lean: !isLinux(options),
      lasting: {
        null: devNull(),
        kvm: hasOwnKvm(options) ? kvmDevice(undefined) : undefined,
        guest: hasBuiltInGuest(options) ? builtInGuest() : undefined,
      },
    });
    plan = { ...common, flags: configurationFlags(options, label) };
    // Names and addresses may be new with every launch.
    if (plans.size === maxPlans) plans.clear();
    plans.set(key, plan);
  }
  return plan;
}

/**
 * Does ahead of time what the first launch of a process or worker would wait for: loads the addon, asks KVM for its
 * CPUID, starts the launcher, fills its pools of namespaces.
 *
 * @param options - as the launches to come will have them.
 * @throws CasemateError as {@link launch} would.
 */
export async function warmUp(options: LaunchOptions = {}): Promise<void> {
  const parsed = parseOptions(options);
  checkLayers(parsed.jail);
  vcpuFacts(kvmDevice(parsed.kvmFd), parsed);
  if (parsed.limits !== undefined) checkLimits(parsed.limits);
  const label = labelOf(labelFor(parsed.jail.selinux));
  if (descriptorsOf(parsed.devices).length === 0) planFor(parsed, resourcesOf(parsed, 0), label);
  if (label !== undefined) giveBack(label);
  devNull();
  if (isLinux(parsed)) await kernelOf(parsed);
  if (parsed.guest === undefined) builtInGuest();
  if (parsed.agent !== undefined) agentInitrd(parsed.agent.modules, parsed.devices.flatMap(driversOf));
  await poolsFilled();
}
