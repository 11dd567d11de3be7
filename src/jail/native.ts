import type { SystemErrorCause } from '../errors.js';

/** What the addon offers of the jail (native/addon/jail.cpp, native/addon/child.cpp). */
export interface JailBinding {
  Launcher: new (options: NativeLauncherOptions) => NativeLauncher;
  Child: NativeChildConstructor;
  /** Throws a RangeError where the plan is malformed. `given`: how many descriptors come with a launch. */
  Plan: new (
    bytes: Uint8Array,
    given: number,
    options: NativePlanOptions,
  ) => NativePlan;
  /**
   * A file to read, or a sealed memory file of contents. A disk is given by its path or a descriptor, which is copied; it
   * may be a block device, and is locked: shared, or alone where it can be written to. A stream is a Unix socket by its
   * path, connected to, under an SELinux label where one is given. Leases are locks on bytes of a file that is there. A copy is of
   * the same open file, with its locks. 0 makes a memory file that is empty, to be filled by one launch, sealed, and shared by others.
   * What is kept many launches may be given.
   */
  File: new (
    source: string | Uint8Array | number | NativeFile,
    kind?: 'disk' | 'writable-disk' | 'kept' | 'stream' | 'leases' | 'copy',
    label?: string,
  ) => NativeFile;
  /**
   * A new cgroup in the directory `parent`, these files written. An error of one of them has it as its path, and leaves no
   * cgroup.
   */
  Cgroup: new (
    parent: number,
    name: string,
    files: readonly (readonly [file: string, text: string])[],
  ) => NativeCgroup;
  /**
   * Takes our end of a stream socket of the plan from a child, by slot; or makes a new pair, under an SELinux label where
   * there is one, and sends the child the other end along with a message. `null` is the end of what can be read. Of what
   * the child sends, `sendBuffer` bytes wait in the kernel for a reader; by default it is the kernel's own number.
   */
  Stream: new (
    child: NativeChild,
    source: number | Uint8Array,
    onData: (bytes: Buffer | null) => void,
    label?: string,
    sendBuffer?: number,
  ) => NativeStream;
  /** The kernel's Landlock ABI, 0 where it has none. */
  landlockAbi(): number;
  /** A descriptor; the maps are the texts of uid_map and gid_map. */
  makeUserNamespace(uidMap: string, gidMap: string, denySetgroups: boolean, forbidNamespaces: boolean): number;
  /** Rules: [number], or [number, argument, ...values]. Null where they do not make a filter. */
  compileSeccomp(rules: readonly (readonly number[])[], refused: number): Uint8Array | null;
  /** Runs the child steps of a plan on a thread of its own; `keep` are names of /proc/<pid>/ns. */
  runSteps(
    plan: Uint8Array,
    descriptors: readonly number[],
    keep: readonly string[],
    callback: (outcome: { step: number; error: SystemErrorCause | null; descriptors: number[] }) => void,
  ): void;
}

/** Made by a launch only. */
export type NativeChildConstructor = abstract new (...args: never[]) => NativeChild;

export interface NativeLauncherOptions {
  /** Path of the monitor. */
  monitor: string;
  /** Path of the file whose bytes are leases of user ids; '' for rootless callers. */
  leases: string;
  rootless: boolean;
  uid: number;
  gid: number;
  firstUserId: number;
  userIds: number;
  tasks: number;
  pooled: number;
  Child: NativeChildConstructor;
}

export interface NativeLauncher {
  /** A launch is about to come: a task of the launcher wakes up meanwhile. */
  expect(): void;
  /**
   * Descriptors, in the plan's order, are copied and stay the caller's; files are taken. `configuration` is for programs
   * with a control protocol, and so is the timeout: for their announcement, in milliseconds. A cgroup that was made for
   * it is taken, and removed with its process. The label is for the steps of the plan that have none.
   *
   * `onDone` is called, later, unless such a program is launched well: its messages and its end follow then.
   */
  launch(
    plan: NativePlan,
    descriptors: readonly (number | NativeFile)[],
    configuration: Uint8Array | undefined,
    timeoutMs: number,
    onDone: (outcome: NativeOutcome) => void,
    cgroup?: NativeCgroup,
    label?: string,
  ): NativeChild;
  ready(): { network: number; user: number; sockets: boolean };
}

/** A plan that the addon has checked. */
export interface NativePlan {
  readonly [brand]: 'plan';
}

declare const brand: unique symbol;

export interface NativePlanOptions {
  /** Of the descriptors that come with a launch, those that are the same for all and never closed; -1 for the others, as are all without it. */
  readonly lasting?: readonly number[];
  readonly inHostMounts: boolean;
  /** A program of one thread, with few descriptors. */
  readonly lean?: boolean;
  /** Slot of our end of the control socket; undefined for a plain program. */
  readonly controlSlot?: number;
  readonly announcement?: Uint8Array;
  readonly release?: Uint8Array;
}

/** enum class Stage of native/jail/launcher.hpp. */
export const stages = ['none', 'prepare', 'launcher', 'clone', 'child', 'monitor', 'check'] as const;

/** enum Moment of native/jail/launcher.hpp. */
export const moments = ['submitted', 'taken', 'prepared', 'cloned', 'jailed', 'checked', 'released'] as const;

export interface NativeOutcome {
  /** Index into {@link stages}: where the launch failed, or 0. */
  stage: number;
  /** Of a failed launch: index of the step that failed, among the launcher's or the child's. */
  step?: number;
  /** Likewise: the monitor's message, where it was not its announcement. */
  event?: Buffer;
  error?: SystemErrorCause;
  /** What the read-back found different. */
  mismatch?: string;
}

export interface NativeChild {
  /** 0 before its birth. */
  readonly pid: number;
  /** Its user, as the launcher sees it; once the launch is done. */
  readonly userId: number;
  /** CLOCK_MONOTONIC ns: {@link moments}, its start, the ends of the steps in the plan's order; likewise. */
  readonly stamps: BigUint64Array;
  /**
   * Once. Keeps the event loop alive until the end, which comes for each that was born. `size` is the message's own,
   * `bytes` at most 512 of it; `memoryEvents` is that file of a cgroup that was made for it, or empty.
   */
  watch(
    onMessage: (bytes: Buffer, size: number) => void,
    onExit: (code: number | null, signal: number | null, memoryEvents: string) => void,
  ): void;
  /** One message, now or, where there is no room, in its turn. */
  send(bytes: Uint8Array): void;
  /** Before the launch is done, gives it up. */
  kill(signal: number): void;
  /** Our end of a socket pair of the plan, by slot; -1 where it was taken already. */
  takeDescriptor(slot: number): number;
  /** What a file of a cgroup that was made for it says. */
  cgroupFile(name: string): string;
}

/** A file that is owned by this object until a launch takes it; one that launches share, until it is closed. */
export interface NativeFile {
  /** In bytes; -1 for what is no regular file. */
  readonly size: number;
  /** For a memory file: what is in it stays as it is. */
  seal(): void;
  /** Whether it has a lock on one of its bytes now, which lasts as long as it, wherever it is taken to. */
  lease(byte: number, shared: boolean): boolean;
  /** Numbers of its device and inode. */
  identity(): [dev: string, ino: string];
  /** Its SELinux label. */
  context(): string;
  setContext(context: string): void;
  close(): void;
}

/** A cgroup that is owned, and removed at the end, by this object until a launch takes it. */
export interface NativeCgroup {
  /** Its directory; -1 once it has been taken. */
  readonly fd: number;
  /** Removes it. */
  close(): void;
}

/** Our end of a stream socket. It does not keep the event loop alive: the child does. */
export interface NativeStream {
  /** Reads, until `pause()`. */
  resume(): void;
  pause(): void;
  /** Reads all that is there, and the end: for a child that is gone. */
  drain(): void;
  /** One at a time. Done with 0 once the kernel has all of it, with an errno where nobody will ever read it. */
  write(bytes: Uint8Array, done: (errno: number) => void): void;
  /** Nothing more is written. */
  finish(): void;
  /** Harmless on one that has ended. */
  close(): void;
  /** The inode of the other end of a pair that was made for it, else 0. */
  readonly peer: number;
}
