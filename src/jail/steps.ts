/**
 * The steps of a launch plan: what happens to a process between `clone3` and `execve`, as data.
 *
 * A plan is composed and checked in TypeScript, encoded into one flat buffer and walked by the native
 * child with raw system calls. Most of these calls make no sense on Node's main thread (they change the
 * caller for good, or only one of Node's threads): they exist as steps of a plan and nowhere else.
 *
 * Descriptors are named, not numbered, so that one plan serves many launches: a name is either given
 * with the launch ({@link Plan.descriptors}) or made by a launcher step ({@link socketPair}, {@link pooled}).
 */

/** The kinds of namespaces; namespaces(7). */
export type NamespaceKind = 'mnt' | 'cgroup' | 'uts' | 'ipc' | 'user' | 'pid' | 'net' | 'time';

/** CLONE_NEW* by kind; clone(2). */
export const namespaceFlags: Readonly<Record<NamespaceKind, number>> = {
  time: 0x80,
  mnt: 0x20000,
  cgroup: 0x2000000,
  uts: 0x4000000,
  ipc: 0x8000000,
  user: 0x10000000,
  pid: 0x20000000,
  net: 0x40000000,
};

/** Resources of prlimit(2). */
export const rlimitResources = {
  cpu: 0,
  fsize: 1,
  data: 2,
  stack: 3,
  core: 4,
  rss: 5,
  nproc: 6,
  nofile: 7,
  memlock: 8,
  as: 9,
  locks: 10,
  sigpending: 11,
  msgqueue: 12,
  nice: 13,
  rtprio: 14,
  rttime: 15,
} as const;

/** A resource of prlimit(2), without RLIMIT_ and in lower case. */
export type RlimitResource = keyof typeof rlimitResources;

/** One step of a plan. Make them with the functions of this module. */
export type Step =
  | { readonly op: 'execLabel'; readonly label: string }
  | { readonly op: 'socketLabel'; readonly label: string }
  | { readonly op: 'socketPair'; readonly type: 'stream' | 'seqpacket'; readonly child: string; readonly ours: string }
  | { readonly op: 'pooled'; readonly pool: 'net' | 'user'; readonly as: string; readonly lease: string | undefined }
  | ({ readonly op: 'tap' } & Readonly<Required<Omit<TapStep, 'namespace'>>> & Pick<Readonly<TapStep>, 'namespace'>)
  | { readonly op: 'setns'; readonly namespace: string; readonly kind: NamespaceKind }
  | { readonly op: 'unshare'; readonly kinds: readonly NamespaceKind[] }
  | {
      readonly op: 'mount';
      readonly source: string;
      readonly target: string;
      readonly type: string;
      readonly flags: number;
      readonly data: string;
    }
  | { readonly op: 'umount'; readonly target: string; readonly flags: number }
  | { readonly op: 'pivotRoot'; readonly root: string }
  | {
      readonly op: 'mountSetattr';
      readonly target: string;
      readonly set: number;
      readonly clear: number;
      readonly propagation: number;
      readonly recursive: boolean;
    }
  | { readonly op: 'moveMount'; readonly mount: string; readonly target: string }
  | { readonly op: 'mkdir'; readonly path: string; readonly mode: number }
  | { readonly op: 'chdir'; readonly path: string }
  | { readonly op: 'checkCwd' }
  | { readonly op: 'hostname'; readonly name: string }
  | { readonly op: 'domainname'; readonly name: string }
  | { readonly op: 'rlimit'; readonly resource: RlimitResource; readonly soft: bigint; readonly hard: bigint }
  | { readonly op: 'session' }
  | { readonly op: 'keyring' }
  | { readonly op: 'coreScheduling' }
  | { readonly op: 'descriptors'; readonly map: Readonly<Record<string, number | readonly number[]>> }
  | { readonly op: 'ids'; readonly uid: number; readonly gid: number; readonly clearGroups: boolean }
  | { readonly op: 'dropBounding' }
  | {
      readonly op: 'capabilities';
      readonly effective: bigint;
      readonly permitted: bigint;
      readonly inheritable: bigint;
    }
  | { readonly op: 'securebits'; readonly bits: number }
  | { readonly op: 'noNewPrivs' }
  | { readonly op: 'landlock' }
  | { readonly op: 'seccomp'; readonly program: Uint8Array; readonly flags: number }
  | { readonly op: 'parentDeath'; readonly signal: number }
  | { readonly op: 'umask'; readonly mask: number }
  | {
      readonly op: 'exec';
      readonly path: string;
      readonly args: readonly string[];
      readonly env: readonly string[];
    };

/** What {@link tap} takes. */
export interface TapStep {
  /** What its descriptor is called in the plan. */
  as: string;
  /** Name of the descriptor of its network namespace. Default: the namespace of Node. */
  namespace?: string;
  /** Of the device. Default `'tap0'`. */
  name?: string;
  /** To be one end of a persistent tap that is there already, of which nothing is changed. Default false. */
  existing?: boolean;
  /** To stay until its network namespace ends, and not only until its descriptor is closed. Default false. */
  persistent?: boolean;
  /** Default: the kernel's, 1500. */
  mtu?: number;
  /** Name of a bridge in the namespace that it becomes a port of. */
  bridge?: string;
  /** Of the device in its namespace: `'10.0.0.1/24'`, `'fd00::1/64'`; 16 at most. */
  addresses?: readonly string[];
  /** Through the device, with or without a gateway behind it: `{ to: '10.1.0.0/16', via: '10.0.0.2' }`; 16 at most. */
  routes?: readonly TapRoute[];
}

/** A network that is reached through a tap. */
export interface TapRoute {
  /** `'10.1.0.0/16'`, `'::/0'`. */
  readonly to: string;
  /** The address of a neighbour behind the tap. */
  readonly via?: string;
}

/** The name of a step's operation. */
export type StepName = Step['op'];

/** What the launcher reads back of the started process before it lets it go on. */
export type Check = 'ids' | 'capabilities' | 'noNewPrivs' | 'seccomp' | 'label';

/** A launch, as data. Encode it with {@link encodePlan}. */
export interface Plan {
  /** Namespaces the process is born into; clone3(2). */
  readonly clone: readonly NamespaceKind[];
  /** Names of the descriptors that each launch gives, in that order. */
  readonly descriptors: readonly string[];
  /** Name of the descriptor of the cgroup v2 directory to be born in (CLONE_INTO_CGROUP). */
  readonly cgroup?: string | undefined;
  /** Launcher steps first (labels, socket pairs, pooled namespaces), then the child's, {@link exec} last. */
  readonly steps: readonly Step[];
  /** What is compared with the kernel's view after `execve`. */
  readonly check: readonly Check[];
}

// ---- Run by the launcher before clone3 ------------------------------------------

/**
 * The SELinux context of the next `execve`: a raw write to `/proc/thread-self/attr/exec`, inherited over
 * clone3. It is the launcher's label and not Node's: labels belong to threads.
 */
export const execLabel = (label = ''): Step => ({ op: 'execLabel', label });

/** The SELinux context of sockets made by the steps after this one; `/proc/thread-self/attr/sockcreate`. */
export const socketLabel = (label = ''): Step => ({ op: 'socketLabel', label });

/** A pair of connected Unix sockets; socketpair(2). `ours` is handed out after the launch. */
export const socketPair = (type: 'stream' | 'seqpacket', child: string, ours: string): Step => ({
  op: 'socketPair',
  type,
  child,
  ours,
});

/**
 * A namespace from the launcher's pool: `net`, fresh and empty; `user`, with one user and one group in it,
 * and in which no further namespace can be made. `lease` names the descriptor that holds the lease of the
 * user id for as long as somebody has it open.
 */
export const pooled = (pool: 'net' | 'user', as: string, lease?: string): Step => ({ op: 'pooled', pool, as, lease });

/**
 * A tap device, tun(4), in a network namespace, by ioctl and rtnetlink(7). Its descriptor has frames behind the header of
 * virtio 1. It must be made before the user namespace is entered, and is usually made for a `pooled('net', ...)`.
 */
export const tap = (options: TapStep): Step => ({
  op: 'tap',
  as: options.as,
  ...(options.namespace !== undefined && { namespace: options.namespace }),
  name: options.name ?? 'tap0',
  existing: options.existing ?? false,
  persistent: options.persistent ?? false,
  mtu: options.mtu ?? 0,
  bridge: options.bridge ?? '',
  addresses: options.addresses ?? [],
  routes: options.routes ?? [],
});

// ---- Run by the child ------------------------------------------------------------

/** Joins a namespace by descriptor; setns(2). Enter a user namespace last: it then owns none of the others. */
export const setns = (namespace: string, kind: NamespaceKind): Step => ({ op: 'setns', namespace, kind });

/** Leaves namespaces for new ones; unshare(2). */
export const unshare = (...kinds: NamespaceKind[]): Step => ({ op: 'unshare', kinds });

/** The classic mount(2); `flags` are MS_*. */
export const mount = (options: {
  source?: string;
  target: string;
  type?: string;
  flags?: number;
  data?: string;
}): Step => ({
  op: 'mount',
  source: options.source ?? '',
  target: options.target,
  type: options.type ?? '',
  flags: options.flags ?? 0,
  data: options.data ?? '',
});

/** umount2(2); `flags` are MNT_*. */
export const umount = (target: string, flags = 0): Step => ({ op: 'umount', target, flags });

/** Makes a mounted directory the root and detaches the old one; pivot_root(2), `pivot_root(".", ".")`. */
export const pivotRoot = (root: string): Step => ({ op: 'pivotRoot', root });

/** Changes a mount's attributes (MOUNT_ATTR_*) or its propagation (MS_PRIVATE...); mount_setattr(2). */
export const mountSetattr = (options: {
  target: string;
  set?: number;
  clear?: number;
  propagation?: number;
  recursive?: boolean;
}): Step => ({
  op: 'mountSetattr',
  target: options.target,
  set: options.set ?? 0,
  clear: options.clear ?? 0,
  propagation: options.propagation ?? 0,
  recursive: options.recursive ?? false,
});

/** Attaches a detached mount, from fsmount(2) or open_tree(2); move_mount(2). */
export const moveMount = (mount: string, target: string): Step => ({ op: 'moveMount', mount, target });

/** mkdir(2). */
export const mkdir = (path: string, mode = 0o755): Step => ({ op: 'mkdir', path, mode });

/** chdir(2). */
export const chdir = (path: string): Step => ({ op: 'chdir', path });

/** Fails unless the working directory lies inside the root; getcwd(2). */
export const checkCwd = (): Step => ({ op: 'checkCwd' });

/** sethostname(2). */
export const hostname = (name: string): Step => ({ op: 'hostname', name });

/** setdomainname(2). */
export const domainname = (name: string): Step => ({ op: 'domainname', name });

/** prlimit(2); soft and hard are the same unless given, for an SELinux transition resets soft limits. */
export const rlimit = (resource: RlimitResource, hard: bigint | number, soft: bigint | number = hard): Step => ({
  op: 'rlimit',
  resource,
  soft: BigInt(soft),
  hard: BigInt(hard),
});

/** A session of its own, without a terminal; setsid(2). */
export const session = (): Step => ({ op: 'session' });

/** A new, empty session keyring; keyctl(2), KEYCTL_JOIN_SESSION_KEYRING. */
export const keyring = (): Step => ({ op: 'keyring' });

/** A core scheduling cookie of its own; prctl(2), PR_SCHED_CORE_CREATE. */
export const coreScheduling = (): Step => ({ op: 'coreScheduling' });

/**
 * Puts named descriptors at their numbers (dup3(2)); every other one is closed at `execve`
 * (close_range(2), CLOSE_RANGE_CLOEXEC).
 */
export const descriptors = (map: Record<string, number | readonly number[]>): Step => ({ op: 'descriptors', map });

/** setgroups(2) to none, setresgid(2), setresuid(2), by raw system calls. */
export const ids = (uid: number, gid: number, clearGroups = true): Step => ({ op: 'ids', uid, gid, clearGroups });

/** Empties the capability bounding set; prctl(2), PR_CAPBSET_DROP. */
export const dropBounding = (): Step => ({ op: 'dropBounding' });

/** Sets the capability sets, and empties the ambient one; capset(2). */
export const capabilities = (effective = 0n, permitted = effective, inheritable = 0n): Step => ({
  op: 'capabilities',
  effective,
  permitted,
  inheritable,
});

/** prctl(2), PR_SET_SECUREBITS. */
export const securebits = (bits: number): Step => ({ op: 'securebits', bits });

/** prctl(2), PR_SET_NO_NEW_PRIVS. */
export const noNewPrivs = (): Step => ({ op: 'noNewPrivs' });

/** A Landlock domain that allows nothing, also no `execve`; landlock(7). */
export const landlock = (): Step => ({ op: 'landlock' });

/** A seccomp filter, classic BPF; seccomp(2). It must allow `execve` where that is still to come. */
export const seccomp = (program: Uint8Array, flags = 0): Step => ({ op: 'seccomp', program, flags });

/** The signal sent when the launcher's task ends; prctl(2), PR_SET_PDEATHSIG. */
export const parentDeath = (signal: number): Step => ({ op: 'parentDeath', signal });

/** umask(2). */
export const umask = (mask: number): Step => ({ op: 'umask', mask });

/** execve(2) by path, as seen after the steps before; always the last step. */
export const exec = (path: string, args: readonly string[] = [path], env: readonly string[] = []): Step => ({
  op: 'exec',
  path,
  args,
  env,
});
