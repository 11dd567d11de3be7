/** What tests need of the host. Without ava: processes that tests start ask, too. */
import { spawnSync } from 'node:child_process';
import { accessSync, closeSync, constants, existsSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** Whether a program runs to a good end. */
function runs(command: string, ...args: string[]): boolean {
  return spawnSync(command, args, { stdio: 'ignore' }).status === 0;
}

function succeeds(call: () => unknown): boolean {
  try {
    call();
    return true;
  } catch {
    return false;
  }
}

/** The folder of this process's own cgroup v2, wherever it is mounted. */
function ownCgroup(): string {
  const mount = /^\S+ (\S+) cgroup2 /m.exec(readFileSync('/proc/self/mounts', 'utf8'))?.[1];
  const path = /^0::(.*)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8'))?.[1];
  if (mount === undefined || path === undefined) throw new Error('no cgroup v2');
  return mount + path;
}

/** Whether the root of cgroup v2 has the controllers that limits are of. */
const hasControllers = (): boolean =>
  succeeds(() => {
    const mount = /^\S+ (\S+) cgroup2 /m.exec(readFileSync('/proc/self/mounts', 'utf8'))?.[1];
    const names = readFileSync(`${mount}/cgroup.controllers`, 'utf8').trim().split(' ');
    if (!['cpu', 'io', 'memory', 'pids'].every((name) => names.includes(name))) throw new Error();
  });

/** Each capability: whether this host has it, and the reason to give if not. */
export const capabilities = {
  kvm: {
    probe: () => succeeds(() => closeSync(openSync('/dev/kvm', 'r+'))),
    reason: 'no /dev/kvm that this user may open',
  },
  kernels: {
    probe: () => existsSync(join(process.env.CASEMATE_TEST_KERNELS ?? '', 'busybox')),
    reason: 'CASEMATE_TEST_KERNELS names no folder with kernels for a KVM that can run them',
  },
  cpio: {
    probe: () => runs('cpio', '--version'),
    reason: 'no cpio(1)',
  },
  e2fsprogs: {
    probe: () => ['mke2fs', 'debugfs', 'e2fsck'].every((tool) => existsSync(`/usr/sbin/${tool}`)),
    reason: 'no e2fsprogs',
  },
  erofs: {
    probe: () => /--tar/.test(spawnSync('mkfs.erofs', ['--help'], { encoding: 'utf8' }).stdout ?? ''),
    reason: 'no mkfs.erofs, or one before 1.7',
  },
  noErofs: {
    probe: () => spawnSync('mkfs.erofs', ['--help']).error !== undefined,
    reason: 'mkfs.erofs is installed',
  },
  root: {
    probe: () => process.geteuid?.() === 0,
    reason: 'needs root',
  },
  /** Namespaces of the user's own, as a rootless caller has them. */
  userns: {
    probe: () => runs('unshare', '--user', '--map-root-user', 'true'),
    reason: 'user namespaces cannot be created here',
  },
  tun: {
    probe: () => succeeds(() => closeSync(openSync('/dev/net/tun', 'r+'))),
    reason: 'no /dev/net/tun that this user may open',
  },
  /** For tests that become somebody else to see what a rootless caller sees. */
  setpriv: {
    probe: () => runs('setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', 'true'),
    reason: 'cannot become another user (setpriv, as root)',
  },
  passt: {
    probe: () => runs('passt', '--version'),
    reason: 'no passt(1)',
  },
  strace: {
    probe: () => runs('strace', '-f', '-o', '/dev/null', 'true'),
    reason: 'strace is missing or may not trace',
  },
  cgroup: {
    probe: () => succeeds(() => accessSync(ownCgroup(), constants.W_OK)),
    reason: 'no cgroup v2 in which this user may create one',
  },
  limits: {
    probe: hasControllers,
    reason: 'no cgroup v2 with controllers',
  },
  noLimits: {
    probe: () => !hasControllers(),
    reason: 'cgroup v2 has its controllers',
  },
  selinux: {
    probe: () => succeeds(() => readFileSync('/sys/fs/selinux/enforce')),
    reason: 'SELinux is not enabled',
  },
  noSelinux: {
    probe: () => !succeeds(() => readFileSync('/sys/fs/selinux/enforce')),
    reason: 'SELinux is enabled',
  },
  /** Labels are stored with files even where SELinux is off. Node cannot write extended attributes. */
  labels: {
    probe: () => {
      const label = "b'system_u:object_r:user_tmp_t:s0'";
      const code = `import os, tempfile; file = tempfile.TemporaryFile(); os.setxattr(file.fileno(), 'security.selinux', ${label})`;
      return runs('python3', '-c', code);
    },
    reason: 'files cannot be labelled here (root, python3 and a file system with security attributes)',
  },
  /** Programs of test/programs; the rig brings them along. */
  programs: {
    probe: () => process.env.CASEMATE_TEST_PROGRAMS !== undefined || runs('gcc', '--version'),
    reason: 'no gcc',
  },
  /** To build guests as a user would. */
  gcc: {
    probe: () => runs('gcc', '--version'),
    reason: 'no gcc',
  },
} satisfies Record<string, { probe: () => boolean; reason: string }>;

export type Capability = keyof typeof capabilities;

const probed = new Map<Capability, boolean>();

/** Whether this host has a capability. */
export function has(capability: Capability): boolean {
  let answer = probed.get(capability);
  if (answer === undefined) {
    answer = capabilities[capability].probe();
    probed.set(capability, answer);
  }
  return answer;
}
