/** Other ways to start something: a do-nothing static program in a sandbox, or a guest in QEMU. */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import type { Measured } from '../results.js';
import { built, inFreshNode, lacks, needsRoot, output, type Subject, valuesOfLines } from '../subject.js';

const family = 'peer';

/** Starts a command by bench/peers/start.c, without Node in between. */
async function started(
  launches: number,
  command: readonly string[],
  around: readonly string[] = [],
): Promise<Measured> {
  const whole = [...around, built('start'), String(launches), ...command];
  const lines = await output(whole[0] as string, whole.slice(1));
  return { values: valuesOfLines(lines, ['t1', 't2', 'ended']) };
}

const program = built('nothing-stamped');

/** All namespaces, no capabilities, a root with nothing but the program. */
export const bubblewrap = (inside: string): string[] => [
  'bwrap',
  ...['--unshare-all', '--die-with-parent', '--new-session', '--cap-drop', 'ALL'],
  ...['--ro-bind', inside, '/program', '--chdir', '/', '/program'],
];

const unshare = [
  'unshare',
  ...['--user', '--mount', '--uts', '--ipc', '--net', '--pid', '--cgroup'],
  '--fork',
  program,
];

/** crun's own default container (crun spec) around the program, in a folder that crun finds it in. */
function writeBundle(): string {
  const folder = built('bundle');
  mkdirSync(`${folder}/rootfs`, { recursive: true });
  copyFileSync(program, `${folder}/rootfs/program`);
  const path = `${folder}/config.json`;
  rmSync(path, { force: true });
  const { status, stderr } = spawnSync('crun', ['spec'], { cwd: folder, encoding: 'utf8' });
  if (status !== 0) throw new Error(`crun spec: ${stderr}`);
  const config = JSON.parse(readFileSync(path, 'utf8'));
  config.process = { ...config.process, terminal: false, args: ['/program'] };
  writeFileSync(path, JSON.stringify(config));
  return folder;
}

/**
 * crun refuses hosts with version 1 of cgroups beside version 2, so it sees a mount namespace with version 2 alone.
 * Without a cgroup of its own: ours has none either.
 */
const withCgroup2 = ['unshare', '--mount', 'sh', '-c', 'mount -t cgroup2 none /sys/fs/cgroup && exec "$0" "$@"'];

/**
 * 64 KiB of firmware that are the guest: at the reset vector, the doorbell (out 0xe0, al), then the end (out 0xf4, al).
 * No real firmware and no kernel: the least that QEMU can run.
 */
function writeFirmware(): string {
  const path = built('doorbell.bin');
  const image = Buffer.alloc(64 * 1024, 0xf4);
  Buffer.from('b000e6e0e6f4f4', 'hex').copy(image, 0xfff0);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, image);
  return path;
}

const qemu = 'qemu-system-x86_64';

const qemuCommand = (firmware: string): string[] => [
  qemu,
  ...['-M', 'microvm,rtc=off,pit=off,pic=off,isa-serial=off', '-accel', 'kvm', '-m', '16'],
  // Some paravirtual KVMs refuse the MSR that this feature comes with.
  ...['-cpu', 'host,-arch-capabilities'],
  ...['-nodefaults', '-no-user-config', '-display', 'none', '-bios', firmware],
  ...['-chardev', 'file,id=doorbell,path=/proc/self/fd/3', '-device', 'isa-debugcon,iobase=0xe0,chardev=doorbell'],
  ...['-device', 'isa-debug-exit,iobase=0xf4,iosize=1'],
];

export const peerSubjects: readonly Subject[] = [
  {
    name: 'spawn',
    title: 'child_process.spawn of a do-nothing program',
    family,
    missing: () => lacks('make', 'cc'),
    trial: ({ launches }) => inFreshNode({ kind: 'spawn', launches, program }),
  },
  {
    name: 'posix-spawn',
    title: 'posix_spawn of a do-nothing program',
    family,
    missing: () => lacks('make', 'cc'),
    trial: ({ launches }) => started(launches, [program]),
  },
  {
    name: 'unshare',
    title: 'unshare(1), seven namespaces',
    family,
    missing: () => lacks('unshare', 'cc'),
    trial: ({ launches }) => started(launches, unshare),
  },
  {
    name: 'bubblewrap',
    title: 'bubblewrap --unshare-all',
    family,
    missing: () => lacks('bwrap', 'cc'),
    trial: ({ launches }) => started(launches, bubblewrap(program)),
  },
  {
    name: 'crun',
    title: 'crun run, its default container',
    family,
    missing: () => needsRoot() ?? lacks('crun', 'unshare', 'cc'),
    trial: ({ launches }) => {
      const command = ['crun', '--cgroup-manager=disabled', 'run', '--preserve-fds', '1', '--bundle', writeBundle()];
      return started(launches, [...command, 'casemate-bench'], withCgroup2);
    },
  },
  {
    name: 'qemu',
    title: 'QEMU microvm, a guest of three instructions',
    family,
    missing: () => lacks(qemu, 'cc'),
    trial: ({ launches }) => started(Math.min(10, launches), qemuCommand(writeFirmware())),
  },
];
