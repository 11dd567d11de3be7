/** The agent in real guests: what it is there, as init and beside one. Commands and files by it: test/agent. */

import { spawn, spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { CasemateError, type LaunchOptions, launch, type Vm } from 'casemate';
import { cpio, type Entry, makeImage } from 'casemate/image';
import { type ExecutionContext, requires } from '../helpers/index.js';
import {
  agentModules,
  busyboxRoot,
  initrd,
  modulesFolder,
  says,
  systemdDisk,
  testKernel,
  testKernels,
} from '../helpers/linux.js';
import { patience } from '../helpers/proc.js';

// One after the other: where kernels can be tested at all, there is seldom memory for many.
const test = requires('kvm', 'kernels').serial;
const testDisk = requires('kvm', 'kernels', 'e2fsprogs').serial;

const commandLine = fileURLToPath(import.meta.resolve('#lib/cli/main.js'));
const drivers = ['virtio_mmio', 'vmw_vsock_virtio_transport'];

/** A guest of busybox whose init is the agent. */
function options(more: LaunchOptions = {}, kernel = testKernel, files: readonly Entry[] = []): LaunchOptions {
  return {
    kernel: kernel.vmlinux,
    initrd: cpio([...busyboxRoot(files), ...agentModules(kernel, drivers)]),
    agent: { startTimeoutMs: 60_000 * patience },
    startTimeoutMs: 60_000 * patience,
    timeoutMs: 240_000 * patience,
    ...more,
  };
}

async function output(vm: Vm, script: string): Promise<string> {
  const { stdout, stderr } = await vm.exec(['sh', '-c', script]);
  return `${stdout}${stderr}`.trim();
}

async function refused(t: ExecutionContext, call: PromiseLike<unknown>, code: string): Promise<CasemateError> {
  return (await t.throwsAsync(async () => await call, { instanceOf: CasemateError, code })) as CasemateError;
}

for (const kernel of testKernels) {
  test(`${kernel.name}: a command waits for the guest to have booted, prints, and ends with its code`, async (t) => {
    await using vm = await launch(options({}, kernel));
    const { code, stdout, stderr } = await vm.exec(['sh', '-c', 'uname -r; echo to stderr >&2; exit 7']);
    t.deepEqual([code, `${stdout}`, `${stderr}`], [7, `${kernel.version}\n`, 'to stderr\n']);
    t.deepEqual(await vm.powerOff(), { reason: 'poweroff' });
  });
}

/** A folder of the modules of the test's kernel, an initrd in which nothing is that the agent needs, and a disk's path. */
function withFiles(body: (files: { modules: string; root: string; disk: string }) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-agent-'));
  const [modules, root, disk] = [join(folder, 'modules'), join(folder, 'root.cpio'), join(folder, 'disk')];
  modulesFolder(testKernel, [...drivers, 'virtio_blk', 'ext4'], modules);
  writeFileSync(root, cpio(busyboxRoot()));
  return body({ modules, root, disk }).finally(() => rmSync(folder, { recursive: true }));
}

test('the modules that it needs are taken from the folder of its kernel', async (t) => {
  await withFiles(async ({ modules, root }) => {
    const agent = { modules, startTimeoutMs: 60_000 * patience };
    await using vm = await launch(options({ kernel: testKernel.vmlinuz, initrd: root, agent }));
    t.is(await output(vm, 'uname -r'), testKernel.version);
  });
});

test('the command line runs a command in a guest, prints what it prints, and ends as it does', async (t) => {
  await withFiles(async ({ modules, root }) => {
    const guest = ['--kernel', testKernel.vmlinuz, '--initrd', root, '--modules', modules];
    const cli = spawn(process.execPath, [commandLine, 'run', ...guest, '--', 'sh', '-c', 'cat; uname -r; exit 7'], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    cli.stdin.end('what is typed\n');
    const [stdout, [code]] = await Promise.all([text(cli.stdout), once(cli, 'exit')]);
    t.is(stdout, `what is typed\n${testKernel.version}\n`);
    t.is(code, 7);
  });
});

test('as init the agent has set up what programs expect', async (t) => {
  await using vm = await launch(options());
  const mounts = (await output(vm, 'cat /proc/mounts')).split('\n').map((line) => line.split(' ')[1]);
  for (const path of ['/proc', '/sys', '/sys/fs/cgroup', '/dev', '/dev/pts', '/dev/shm'])
    t.true(mounts.includes(path), path);
  t.is(await output(vm, 'cat /proc/1/comm'), 'agent');
  t.regex(await output(vm, 'ls -ld /tmp'), /^drwxrwxrwt/);
  t.is(await output(vm, 'cat /sys/class/net/lo/flags'), '0x9');
  t.is(await output(vm, 'ls /casemate/modules'), '');
  // Whoever leaves children behind leaves them to it.
  await output(vm, '(sleep 0.1 &) &');
  t.is(await output(vm, 'sleep 0.5; ps -o stat | grep -c Z || true'), '0');
});

test('commands have users, directories, variables, signals and terminals of the guest', async (t) => {
  await using vm = await launch(options());
  const { stdout } = await vm.exec(['sh', '-c', 'id -u; id -g; id -G; echo $HOME $USER $A; pwd'], {
    user: 'guest',
    cwd: '/tmp',
    env: { A: 'variable' },
  });
  t.is(`${stdout}`, '1000\n1001\n1001 1002\n/home guest variable\n/tmp\n');
  t.like(await vm.exec(['sh', '-c', 'kill -TERM $$']), { code: null, signal: 'SIGTERM' });
  const sleeper = vm.exec(['sleep', '1000']);
  await sleeper.started;
  sleeper.kill('SIGHUP');
  t.deepEqual(await sleeper.exited, { code: null, signal: 'SIGHUP' });
  const terminal = await vm.exec(['sh', '-c', 'tty; stty size'], { tty: { columns: 111, rows: 22 }, user: 'guest' });
  t.is(`${terminal.stdout}`, '/dev/pts/0\r\n22 111\r\n');
  const error = await refused(t, vm.exec(['nothing']), 'ERR_CASEMATE_GUEST_SYSTEM');
  t.like(error, { errno: -2, syscall: 'execve' });
});

test('megabytes go in and out, as streams and as files', async (t) => {
  await using vm = await launch(options({ memoryMib: 512 }));
  const bytes = randomBytes(8_000_000);
  const { stdout } = await vm.exec(['cat'], { stdin: bytes });
  t.true(stdout.equals(bytes));
  await vm.writeFile('/tmp/file', bytes, { mode: 0o600 });
  const sum = createHash('sha256').update(bytes).digest('hex');
  t.is(await output(vm, 'sha256sum </tmp/file; ls -l /tmp/file | head -c 10'), `${sum}  -\n-rw-------`);
  t.true((await vm.readFile('/tmp/file')).equals(bytes));
  t.is((await refused(t, vm.readFile('/no/file'), 'ERR_CASEMATE_GUEST_SYSTEM')).syscall, 'open');
});

test('fifty commands run at once', async (t) => {
  await using vm = await launch(options());
  const all = await Promise.all(Array.from({ length: 50 }, (_, i) => vm.exec(['sh', '-c', `echo ${i}; exit ${i}`])));
  t.deepEqual(
    all.map(({ code, stdout }) => [code, `${stdout}`]),
    all.map((_, i) => [i, `${i}\n`]),
  );
});

test('beside an init of the guest it runs too', async (t) => {
  const script = 'ln -s busybox /bin/poweroff; ln -s busybox /bin/cat; echo init runs; while :; do sleep 1000; done';
  await using vm = await launch(
    options({
      initrd: [initrd(testKernel, script), cpio(agentModules(testKernel, drivers))],
    }),
  );
  await says(vm, 'init runs');
  t.is(`${(await vm.exec(['cat', '/proc/1/comm'])).stdout}`, 'init\n');
  // Without -f it would ask process 1, which is a shell here.
  await refused(t, vm.exec(['poweroff', '-f']), 'ERR_CASEMATE_AGENT');
  t.deepEqual(await vm.exited, { reason: 'poweroff' });
});

testDisk(
  'without an initrd a disk is the root, and the agent its init; what was written is there afterwards',
  async (t) => {
    await withFiles(async ({ modules, disk }) => {
      await makeImage({ add: busyboxRoot(), to: disk, format: 'ext4' });
      const { initrd: _, ...rest } = options({
        kernel: testKernel.vmlinuz,
        disks: [{ path: disk }],
        agent: { modules, startTimeoutMs: 60_000 * patience },
      });
      await using vm = await launch(rest);
      t.regex(await output(vm, 'cat /proc/mounts'), /^\/dev\/vda \/ ext4 rw,/m);
      t.is(await output(vm, 'cat /proc/1/comm'), 'agent');
      await vm.writeFile('/root.txt', 'kept\n');
      t.deepEqual(await vm.powerOff(), { reason: 'poweroff' });
      const said = (command: string, ...args: string[]) => spawnSync(command, args, { encoding: 'utf8' });
      t.is(said('debugfs', '-R', 'cat /root.txt', disk).stdout, 'kept\n');
      // Clean, not only repairable.
      t.is(said('e2fsck', '-f', '-n', disk).status, 0);
    });
  },
);

test('beside systemd it runs too, which ends as it is asked to', async (t) => {
  await withFiles(async ({ modules, disk }) => {
    systemdDisk(disk);
    const { initrd: _, ...rest } = options({
      disks: [{ path: disk }],
      memoryMib: 512,
      cmdline: 'console=ttyS0 quiet panic=-1 pci=off root=/dev/vda rw init=/sbin/init',
      agent: { modules, startTimeoutMs: 60_000 * patience },
    });
    await using vm = await launch(rest);
    vm.console.resume();
    t.regex(await output(vm, 'readlink /proc/1/exe'), /systemd$/);
    // Its last word on the start, once it can be asked: "degraded" where some unit of the distribution has failed.
    const state = 'state=$(systemctl is-system-running --wait 2>/dev/null)';
    const started = await output(
      vm,
      `until ${state}; [ "$state" = running ] || [ "$state" = degraded ]; do sleep 0.2; done; echo $state`,
    );
    t.regex(started, /^(running|degraded)$/);
    t.is(await output(vm, 'systemctl show --property=ActiveState multi-user.target'), 'ActiveState=active');
    t.deepEqual(await vm.powerOff(), { reason: 'poweroff' });
  });
});

test('a request that its guest does not live to answer is an error, and later ones too', async (t) => {
  await using vm = await launch(options());
  const sleeper = vm.exec(['sleep', '1000']);
  await sleeper.started;
  const killed = vm.kill();
  await refused(t, sleeper, 'ERR_CASEMATE_AGENT');
  await killed;
  await refused(t, vm.exec(['true']), 'ERR_CASEMATE_CLOSED');
  await refused(t, vm.readFile('/etc/passwd'), 'ERR_CASEMATE_CLOSED');
});

test('an agent that is killed is an error to all that it ran, and to what comes later; its guest goes on', async (t) => {
  const script = 'echo init runs; while read line; do echo "heard $line"; done';
  await using vm = await launch(
    options({ initrd: [initrd(testKernel, script), cpio(agentModules(testKernel, drivers))] }),
  );
  await says(vm, 'init runs');
  const sleeper = vm.exec(['/bin/busybox', 'sleep', '1000']);
  await sleeper.started;
  const kill =
    'cd /proc; for process in [0-9]*; do grep -q ^agent$ $process/comm && kill -9 $process; done; sleep 1000';
  await refused(t, vm.exec(['/bin/busybox', 'sh', '-c', kill]), 'ERR_CASEMATE_AGENT');
  await refused(t, sleeper, 'ERR_CASEMATE_AGENT');
  await refused(t, vm.readFile('/init'), 'ERR_CASEMATE_AGENT');
  vm.console.write('that\n');
  t.regex(await says(vm, 'heard that'), /heard that/);
  t.is(vm.state, 'running');
});

test('an agent that does not come is an error, after its time', async (t) => {
  // Without the driver for vsock.
  const initrdWithout = cpio(busyboxRoot());
  await using vm = await launch(options({ initrd: initrdWithout, agent: { startTimeoutMs: 5000 * patience } }));
  await refused(t, vm.exec(['true']), 'ERR_CASEMATE_AGENT');
  t.is(vm.state, 'running');
});

test('the guest ends as poweroff and reboot ask the agent to', async (t) => {
  for (const reason of ['poweroff', 'reboot'] as const) {
    await using vm = await launch(options());
    await vm.exec([reason]).then(undefined, () => undefined);
    t.deepEqual(await vm.exited, { reason });
  }
});
