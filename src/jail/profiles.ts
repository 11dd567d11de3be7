import { CasemateError } from '../errors.js';
import type { IdRange } from '../host.js';
import { descriptor, invalid, object, oneOf, string } from '../is.js';
import { parseSelinux, type SelinuxOptions, type SelinuxRequest, type SelinuxRequirement } from '../selinux/request.js';
import type { Check, NamespaceKind, Plan, RlimitResource, Step, TapStep } from './steps.js';
import * as steps from './steps.js';

/**
 * The layers of a jail. Each is `'required'`, or explicitly `'off'`; a required one that cannot be had is an error
 * before any guest code runs.
 */
export const layerNames = [
  'pidNamespace',
  'mountNamespace',
  'ipcNamespace',
  'utsNamespace',
  'cgroupNamespace',
  'networkNamespace',
  'userNamespace',
  'timeNamespace',
  'capabilities',
  'noNewPrivs',
  'landlock',
  'seccomp',
  'rlimits',
  'keyring',
  'coreScheduling',
] as const;

/** The name of a layer of the jail. */
export type LayerName = (typeof layerNames)[number];

/** Whether a layer must be there. */
export type LayerState = 'required' | 'off';

/** What `launch({ jail })` takes. */
export interface JailOptions {
  /**
   * `'strict'`, the default: every layer but {@link JailOptions.layers | the two named there} is required and none
   * can be switched off. `'custom'`: the same, and {@link JailOptions.layers} may switch layers off.
   */
  profile?: 'strict' | 'custom';
  /**
   * Layers that differ from the profile. With `'strict'` only layers that are off by default can be required:
   * `timeNamespace` (the monitor's own clock offsets; its timeline then no longer compares with Node's) and
   * `coreScheduling` (no other VM runs on a sibling hyperthread; needed only where SMT is on, and only some
   * kernels have it).
   */
  layers?: Partial<Record<LayerName, LayerState>>;
  /** Host name in the UTS namespace. Default `'casemate'`. */
  hostname?: string;
  /** Descriptor of a network namespace to use instead of an empty one from the pool. */
  networkNamespace?: { fd: number };
  /** Descriptor of a cgroup v2 directory that the monitor is born in (CLONE_INTO_CGROUP). */
  cgroup?: { fd: number };
  /**
   * The SELinux context of the monitor: applied at `execve`, to its sockets and files too, and read back. Default
   * `'auto'`: with categories of its own where the host has casemate's policy, and else that of Node.
   */
  selinux?: SelinuxRequirement | SelinuxOptions;
}

/** A checked, complete description of a jail. */
export interface Jail {
  readonly profile: 'strict' | 'custom';
  readonly layers: Readonly<Record<LayerName, LayerState>>;
  readonly hostname: string;
  readonly networkNamespaceFd: number | undefined;
  readonly cgroupFd: number | undefined;
  readonly selinux: SelinuxRequest;
  /** Of what makes another plan: descriptors are in a plan by name, so only whether they are there. */
  readonly key: string;
}

const offByDefault: ReadonlySet<LayerName> = new Set(['timeNamespace', 'coreScheduling']);

let strict: Jail | undefined;

/** The jail that these options ask for. */
export function parseJail(options: unknown): Jail {
  if (options !== undefined) return parseGiven(options);
  strict ??= parseGiven({});
  return strict;
}

function parseGiven(options: unknown): Jail {
  const known = ['profile', 'layers', 'hostname', 'networkNamespace', 'cgroup', 'selinux'] as const;
  // Only what is undefined has a default: null is as wrong as any other value, and does not switch SELinux off.
  const {
    profile: kind = 'strict',
    layers: changed = {},
    hostname: host = 'casemate',
    networkNamespace,
    cgroup,
    selinux = 'auto',
  } = object('options.jail', options, known);
  const profile = oneOf('options.jail.profile', kind, ['strict', 'custom']);
  const changes = object('options.jail.layers', changed, layerNames);
  const layers = Object.fromEntries(
    layerNames.map((name) => {
      const normal = offByDefault.has(name) ? 'off' : 'required';
      const { [name]: wanted = normal } = changes;
      const state = oneOf(`options.jail.layers.${name}`, wanted, ['required', 'off']);
      if (profile === 'strict' && state === 'off' && normal === 'required') {
        throw new CasemateError('ERR_CASEMATE_INVALID_OPTION', `The strict profile requires the layer ${name}`, {
          step: `options.jail.layers.${name}`,
          remedy: "Use profile: 'custom' to switch layers off.",
        });
      }
      return [name, state];
    }),
  ) as Record<LayerName, LayerState>;
  for (const name of ['landlock', 'seccomp'] as const) {
    if (layers[name] === 'off' || layers.noNewPrivs === 'required') continue;
    throw new CasemateError('ERR_CASEMATE_INVALID_OPTION', `The layer ${name} needs noNewPrivs`, {
      step: `options.jail.layers.${name}`,
      remedy: `Require noNewPrivs, or switch ${name} off as well.`,
    });
  }
  const hostname = string('options.jail.hostname', host);
  if (hostname.length === 0 || Buffer.byteLength(hostname) > 64) {
    throw invalid('options.jail.hostname', 'a host name of 1 to 64 bytes', hostname);
  }
  if (networkNamespace !== undefined && layers.networkNamespace === 'off') {
    throw invalid('options.jail.networkNamespace', "no namespace, as the layer is 'off'", networkNamespace);
  }
  const networkNamespaceFd = parseFd('options.jail.networkNamespace', networkNamespace);
  const cgroupFd = parseFd('options.jail.cgroup', cgroup);
  const key = JSON.stringify([layers, hostname, networkNamespaceFd !== undefined, cgroupFd !== undefined]);
  return { profile, layers, hostname, networkNamespaceFd, cgroupFd, selinux: parseSelinux(selinux), key };
}

function parseFd(name: string, value: unknown): number | undefined {
  return value === undefined ? undefined : descriptor(`${name}.fd`, object(name, value, ['fd']).fd);
}

/** Who launches, as far as the jail depends on it. */
export interface Caller {
  /** Whether namespaces can be had only inside a user namespace of the caller's own. */
  readonly rootless: boolean;
  readonly uid: number;
  readonly gid: number;
  /** The range that monitors' own user ids come from; empty for rootless callers. */
  readonly userIds: { readonly first: number; readonly count: number };
}

/**
 * The range that monitors' user ids come from.
 *
 * In the initial user namespace: from 0x70000000, which no distribution and no systemd hands out
 * (https://systemd.io/UIDS-GIDS). In a smaller one: the upper half of its largest range, far from real accounts.
 */
export function userIdRange(map: readonly IdRange[]): { first: number; count: number } {
  const preferred = { first: 0x7000_0000, count: 1 << 20 };
  const last = preferred.first + preferred.count;
  if (map.some((range) => range.inside <= preferred.first && last <= range.inside + range.count)) return preferred;
  const largest = [...map].sort((left, right) => right.count - left.count)[0];
  const count = Math.min(1 << 20, Math.floor((largest?.count ?? 0) / 2));
  return { first: (largest?.inside ?? 0) + (largest?.count ?? 0) - count, count };
}

/** Inside a pooled user namespace the one user and the one group that exist; inside_id of native/jail/namespaces.hpp. */
const insideId = 1000;

/** Where the monitor lies in the prepared mount namespace; monitor_path of native/jail/namespaces.hpp. */
const monitorPath = '/casemate-vmm';

/** Every bit but KEEP_CAPS, each locked: uid 0 is nothing special, and nothing brings capabilities back. */
const lockedSecurebits = 0b1110_1111;

/** A tap in the monitor's network namespace, or in Node's. */
export type PlannedTap = Omit<TapStep, 'as' | 'namespace'> & { readonly inHost: boolean };

/** What a monitor finds when it is born, besides its jail. */
export interface MonitorDescriptors {
  readonly console: boolean;
  /** How many files it gets as input, or as initrds. */
  readonly inputs: number;
  /** It is born in a cgroup: the jail's, or one that was made for it. */
  readonly cgroup: boolean;
  /** Its launches come with an SELinux label; and with the lease of its categories. */
  readonly isLabelled: boolean;
  readonly isLeased: boolean;
  /** Of its devices, in their order: names of descriptors that are given, and of what the plan makes for them. */
  readonly devices: readonly { readonly name: string; readonly isGiven: boolean }[];
  /** What is made for the one of them that is named `tap`. */
  readonly tap: PlannedTap | undefined;
  readonly resources: MonitorLimits;
  /** Numbers by name; enum casemate_fd of native/vmm/wire.h. */
  readonly numbers: Readonly<
    Record<'control' | 'kvm' | 'guest' | 'consoleOut' | 'consoleIn' | 'lease' | 'categories' | 'devices', number> &
      Record<'inputs', readonly number[]>
  >;
}

/** What an input is called in the plan. */
export const inputName = (i: number): string => `input${i}`;

/**
 * The plan that launches a monitor into a jail, in the order that ../ARCHITECTURE.md gives reasons for.
 *
 * no_new_privs, Landlock and seccomp are not here: the monitor sees to them itself, after `execve`, for an SELinux
 * transition under no_new_privs needs a rule of its own and the filter would have to allow `execve`.
 */
export function monitorPlan(jail: Jail, caller: Caller, monitor: MonitorDescriptors): Plan {
  const { console, cgroup, devices, numbers } = monitor;
  const inputs = numbers.inputs.slice(0, monitor.inputs).map((number, i) => [inputName(i), number] as const);
  return jailedPlan(jail, caller, {
    given: [
      'kvm',
      'guest',
      ...inputs.map(([name]) => name),
      ...(monitor.isLeased ? ['categories'] : []),
      ...devices.filter(({ isGiven }) => isGiven).map(({ name }) => name),
    ],
    cgroup,
    isLabelled: monitor.isLabelled,
    sockets: console
      ? [
          steps.socketPair('stream', 'consoleOut', 'ourConsoleOut'),
          steps.socketPair('stream', 'consoleIn', 'ourConsoleIn'),
        ]
      : [],
    tap: monitor.tap,
    root: [],
    limits: monitorLimits(monitor.resources),
    numbers: {
      control: numbers.control,
      kvm: numbers.kvm,
      guest: numbers.guest,
      ...(console && { consoleOut: numbers.consoleOut, consoleIn: numbers.consoleIn }),
      ...Object.fromEntries(inputs),
      ...(monitor.isLeased && { categories: numbers.categories }),
      ...Object.fromEntries(devices.map(({ name }, index) => [name, numbers.devices + index])),
    },
    lease: numbers.lease,
    exec: steps.exec(monitorPath, ['casemate-vmm']),
  });
}

/** The layers that a jailed program of ours puts on itself once it runs. */
export const ownLayers = ['noNewPrivs', 'landlock', 'seccomp'] as const satisfies readonly LayerName[];

/**
 * The plan that launches a small static program into the same jail, but for its root, which is the folder that it lies
 * in: alone in there, and read-only. A launch of it starts from the host's mounts, and makes what a monitor finds
 * prepared: programs that run once need no namespace that waits for them.
 */
export function programPlan(jail: Jail, caller: Caller, program: JailedProgram): Plan {
  const { folder, name, given, numbers, lease, limits, isLabelled } = program;
  const isInside = jail.layers.mountNamespace === 'required';
  const layers = ownLayers.filter((layer) => jail.layers[layer] === 'required');
  return jailedPlan({ ...jail, networkNamespaceFd: undefined }, caller, {
    given,
    // What it makes outlives it, and may be shared: it counts as Node's.
    cgroup: false,
    isLabelled,
    sockets: [],
    root: isInside
      ? [
          // Before anything is mounted: as a copy of the host's mounts they may share what happens to them.
          steps.mount({ target: '/', flags: mountFlags.private | mountFlags.recursive }),
          steps.mount({ source: folder, target: folder, flags: mountFlags.bind }),
          // Not nosuid: that would forbid the SELinux transition at execve.
          steps.mountSetattr({ target: folder, set: mountAttributes.readOnly | mountAttributes.noDevices }),
          steps.pivotRoot(folder),
        ]
      : [],
    limits,
    numbers,
    lease,
    exec: steps.exec(isInside ? `/${name}` : `${folder}/${name}`, [name, ...layers]),
  });
}

/** MS_* of mount(2) and MOUNT_ATTR_* of mount_setattr(2). */
const mountFlags = { bind: 0x1000, recursive: 0x4000, private: 0x4_0000 } as const;
const mountAttributes = { readOnly: 0x1, noDevices: 0x4 } as const;

/** A program of {@link programPlan}. It finds a control socket, and speaks as a monitor does until it is let run. */
export interface JailedProgram {
  /** It lies there by itself. */
  readonly folder: string;
  readonly name: string;
  /** Descriptors that come with a launch, besides `'null'`. */
  readonly given: readonly string[];
  /** What they become, and the `control` socket. */
  readonly numbers: Readonly<Record<string, number>>;
  /** The number of the lease of its user id, which lasts as long as it. */
  readonly lease: number;
  readonly limits: Limits;
  /** Its launches come with an SELinux label. */
  readonly isLabelled: boolean;
}

type Limits = readonly (readonly [RlimitResource, number])[];

interface Program extends Pick<JailedProgram, 'given' | 'numbers' | 'lease' | 'limits' | 'isLabelled'> {
  /** Sockets besides the control socket. */
  readonly sockets: readonly Step[];
  /** In the network namespace, for the descriptor of that name. */
  readonly tap?: PlannedTap | undefined;
  readonly cgroup: boolean;
  /** What makes its root, while there are rights for that. */
  readonly root: readonly Step[];
  readonly exec: Step;
}

/**
 * What launches any program of ours: what needs rights first, the user namespace after everything that it must not own,
 * capabilities last.
 */
function jailedPlan(jail: Jail, caller: Caller, program: Program): Plan {
  const on = (layer: LayerName) => jail.layers[layer] === 'required';
  const ownUserId = on('userNamespace') && !caller.rootless;
  const given = ['null', ...program.given];
  if (jail.networkNamespaceFd !== undefined) given.push('networkNamespace');
  if (program.cgroup) given.push('cgroup');

  const list: Step[] = [];
  if (program.isLabelled) {
    // That of the launch, so that all VMs share a plan.
    list.push(steps.execLabel());
    // Else the monitor could not use sockets that Node made: its categories are its own.
    list.push(steps.socketLabel());
  }
  list.push(steps.socketPair('seqpacket', 'control', 'ourControl'), ...program.sockets);
  if (on('userNamespace')) list.push(steps.pooled('user', 'user', ownUserId ? 'lease' : undefined));
  if (on('networkNamespace') && jail.networkNamespaceFd === undefined) {
    list.push(steps.pooled('net', 'networkNamespace'));
  }

  if (program.tap !== undefined) list.push(tapStep(jail, program.tap));

  if (on('networkNamespace')) list.push(steps.setns('networkNamespace', 'net'));
  list.push(...program.root);
  if (on('utsNamespace')) list.push(steps.hostname(jail.hostname), steps.domainname(''));
  if (on('rlimits')) list.push(...program.limits.map(([resource, limit]) => steps.rlimit(resource, limit)));
  list.push(steps.session());
  if (on('keyring')) list.push(steps.keyring());
  if (on('coreScheduling')) list.push(steps.coreScheduling());
  list.push(
    steps.descriptors({
      null: [0, 1, 2],
      ...program.numbers,
      ...(ownUserId && { lease: program.lease }),
    }),
    steps.chdir('/'),
    steps.checkCwd(),
  );
  if (on('userNamespace')) {
    list.push(steps.setns('user', 'user'), steps.ids(insideId, insideId, !caller.rootless));
  }
  if (on('capabilities')) {
    list.push(steps.securebits(lockedSecurebits), steps.dropBounding(), steps.capabilities());
  }
  list.push(program.exec);

  const check: Check[] = [];
  if (on('userNamespace')) check.push('ids');
  if (on('capabilities')) check.push('capabilities');
  if (on('noNewPrivs')) check.push('noNewPrivs');
  if (on('seccomp')) check.push('seccomp');
  if (program.isLabelled) check.push('label');
  return {
    clone: cloneLayers.filter(([layer]) => on(layer)).map(([, kind]) => kind),
    descriptors: given,
    cgroup: program.cgroup ? 'cgroup' : undefined,
    steps: list,
    check,
  };
}

/**
 * A tap in a namespace of the VM's own goes with that: one that is not persistent would be taken down, for 13 ms and more,
 * while the monitor ends.
 */
function tapStep(jail: Jail, { inHost, ...tap }: PlannedTap): Step {
  const isJoined = jail.layers.networkNamespace === 'required' && !inHost;
  return steps.tap({
    ...tap,
    as: 'tap',
    persistent: isJoined && jail.networkNamespaceFd === undefined && !tap.existing,
    ...(isJoined && { namespace: 'networkNamespace' }),
  });
}

/** The namespaces that a monitor is born into; the others it joins. */
const cloneLayers: readonly (readonly [LayerName, NamespaceKind])[] = [
  ['pidNamespace', 'pid'],
  ['mountNamespace', 'mnt'],
  ['ipcNamespace', 'ipc'],
  ['utsNamespace', 'uts'],
  ['cgroupNamespace', 'cgroup'],
  ['timeNamespace', 'time'],
];

/** Limits of a monitor that depend on its devices. */
export interface MonitorLimits {
  /** The largest file that it may write to, in bytes. */
  readonly fileSize: number;
  /** How many sockets Node may hand it while its guest runs. */
  readonly streams: number;
}

/** Limits of a monitor: enough for 32 vCPUs and their devices, and nothing that it does not need. */
export const monitorLimits = ({ fileSize, streams }: MonitorLimits) =>
  [
    ['nofile', 256 + streams],
    ['nproc', 64],
    ['fsize', fileSize],
    ['core', 0],
    ['memlock', 0],
    ['msgqueue', 0],
  ] as const;
