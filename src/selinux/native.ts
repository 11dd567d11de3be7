/** What the addon offers of SELinux (native/addon/selinux.cpp). */
export interface SelinuxBinding {
  /** Why libselinux cannot be used here, or null where it can. The other calls need it. */
  selinuxMissing(): string | null;
  /** is_selinux_enabled(3). */
  selinuxEnabled(): boolean;
  /** security_getenforce(3). */
  selinuxEnforcing(): boolean;
  /** getcon(3) of the calling thread, getpidcon(3) of a process. */
  selinuxContext(pid?: number): string;
  /** security_check_context(3). */
  selinuxCheckContext(context: string): void;
  /** fgetfilecon(3) of a descriptor, getfilecon(3) of a path. */
  selinuxFileContext(target: number | string): string;
  /** fsetxattr(2). */
  selinuxSetFileContext(fd: number, context: string): void;
  /** From the kernel's status page: 1 enforcing, 0 permissive, -1 off. Throws where the policy keeps it from the caller. */
  selinuxStatus(): -1 | 0 | 1;
  /**
   * Messages of the kernel from now on: records of audit, changes of SELinux' mode and policy, lines of the kernel's log.
   * It does not keep the event loop alive.
   */
  KernelMessages: new (
    source: 'audit' | 'selinux' | 'log',
    onMessage: (bytes: Buffer) => void,
  ) => KernelMessages;
}

/** native/addon/kernel_messages.cpp */
export interface KernelMessages {
  close(): void;
}
