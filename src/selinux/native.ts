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
}
