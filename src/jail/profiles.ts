import { CasemateError } from '../errors.js';
import type { IdRange } from '../host.js';
import { descriptor, invalid, object, oneOf, string } from '../is.js';
import type { Check, NamespaceKind, Plan, Step } from './steps.js';
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
   * The SELinux context of the monitor, `'system_u:system_r:casemate_vmm_t:s0:c1,c2'`: applied at `execve`, to its
   * sockets too, and read back. `'off'`, the default, leaves the monitor in Node's context.
   */
  selinux?: 'off' | { context: string };
}

/** A checked, complete description of a jail. */
export interface Jail {
  readonly profile: 'strict' | 'custom';
  readonly layers: Readonly<Record<LayerName, LayerState>>;
  readonly hostname: string;
  readonly networkNamespaceFd: number | undefined;
  readonly cgroupFd: number | undefined;
  readonly selinuxContext: string | undefined;
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
    selinux = 'off',
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
  const selinuxContext = parseSelinux(selinux);
  const key = JSON.stringify([
    layers,
    hostname,
    selinuxContext ?? null,
    networkNamespaceFd !== undefined,
    cgroupFd !== undefined,
  ]);
  return { profile, layers, hostname, networkNamespaceFd, cgroupFd, selinuxContext, key };
}

function parseFd(name: string, value: unknown): number | undefined {
  return value === undefined ? undefined : descriptor(`${name}.fd`, object(name, value, ['fd']).fd);
}

function parseSelinux(value: unknown): string | undefined {
  if (value === 'off') return undefined;
  const { context } = object('options.jail.selinux', value, ['context']);
  return string('options.jail.selinux.context', context);
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

/** What a monitor finds when it is born, besides its jail. */
export interface MonitorDescriptors {
  readonly console: boolean;
  /** How many files it gets as input, or as initrds. */
  readonly inputs: number;
  /** It is born in a cgroup: the jail's, or one that was made for it. */
  readonly cgroup: boolean;
  /** Of its devices, in their order: names of descriptors that are given, and of what the plan makes for them. */
  readonly devices: readonly { readonly name: string; readonly isGiven: boolean }[];
  /** The largest file that it may write to, in bytes. */
  readonly fileSize: number;
  /** Numbers by name; enum casemate_fd of native/vmm/wire.h. */
  readonly numbers: Readonly<
    Record<'control' | 'kvm' | 'guest' | 'consoleOut' | 'consoleIn' | 'lease' | 'devices', number> &
      Record<'inputs', readonly number[]>
  >;
}

/** What an input is called in the plan. */
export const inputName = (i: number): string => `input${i}`;

/**
 * The plan that launches a monitor into a jail, in the order that ../ARCHITECTURE.md gives reasons for: what needs
 * rights first, the user namespace after everything that it must not own, capabilities last.
 *
 * no_new_privs, Landlock and seccomp are not here: the monitor sees to them itself, after `execve`, for an SELinux
 * transition under no_new_privs needs a rule of its own and the filter would have to allow `execve`.
 */
export function monitorPlan(jail: Jail, caller: Caller, monitor: MonitorDescriptors): Plan {
  const on = (layer: LayerName) => jail.layers[layer] === 'required';
  const ownUserId = on('userNamespace') && !caller.rootless;
  const inputs = monitor.numbers.inputs.slice(0, monitor.inputs).map((number, i) => [inputName(i), number] as const);
  const given = ['null', 'kvm', 'guest', ...inputs.map(([name]) => name)];
  for (const { name, isGiven } of monitor.devices) if (isGiven) given.push(name);
  if (jail.networkNamespaceFd !== undefined) given.push('networkNamespace');
  if (monitor.cgroup) given.push('cgroup');

  const list: Step[] = [];
  if (jail.selinuxContext !== undefined) {
    list.push(steps.execLabel(jail.selinuxContext));
    // Else the monitor could not use sockets that Node made: its categories are its own.
    list.push(steps.socketLabel(jail.selinuxContext));
  }
  list.push(steps.socketPair('seqpacket', 'control', 'ourControl'));
  if (monitor.console) {
    list.push(steps.socketPair('stream', 'consoleOut', 'ourConsoleOut'));
    list.push(steps.socketPair('stream', 'consoleIn', 'ourConsoleIn'));
  }
  if (on('userNamespace')) list.push(steps.pooled('user', 'user', ownUserId ? 'lease' : undefined));
  if (on('networkNamespace') && jail.networkNamespaceFd === undefined) {
    list.push(steps.pooled('net', 'networkNamespace'));
  }

  if (on('networkNamespace')) list.push(steps.setns('networkNamespace', 'net'));
  if (on('utsNamespace')) list.push(steps.hostname(jail.hostname), steps.domainname(''));
  if (on('rlimits'))
    list.push(...monitorLimits(monitor.fileSize).map(([resource, limit]) => steps.rlimit(resource, limit)));
  list.push(steps.session());
  if (on('keyring')) list.push(steps.keyring());
  if (on('coreScheduling')) list.push(steps.coreScheduling());
  const { numbers } = monitor;
  list.push(
    steps.descriptors({
      null: [0, 1, 2],
      control: numbers.control,
      kvm: numbers.kvm,
      guest: numbers.guest,
      ...(monitor.console && { consoleOut: numbers.consoleOut, consoleIn: numbers.consoleIn }),
      ...Object.fromEntries(inputs),
      ...(ownUserId && { lease: numbers.lease }),
      ...Object.fromEntries(monitor.devices.map(({ name }, index) => [name, numbers.devices + index])),
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
  list.push(steps.exec(monitorPath, ['casemate-vmm']));

  const check: Check[] = [];
  if (on('userNamespace')) check.push('ids');
  if (on('capabilities')) check.push('capabilities');
  if (on('noNewPrivs')) check.push('noNewPrivs');
  if (on('seccomp')) check.push('seccomp');
  if (jail.selinuxContext !== undefined) check.push('label');
  return {
    clone: cloneLayers.filter(([layer]) => on(layer)).map(([, kind]) => kind),
    descriptors: given,
    cgroup: monitor.cgroup ? 'cgroup' : undefined,
    steps: list,
    check,
  };
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

/** Limits of a monitor: enough for 32 vCPUs and their devices, and nothing that it does not need. */
export const monitorLimits = (fileSize: number) =>
  [
    ['nofile', 256],
    ['nproc', 64],
    ['fsize', fileSize],
    ['core', 0],
    ['memlock', 0],
    ['msgqueue', 0],
  ] as const;
