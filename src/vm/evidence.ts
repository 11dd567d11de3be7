import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { isSystemError } from '../errors.js';
import type { CgroupSettings } from '../jail/cgroup.js';
import { type Jail, type LayerName, type MonitorLimits, monitorLimits, type PlannedTap } from '../jail/profiles.js';
import type { NamespaceKind } from '../jail/steps.js';
import { native } from '../native.js';
import type { Unlabelled, VmLabel } from '../selinux/label.js';

/** What the kernel says of one layer of a jail. */
export interface EvidenceLayer {
  /** Its name: a {@link LayerName}, or a property that every jail has. */
  readonly layer: string;
  readonly asked: string;
  readonly observed: string;
  /** Whether what is observed is what was asked for. */
  readonly ok: boolean;
  /**
   * Where it was seen. `'kernel'`: a file of /proc, from outside the jail. `'launch'`: the kernel shows no such state
   * of a process; the system call that sets it succeeded, or there would be no VM.
   */
  readonly source: 'kernel' | 'launch';
}

/** The kernel's own view of a monitor. */
export interface Evidence {
  readonly pid: number;
  /** Whether every layer is as asked for. */
  readonly ok: boolean;
  readonly layers: readonly EvidenceLayer[];
  /** What the monitor sees of the filesystem: mount points with their type and options. */
  readonly mounts: readonly { readonly path: string; readonly type: string; readonly options: string }[];
  /** The open descriptors and what they are. */
  readonly descriptors: readonly { readonly fd: number; readonly target: string }[];
}

/** What the launch asked for. @internal */
export interface EvidenceRequest {
  readonly jail: Jail;
  readonly rootless: boolean;
  /** The monitor's user id, as Node's user namespace has it. */
  readonly userId: number;
  readonly selinux: VmLabel | Unlabelled;
  /** Of the cgroup that was made for it: the files of its limits with what was written, and what is in them now. */
  readonly limits: { readonly files: CgroupSettings['files']; readonly read: (file: string) => string } | undefined;
  /** Descriptors that it was born with. */
  readonly descriptors: readonly number[];
  /** Of its network device, where it has one; without a tap it is a stream. */
  readonly network: { readonly descriptor: number; readonly tap: PlannedTap | undefined } | undefined;
  readonly resources: MonitorLimits;
}

const namespaceLayers: readonly (readonly [LayerName, NamespaceKind])[] = [
  ['pidNamespace', 'pid'],
  ['mountNamespace', 'mnt'],
  ['ipcNamespace', 'ipc'],
  ['utsNamespace', 'uts'],
  ['cgroupNamespace', 'cgroup'],
  ['networkNamespace', 'net'],
  ['userNamespace', 'user'],
  ['timeNamespace', 'time'],
];

/**
 * Reads the evidence of a monitor; undefined where it ended meanwhile, for what could then not be read says nothing
 * of its jail. Its pid cannot be another process's: it has not been reaped yet. `streams` are the inodes of sockets that
 * it was given since its birth.
 * @internal
 */
export function readEvidence(
  pid: number,
  request: EvidenceRequest,
  streams: ReadonlySet<number> = new Set(),
): Evidence | undefined {
  try {
    const evidence = read(pid, request, streams);
    return hasEnded(pid) ? undefined : evidence;
  } catch (error) {
    if (isSystemError(error) && hasEnded(pid)) return undefined;
    throw error;
  }
}

/** PF_EXITING of linux/sched.h: set before a task gives up the first of its parts, long before it is a zombie. */
const exiting = 0x4;

/** proc_pid_stat(5): pid (name) state ppid pgrp session tty_nr tpgid flags ... */
function hasEnded(pid: number): boolean {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const flags = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[6];
  return (Number(flags) & exiting) !== 0;
}

function read(pid: number, request: EvidenceRequest, streams: ReadonlySet<number>): Evidence {
  const reader = new Reader(pid, request);
  const layers = [
    ...namespaceLayers.map(([layer, kind]) => reader.namespace(layer, kind)),
    reader.root(),
    reader.ids(),
    reader.capabilities(),
    reader.noNewPrivs(),
    reader.seccomp(),
    reader.landlock(),
    reader.limits(),
    reader.session(),
    reader.keyring(),
    reader.environment(),
    reader.cgroup(),
    reader.cgroupLimits(),
    reader.selinux(),
    reader.descriptors(streams),
    ...(request.network === undefined ? [] : [reader.network(request.network)]),
  ];
  return {
    pid,
    ok: layers.every(({ ok }) => ok),
    layers,
    mounts: reader.mounts(),
    descriptors: reader.openDescriptors(),
  };
}

/** What a file attr/current of procfs says: the kernel ends it with a NUL, some modules with a newline. */
const contextIn = (text: string): string => text.replace(/[\0\n]+$/, '');

/** Processes of this host with a context, as far as they can be seen. */
function processesLabelled(context: string): number[] {
  const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  return pids.map(Number).filter((pid) => {
    try {
      return contextIn(readFileSync(`/proc/${pid}/attr/current`, 'utf8')) === context;
    } catch (error) {
      if (isSystemError(error)) return false; // it has ended, or is somebody else's
      throw error;
    }
  });
}

const fieldOf = (line: string): [string, string] => line.split(':\t') as [string, string];

class Reader {
  readonly #pid: number;
  readonly #request: EvidenceRequest;
  #threads: ReadonlyMap<string, string>[] | undefined;

  constructor(pid: number, request: EvidenceRequest) {
    this.#pid = pid;
    this.#request = request;
  }

  #required(layer: LayerName): boolean {
    return this.#request.jail.layers[layer] === 'required';
  }

  /** A layer of the kernel's; what cannot be read is not as asked for. */
  #layer(layer: string, asked: string, read: () => { observed: string; ok: boolean }): EvidenceLayer {
    try {
      return { layer, asked, source: 'kernel', ...read() };
    } catch (error) {
      if (!isSystemError(error)) throw error;
      return { layer, asked, observed: `unreadable: ${error.code}`, ok: false, source: 'kernel' };
    }
  }

  #read(name: string): string {
    return readFileSync(`/proc/${this.#pid}/${name}`, 'utf8');
  }

  /**
   * A field of each thread's /proc/pid/task/tid/status, each value once: credentials, capabilities and filters belong to
   * a thread, not to its process. proc_pid_status(5)
   */
  #status(field: string): string[] {
    this.#threads ??= readdirSync(`/proc/${this.#pid}/task`).map(
      (task) => new Map(this.#read(`task/${task}/status`).split('\n').map(fieldOf)),
    );
    return [...new Set(this.#threads.map((thread) => thread.get(field) ?? '?'))];
  }

  namespace(layer: LayerName, kind: NamespaceKind): EvidenceLayer {
    const wanted = this.#required(layer);
    return this.#layer(layer, wanted ? 'its own' : 'off', () => {
      const theirs = readlinkSync(`/proc/${this.#pid}/ns/${kind}`);
      const shared = theirs === readlinkSync(`/proc/self/ns/${kind}`);
      return { observed: shared ? `${theirs}, the host's` : theirs, ok: !wanted || !shared };
    });
  }

  mounts(): Evidence['mounts'] {
    // proc_pid_mountinfo(5): id, parent, device, root, mount point, options, optional fields, -, type, source, super.
    return this.#read('mountinfo')
      .trim()
      .split('\n')
      .map((line) => {
        const [mount = '', filesystem = ''] = line.split(' - ');
        const fields = mount.split(' ');
        return { path: fields[4] ?? '', type: filesystem.split(' ')[0] ?? '', options: fields[5] ?? '' };
      });
  }

  root(): EvidenceLayer {
    const asked = 'an empty read-only tmpfs, the monitor bound into it';
    return this.#layer('root', asked, () => {
      const mounts = this.mounts();
      const readOnly = mounts.every(({ options }) => options.split(',').includes('ro'));
      const paths = mounts.map(({ path }) => path).sort();
      const expected = mounts.length === 2 && paths[0] === '/' && paths[1] === '/casemate-vmm';
      const tmpfs = mounts.find(({ path }) => path === '/')?.type === 'tmpfs';
      const inside = readlinkSync(`/proc/${this.#pid}/cwd`) === '/' && readlinkSync(`/proc/${this.#pid}/root`) === '/';
      return {
        observed: mounts.map(({ path, type, options }) => `${path} ${type} (${options})`).join('; '),
        ok: readOnly && expected && tmpfs && inside,
      };
    });
  }

  ids(): EvidenceLayer {
    const { userId, rootless } = this.#request;
    const wanted = this.#required('userNamespace');
    const asked = wanted ? (rootless ? `the caller's user id ${userId}` : `user id ${userId}, its own`) : 'off';
    return this.#layer('ids', asked, () => {
      const uids = this.#status('Uid');
      const gids = this.#status('Gid').map((gid) => gid.split('\t')[0]);
      const groups = this.#status('Groups').map((list) => list.trim());
      const alone =
        uids.every((uid) => uid === Array(4).fill(userId).join('\t')) &&
        (rootless || groups.every((list) => list === ''));
      const ids = uids.map((uid) => uid.split('\t')[0]);
      return { observed: `uid ${ids}, gid ${gids}, groups [${groups}]`, ok: !wanted || alone };
    });
  }

  capabilities(): EvidenceLayer {
    const wanted = this.#required('capabilities');
    return this.#layer('capabilities', wanted ? 'none, bounding set empty' : 'off', () => {
      const sets = ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'] as const;
      const filled = sets.flatMap((name) =>
        this.#status(name)
          .filter((value) => !/^0+$/.test(value))
          .map((value) => `${name} ${value}`),
      );
      const observed = filled.length === 0 ? 'every set is 0' : filled.join(', ');
      return { observed, ok: !wanted || filled.length === 0 };
    });
  }

  noNewPrivs(): EvidenceLayer {
    const wanted = this.#required('noNewPrivs');
    return this.#layer('noNewPrivs', wanted ? 'set' : 'off', () => {
      const set = this.#status('NoNewPrivs').every((value) => value === '1');
      return { observed: set ? 'set' : 'not set', ok: !wanted || set };
    });
  }

  /** Every thread has a filter of its own, on top of the one it was born with. */
  seccomp(): EvidenceLayer {
    const wanted = this.#required('seccomp');
    return this.#layer('seccomp', wanted ? 'a filter in every thread' : 'off', () => {
      const filtered = this.#status('Seccomp').every((mode) => mode === '2');
      const counts = this.#status('Seccomp_filters').join(' or ');
      const threads = this.#threads?.length;
      const observed = filtered ? `${threads} threads filtered (${counts} filters each)` : 'a thread without a filter';
      return { observed, ok: !wanted || filtered };
    });
  }

  landlock(): EvidenceLayer {
    const wanted = this.#required('landlock');
    const observed = wanted ? 'landlock_restrict_self succeeded; the kernel shows no more' : 'off';
    return { layer: 'landlock', asked: wanted ? 'nothing allowed' : 'off', observed, ok: true, source: 'launch' };
  }

  limits(): EvidenceLayer {
    const wanted = this.#required('rlimits');
    const limits = monitorLimits(this.#request.resources);
    const names: Record<(typeof limits)[number][0], string> = {
      nofile: 'Max open files',
      nproc: 'Max processes',
      fsize: 'Max file size',
      core: 'Max core file size',
      memlock: 'Max locked memory',
      msgqueue: 'Max msgqueue size',
    };
    const asked = wanted ? limits.map(([name, limit]) => `${name} ${limit}`).join(', ') : 'off';
    return this.#layer('rlimits', asked, () => {
      const text = this.#read('limits');
      const found = limits.map(([name, limit]) => {
        const [, soft, hard] = new RegExp(`^${names[name]} +(\\S+) +(\\S+)`, 'm').exec(text) ?? [];
        return { name, soft, hard, ok: soft === String(limit) && hard === String(limit) };
      });
      const observed = found.map(({ name, soft, hard }) => `${name} ${soft === hard ? hard : `${soft}/${hard}`}`);
      return { observed: observed.join(', '), ok: !wanted || found.every(({ ok }) => ok) };
    });
  }

  /** proc_pid_stat(5): pid (name) state ppid pgrp session tty_nr ... */
  session(): EvidenceLayer {
    return this.#layer('session', 'its own, no terminal', () => {
      const stat = this.#read('stat');
      const [, , , session, terminal] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      const observed = `session ${session}, terminal ${terminal === '0' ? 'none' : terminal}`;
      return { observed, ok: session === String(this.#pid) && terminal === '0' };
    });
  }

  keyring(): EvidenceLayer {
    const wanted = this.#required('keyring');
    const observed = wanted ? 'keyctl succeeded; the kernel shows no more' : 'off';
    return { layer: 'keyring', asked: wanted ? 'a new, empty one' : 'off', observed, ok: true, source: 'launch' };
  }

  environment(): EvidenceLayer {
    return this.#layer('environment', 'empty', () => {
      const text = this.#read('environ');
      return { observed: text === '' ? 'empty' : `${text.length} bytes`, ok: text === '' };
    });
  }

  cgroup(): EvidenceLayer {
    const { jail, limits } = this.#request;
    const wanted = jail.cgroupFd !== undefined || limits !== undefined;
    const asked =
      limits !== undefined ? 'born in one of its own' : wanted ? 'born in the one given' : 'the one of Node';
    return this.#layer('cgroup', asked, () => {
      const theirs = this.#read('cgroup').trim();
      const shared = theirs === readFileSync('/proc/self/cgroup', 'utf8').trim();
      const unified = theirs.split('\n').find((line) => line.startsWith('0::')) ?? theirs.split('\n')[0] ?? '';
      return { observed: unified, ok: !wanted || !shared };
    });
  }

  /** What was asked for is in its file; for devices, among what the kernel has added there for the rates not given. */
  cgroupLimits(): EvidenceLayer {
    const { limits } = this.#request;
    if (limits === undefined) {
      return { layer: 'limits', asked: 'off', observed: 'off', ok: true, source: 'launch' };
    }
    const asked = limits.files.map((setting) => setting.join(' ')).join(', ');
    return this.#layer('limits', asked, () => {
      const found = limits.files.map(([file, text]) => {
        const lines = limits.read(file).trim().split('\n');
        const line = lines.find((one) => text.split(' ').every((word) => one.split(' ').includes(word)));
        return { ok: line !== undefined, observed: `${file} ${line ?? lines.join('; ')}` };
      });
      return { observed: found.map(({ observed }) => observed).join(', '), ok: found.every(({ ok }) => ok) };
    });
  }

  /** The label of every thread, and of what it has open; and that no other process has its categories. */
  selinux(): EvidenceLayer {
    const { selinux, jail } = this.#request;
    if (!('context' in selinux)) {
      const asked = jail.selinux.mode;
      const observed = asked === 'off' ? 'off' : `no label: ${selinux.unlabelled}`;
      return { layer: 'selinux', asked, observed, ok: true, source: 'launch' };
    }
    const { context, isLeased } = selinux;
    const asked = `${context}${isLeased ? ', its categories its own' : ''}; ${jail.selinux.mode}`;
    return this.#layer('selinux', asked, () => {
      const tasks = readdirSync(`/proc/${this.#pid}/task`);
      const labels = tasks.map((task) => contextIn(this.#read(`task/${task}/attr/current`)));
      const found = [...new Set(labels)].join(', ');
      const others = isLeased ? processesLabelled(context).filter((pid) => pid !== this.#pid) : [];
      const mode = native.selinuxStatus() === 1 ? 'enforcing' : 'permissive';
      const shared = others.length === 0 ? '' : `, which processes ${others} have, too`;
      const files = this.#fileContexts().join(', ');
      const isMode = mode === 'enforcing' || jail.selinux.mode !== 'enforcing';
      return {
        observed: `${found}${shared}; ${mode}; files ${files}`,
        ok: found === context && others.length === 0 && isMode,
      };
    });
  }

  /** Of the regular files and devices that it has open, each once. */
  #fileContexts(): string[] {
    const paths = this.openDescriptors().filter(({ target }) => !/^(socket|anon_inode|pipe):/.test(target));
    const contexts = paths.map(({ fd }) => native.selinuxFileContext(`/proc/${this.#pid}/fd/${fd}`));
    return [...new Set(contexts)];
  }

  /** What is behind the network device's descriptor. A tap's file says which one it is, proc_pid_fdinfo(5). */
  network({ descriptor, tap }: NonNullable<EvidenceRequest['network']>): EvidenceLayer {
    if (tap === undefined) {
      return this.#layer('network', 'a stream', () => {
        const target = readlinkSync(`/proc/${this.#pid}/fd/${descriptor}`);
        return { observed: target, ok: target.startsWith('socket:') };
      });
    }
    const { name = 'tap0', inHost } = tap;
    return this.#layer('network', `${name} in ${inHost ? "the host's" : 'its'} network namespace`, () => {
      const namespace = inHost ? 'self' : this.#pid;
      const found = /^iff:\t(.*)$/m.exec(this.#read(`fdinfo/${descriptor}`))?.[1];
      const devices = readFileSync(`/proc/${namespace}/net/dev`, 'utf8');
      const isThere = devices.split('\n').some((line) => line.trimStart().startsWith(`${found}:`));
      const where = isThere ? `in ${readlinkSync(`/proc/${namespace}/ns/net`)}` : 'elsewhere';
      return { observed: `${found ?? 'no tap'} ${where}`, ok: found === name && isThere };
    });
  }

  openDescriptors(): Evidence['descriptors'] {
    return readdirSync(`/proc/${this.#pid}/fd`)
      .map(Number)
      .sort((left, right) => left - right)
      .flatMap((fd) => {
        try {
          return [{ fd, target: readlinkSync(`/proc/${this.#pid}/fd/${fd}`) }];
        } catch {
          return []; // closed since it was listed
        }
      });
  }

  /** What it was given, at its birth and since, and what it made of that: KVM's own descriptors and its events. */
  descriptors(streams: ReadonlySet<number>): EvidenceLayer {
    const { descriptors } = this.#request;
    return this.#layer('descriptors', `${descriptors.length} given, KVM's own besides`, () => {
      const open = this.openDescriptors();
      const own = /^anon_inode:(kvm-vm|kvm-vcpu:\d+|\[?event(fd|poll)\]?)$/;
      const isStream = (target: string) => streams.has(Number(/^socket:\[(\d+)\]$/.exec(target)?.[1]));
      const foreign = open.filter(
        ({ fd, target }) => !descriptors.includes(fd) && !own.test(target) && !isStream(target),
      );
      const strangers = foreign.map(({ fd, target }) => `${fd} ${target}`).join(', ');
      const observed = foreign.length === 0 ? open.map(({ target }) => target).join(', ') : `not given: ${strangers}`;
      return { observed, ok: foreign.length === 0 };
    });
  }
}
