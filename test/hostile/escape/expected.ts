/** What stops each try, layer by layer, and what is wrong where something else came of it. */
import type { LayerName } from 'casemate/jail';
import { landlockAbi } from 'casemate/system';
import { type Layer, type Setting, settingName, type Tried } from './escape.js';

/**
 * Tries by the layers each of which stops them alone, besides the filter of system calls, which stops them all. What is
 * not here is stopped by what a launch always does, whatever its layers: a root with nothing in it, no descriptor but
 * those that are given, an empty environment; or by the filter alone.
 */
const stoppedBy: readonly (readonly [layers: readonly LayerName[], tries: readonly string[]])[] = [
  [['landlock'], ['open the root', 'read the names in the root', 'open its own binary', 'execute itself']],
  [
    ['userNamespace'],
    [
      'write to its own binary',
      'unshare users',
      'clone into new users',
      'become root',
      "become root's group",
      "change the mode of its guest's file",
      "own its guest's file",
      'be root',
    ],
  ],
  [
    ['userNamespace', 'capabilities'],
    [
      'open by a file handle',
      'watch all files',
      'mount /proc',
      'make a file system of its own',
      'clone the mounts',
      'change a mount',
      'change its root',
      'unshare mounts',
      'unshare pids',
      'unshare the network',
      'unshare ipc',
      'unshare uts',
      'unshare cgroups',
      'unshare time',
      'clone into new mounts',
      'clone into new pids',
      'clone into a new network',
      'clone into new ipc',
      'clone into new uts',
      'clone into new cgroups',
      'clone into new time',
      "set the host's name",
      'a packet socket',
      'a raw socket',
      'make a BPF map',
      "read the kernel's log",
      'load another kernel',
      'load a module',
      'load a module from a file',
      'unload a module',
      'get all ports',
      'get a port',
      'swap on',
      'swap off',
      'restart the machine',
      'set the time',
      'set its groups',
      'raise its capabilities',
      'run before all others',
      "label its guest's file",
    ],
  ],
  [
    ['userNamespace', 'capabilities', 'landlock'],
    ['mount', 'unmount', 'move a mount', 'pivot its root'],
  ],
  [
    ['pidNamespace', 'userNamespace', 'capabilities', 'landlock'],
    [
      "read memory of the host's process",
      "write memory of the host's process",
      "trace the host's process",
      "take a descriptor of the host's process",
      "compare with the host's process",
      "find the locks of the host's process",
      "find the pages of the host's process",
      "join those of the host's process",
    ],
  ],
  [
    ['pidNamespace', 'userNamespace', 'landlock'],
    [
      'read memory of a neighbour',
      'trace a neighbour',
      "signal the host's process",
      "signal a thread of the host's process",
      'signal a neighbour',
    ],
  ],
  [['pidNamespace', 'userNamespace'], ["read the limits of the host's process"]],
  [
    ['pidNamespace'],
    [
      "open the host's process",
      'signal all',
      "have a socket signal the host's process",
      "read the priority of the host's process",
      "read the processors of the host's process",
    ],
  ],
  [['utsNamespace'], ["learn the host's name"]],
  [['networkNamespace'], ["reach a cloud's metadata"]],
  [
    ['networkNamespace', 'landlock'],
    ['connect to a port of the host', 'connect to an abstract socket of the host'],
  ],
  [['ipcNamespace'], ['attach shared memory of the host', 'ask for a message queue of the host']],
  [['ipcNamespace', 'landlock'], ['open a POSIX message queue of the host']],
  [['keyring'], ['find a key of the host']],
  // Whoever has the capability raises any limit again: that is up to two layers together.
  [['rlimits'], ['take 300 descriptors', 'write a file in memory']],
  [['capabilities'], ['keep capabilities', 'have a capability in any set']],
];

/** The Landlock ABI that the layer takes for a try: TCP since 4, signals and abstract sockets since 6. */
const landlockNeeds = (name: string): number =>
  name === 'connect to a port of the host' ? 4 : /signal|abstract/.test(name) ? 6 : 1;

/** The layers that stop a try alone, on this kernel. */
export const layersThatStop = (name: string): readonly Layer[] =>
  stoppedBy
    .filter(([, tries]) => tries.includes(name))
    .flatMap(([layers]) => layers)
    .filter((layer) => layer !== 'landlock' || landlockAbi() >= landlockNeeds(name));

/**
 * What nothing but the filter stops: it reaches nobody else. The namespace has no network behind a socket, what locks
 * and flags are of is the VM's own or stops at what others then may not do, and the rest is its own process. But it is
 * more of the kernel than a monitor has to touch.
 */
const stoppedByFilter: readonly string[] = [
  'list the mounts',
  'be traced',
  'fork',
  'a netlink socket',
  'an internet socket',
  'a unix socket',
  "a socket of the kernel's crypto",
  'a vsock socket',
  'add a key',
  'change its personality',
  'change its segments',
  'hide memory',
  'set its label',
  'map memory',
  'map memory for code',
  'make an io_uring',
  "change the flags of its guest's file",
  "lock its guest's file",
  'change the flags of /dev/null',
  'lock the user ids of others',
  'create another VM',
  'send a descriptor away',
  'be without a filter',
];

/** Of a rootless caller's monitor besides: it is the same user, and owns what he owns. */
const stoppedByFilterRootless = ["change the mode of its guest's file"];

/** Landlock and the filter both need no_new_privs, and are off without it. */
const stoppedByLandlockToo = layersOnly('landlock');

function layersOnly(layer: LayerName): readonly string[] {
  return stoppedBy.filter(([layers]) => layers.length === 1 && layers[0] === layer).flatMap(([, tries]) => tries);
}

/** What not every kernel and host has, so that no jail is needed to stop it. */
const mayBeAbsent: readonly RegExp[] = [
  /^load |^unload |^get (all|a) ports?$|crypto|vsock|list the mounts|hide memory|set its label|quota/,
  /^raise its limit of|terminal$|^reach a cloud's metadata$/,
  /^\/|service account/,
];

/** What the policy leaves to the other layers: it reaches nobody else's process, file, socket or memory. */
const leftBySelinux: readonly string[] = [
  // A number that stands for a process, and what is asked of a scheduler. What is sent by it is denied.
  "open the host's process",
  "have a socket signal the host's process",
  "read the priority of the host's process",
  "learn the host's name",
  'fork',
  'a unix socket',
  'make an io_uring',
  'change its personality',
  'change its segments',
  'hide memory',
  'set its label',
  'become root',
  "become root's group",
  'keep capabilities',
  'be root',
  'be without a filter',
  'raise its limit of file sizes',
  'take 300 descriptors',
  'map memory',
  'lock memory',
  "change the flags of its guest's file",
  "lock its guest's file",
  'change the flags of /dev/null',
  'create another VM',
  'send a descriptor away',
];

function mayPass(setting: Setting, name: string, isRootless: boolean): boolean {
  if (setting === 'none') return true;
  if (setting === 'host') return true;
  if (setting === 'strict') return false;
  if ('only' in setting && setting.only === 'selinux') return leftBySelinux.includes(name);
  if ('only' in setting) return !layersThatStop(name).includes(setting.only) && setting.only !== 'seccomp';
  if (setting.without !== 'seccomp' && setting.without !== 'noNewPrivs') return false;
  return (
    stoppedByFilter.includes(name) ||
    (isRootless && stoppedByFilterRootless.includes(name)) ||
    (setting.without === 'noNewPrivs' && stoppedByLandlockToo.includes(name))
  );
}

/**
 * Tries that must succeed, or all this shows nothing: without a jail whatever this host has, and with no layer but what
 * is always there whatever a layer is said to stop.
 */
function mustPass(setting: Setting, name: string): boolean {
  if (mayBeAbsent.some((each) => each.test(name))) return false;
  if (setting === 'none') return layersThatStop(name).length > 0;
  // These need what only a launch has.
  if (setting === 'host') return !/^(create another VM|send a descriptor away|have a socket signal)/.test(name);
  return typeof setting !== 'string' && 'without' in setting && setting.without === 'seccomp'
    ? ['fork', 'map memory', 'create another VM', "change the flags of its guest's file"].includes(name)
    : false;
}

/** What is not as it should be. */
export function surprises(setting: Setting, tried: readonly Tried[], isRootless = false): string[] {
  const all = stoppedBy.flatMap(([, tries]) => tries).concat(stoppedByFilter);
  const missing = all.filter((name) => !tried.some((each) => each.name === name));
  return [
    ...missing.map((name) => `nothing tries to ${name}`),
    ...tried.flatMap(({ name, outcome }) => {
      const isOpen = outcome === 'open';
      if (isOpen && !mayPass(setting, name, isRootless)) return [`${settingName(setting)}: nothing stops '${name}'`];
      if (!isOpen && mustPass(setting, name)) return [`${settingName(setting)}: '${name}' fails with ${outcome}`];
      return [];
    }),
  ];
}
