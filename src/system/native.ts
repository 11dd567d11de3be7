import type { SystemErrorCause } from '../errors.js';

/** What the addon offers of plain system calls (native/addon/system.cpp). */
export interface SystemBinding {
  /** An error as a failed system call of the addon's would be. */
  systemError(errno: number, call: string): SystemErrorCause;
  memfdCreate(name: string, contents: Uint8Array | number, seals: number): number;
  closeDescriptor(fd: number): void;
  pidfdOpen(pid: number): number;
  pidfdSendSignal(pidfd: number, signal: number): void;
  pidfdWait(pidfd: number, callback: () => void): void;
  getRlimit(pid: number, resource: number): [soft: bigint, hard: bigint];
  fsmount(type: string, options: readonly (readonly [string, string])[], attributes: number): number;
  openTree(path: string, flags: number): number;
  mountSetattr(fd: number, set: number, clear: number, propagation: number, recursive: boolean): void;
}
