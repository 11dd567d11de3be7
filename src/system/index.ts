/**
 * System calls that Node does not have and that make sense on its main thread: they take and give descriptors, and
 * change nothing of the calling process. What would change it is a step of a plan (`casemate/jail`).
 *
 * Descriptors are plain numbers; whoever gets one closes it ({@link close}).
 *
 * @packageDocumentation
 */
import { constants } from 'node:os';
import { CasemateError, errnoRemedy, wrapSystemError } from '../errors.js';
import { descriptor, integer, invalid, oneOf, string } from '../is.js';
import { type RlimitResource, rlimitResources } from '../jail/steps.js';
import { native } from '../native.js';

/**
 * Closes a descriptor that this package made; close(2). In worker threads `fs.closeSync` warns of descriptors that
 * Node did not open.
 */
export function close(fd: number): void {
  native.closeDescriptor(descriptor('fd', fd));
}

/** Seals of a memfd; fcntl(2), F_ADD_SEALS. */
const seals = { seal: 1, shrink: 2, grow: 4, write: 8, futureWrite: 16 } as const;

/** A seal of a memfd, without F_SEAL_. */
export type Seal = keyof typeof seals;

/**
 * A file in memory; memfd_create(2). The seals named are set once its contents are in it: sealed with `'write'`,
 * `'shrink'`, `'grow'` and `'seal'` nobody can change it any more, whoever has it.
 *
 * @param contents - what is in it, or its size in bytes, all zero.
 * @returns its descriptor, read-write, close-on-exec.
 * @throws CasemateError ERR_CASEMATE_INVALID_OPTION, ERR_CASEMATE_SYSTEM.
 */
export function memfd(name: string, contents: Uint8Array | number, sealed: readonly Seal[] = []): number {
  string('name', name);
  if (!(contents instanceof Uint8Array)) integer('contents', contents, 0, Number.MAX_SAFE_INTEGER);
  const names = Object.keys(seals) as Seal[];
  const bits = sealed.reduce((sum, seal) => sum | seals[oneOf('sealed', seal, names)], 0);
  return system('memfd', () => native.memfdCreate(name, contents, bits));
}

/** A process, held by descriptor: the number may be reused once it is gone, this cannot be. */
export class Pidfd implements Disposable {
  #fd: number | undefined;
  #exited: Promise<void> | undefined;

  /**
   * pidfd_open(2).
   * @throws CasemateError ERR_CASEMATE_SYSTEM, with errno ESRCH where there is no such process.
   */
  constructor(pid: number) {
    integer('pid', pid, 1, 0x7fffffff);
    this.#fd = system('pidfd', () => native.pidfdOpen(pid));
  }

  /** Its descriptor. */
  get fd(): number {
    if (this.#fd === undefined)
      throw new CasemateError('ERR_CASEMATE_CLOSED', 'This Pidfd is closed', {
        step: 'pidfd',
        remedy: 'Open another Pidfd.',
      });
    return this.#fd;
  }

  /**
   * pidfd_send_signal(2).
   * @throws CasemateError ERR_CASEMATE_SYSTEM, with errno ESRCH where it has ended.
   */
  kill(signal: NodeJS.Signals = 'SIGTERM'): void {
    const number = constants.signals[signal];
    if (number === undefined) throw invalid('signal', 'the name of a signal', signal);
    system('pidfd', () => native.pidfdSendSignal(this.fd, number));
  }

  /** Resolves when the process has ended. Close this object only afterwards. */
  get exited(): Promise<void> {
    this.#exited ??= new Promise((resolve) => native.pidfdWait(this.fd, resolve));
    return this.#exited;
  }

  /** Closes the descriptor; harmless the second time. */
  [Symbol.dispose](): void {
    if (this.#fd !== undefined) native.closeDescriptor(this.#fd);
    this.#fd = undefined;
  }
}

/** Limits of a process; prlimit(2). `2n ** 64n - 1n` is RLIM_INFINITY. */
export function rlimit(resource: RlimitResource, pid = 0): { soft: bigint; hard: bigint } {
  const number = rlimitResources[oneOf('resource', resource, Object.keys(rlimitResources) as RlimitResource[])];
  integer('pid', pid, 0, 0x7fffffff);
  const [soft, hard] = system('rlimit', () => native.getRlimit(pid, number));
  return { soft, hard };
}

/** Attributes of a mount; MOUNT_ATTR_* of mount_setattr(2). */
export const mountAttributes = {
  rdonly: 0x1,
  nosuid: 0x2,
  nodev: 0x4,
  noexec: 0x8,
  nodiratime: 0x80,
  nosymfollow: 0x200000,
} as const;

/** The name of a mount's attribute. */
export type MountAttribute = keyof typeof mountAttributes;

function attributeBits(name: string, attributes: readonly MountAttribute[]): number {
  const names = Object.keys(mountAttributes) as MountAttribute[];
  return attributes.reduce((sum, attribute) => sum | mountAttributes[oneOf(name, attribute, names)], 0);
}

/**
 * A new filesystem, mounted nowhere yet; fsopen(2), fsconfig(2), fsmount(2). Attach it by the step
 * `moveMount` of `casemate/jail`.
 *
 * @param type - `'tmpfs'`, `'proc'`...
 * @param options - as mount(8) has them, `{ size: '1m', mode: '0755' }`.
 * @throws CasemateError ERR_CASEMATE_SYSTEM, with errno EPERM without CAP_SYS_ADMIN.
 */
export function fsmount(
  type: string,
  options: Readonly<Record<string, string>> = {},
  attributes: readonly MountAttribute[] = [],
): number {
  string('type', type);
  const pairs = Object.entries(options).map(([key, value]) => [key, string(`options.${key}`, value)] as const);
  const bits = attributeBits('attributes', attributes);
  return system('fsmount', () => native.fsmount(type, pairs, bits));
}

/**
 * A detached copy of the mount at a path (`clone: true`), or a descriptor of the path itself; open_tree(2).
 *
 * @throws CasemateError ERR_CASEMATE_SYSTEM.
 */
export function openTree(path: string, options: { clone?: boolean; recursive?: boolean } = {}): number {
  string('path', path);
  const flags = (options.clone ? 1 : 0) | (options.recursive ? 0x8000 : 0);
  return system('openTree', () => native.openTree(path, flags));
}

/**
 * Changes the attributes of a detached mount, or of one given by descriptor; mount_setattr(2).
 *
 * @throws CasemateError ERR_CASEMATE_SYSTEM.
 */
export function mountSetattr(
  fd: number,
  changes: { set?: readonly MountAttribute[]; clear?: readonly MountAttribute[]; recursive?: boolean },
): void {
  descriptor('fd', fd);
  const set = attributeBits('changes.set', changes.set ?? []);
  const clear = attributeBits('changes.clear', changes.clear ?? []);
  system('mountSetattr', () => native.mountSetattr(fd, set, clear, 0, changes.recursive ?? false));
}

/** The Landlock ABI of this kernel, 0 where it has none or has it switched off; landlock(7). */
export function landlockAbi(): number {
  return native.landlockAbi();
}

function system<T>(step: string, call: () => T): T {
  return wrapSystemError('ERR_CASEMATE_SYSTEM', call, { step, remedy: errnoRemedy });
}
