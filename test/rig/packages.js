// Every Debian package that the rig is made of, and made with.

/** Its libraries are newer than those of any host that the addon is built on today. */
export const release = 'trixie';
export const mirror = 'http://deb.debian.org/debian';

/** What the packages are verified with. On Debian it is always there. */
export const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg';
export const keyringPackage = 'debian-archive-keyring';

/**
 * What makes and runs the machine on the host, unpacked in a folder of its own. Not the host's own: under QEMU 7.2, which
 * Debian 12 has, a kernel 6.12 died in some boots (2 of 8 with two processors); the traces point at its cmpxchg16b. Nor
 * that of the release, 10.0, under which a CPU of the rig once stood still for good, with all that waits for RCU: at each
 * entry of a guest that waits for an interrupt, and at each exit, its SVM code changes the CPU's pending interrupts as if
 * no other thread did (an `or` and an `and` without a lock prefix, in the disassembly), and so may lose one. 11.1 changes
 * them atomically.
 */
export const tools = ['base-files', 'e2fsprogs', 'kmod', 'qemu-system-x86', 'seabios', 'xz-utils', 'zstd'];
export const toolsRelease = `${release}-backports`;

/** What the machine's root is unpacked from, with all that these depend on. */
export const inside = [
  // What every package takes for granted.
  'base-files',
  'bash',
  'coreutils',
  'grep',
  'iproute2',
  'kmod',
  'libc-bin',
  'mount',
  'sed',
  'tar',
  'util-linux',
  // What is tested runs on it.
  'nodejs',
  // NVMe, ext4 and virtio-serial are built into this kernel, so it needs no initramfs; kvm_amd is a module.
  'linux-image-cloud-amd64',
  // Disks of guests are made by them.
  'e2fsprogs',
  'erofs-utils',
  // A network for guests that takes no rights.
  'passt',
  // What tests look at processes with.
  'procps',
  'strace',
  // A policy that is ready, and what loads, labels and changes one. It has no part in a boot without `security=selinux`.
  'policycoreutils',
  'selinux-policy-default',
  'selinux-utils',
];

/** What the policy module is built and analysed with, on the host: the same base policy, with setools. */
export const policyTools = [
  'base-files',
  'bash',
  'coreutils',
  'policycoreutils',
  'secilc',
  'selinux-policy-default',
  'setools',
];

/**
 * Kernels for the guests of tests: a name, its package, and the suite that has it. Cloud kernels are small; generic ones
 * are what desktops and servers boot, with more of their drivers as modules.
 */
export const kernels = [
  { name: 'cloud', image: 'linux-image-cloud-amd64', suite: release },
  { name: 'generic', image: 'linux-image-amd64', suite: release },
  { name: 'cloud-backports', image: 'linux-image-cloud-amd64', suite: `${release}-backports` },
  { name: 'generic-backports', image: 'linux-image-amd64', suite: `${release}-backports` },
];

/** What guests of tests load of them, each with all that it needs. */
export const modules = [
  'af_packet',
  'erofs',
  'ext4',
  'pvpanic',
  'pvpanic-mmio',
  'virtio-rng',
  'virtio_balloon',
  'virtio_blk',
  'virtio_console',
  'virtio_mmio',
  'virtio_net',
  'vmw_vsock_virtio_transport',
];

/** The user space of guests of tests. */
export const busybox = 'busybox-static';

/** And a larger one, with an init of its own: a disk of it lies with the kernels. */
export const userSpace = [
  'base-files',
  'bash',
  'coreutils',
  'libc-bin',
  'mount',
  'systemd',
  'systemd-sysv',
  'util-linux',
];
