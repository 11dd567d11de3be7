/** A Node service in a domain of its own, which may launch VMs, and little else: docs/selinux.md. And callers that may not. */
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { fileContext } from 'casemate/selinux';
import { root } from '../../helpers/index.js';
import { initrd, testKernel } from '../../helpers/linux.js';
import { ifThere } from '../../helpers/proc.js';
import { hearDenials, run } from '../../helpers/selinux.js';

const folder = '/usr/lib/casemate-service';
const content = '/var/lib/casemate/content';
const images = '/var/lib/casemate/images';
const context = 'unconfined_u:unconfined_r:casemate_service_t:s0-s0:c0.c1023';

/** What a Node in that domain, or another one, says of a script's end; `through` is what starts it. */
function inService<T>(script: string, domain = context, through: readonly string[] = []): T {
  const [command = '', ...args] = [
    ...[...through, 'runcon', domain],
    ...[process.execPath, '--input-type=module', '--eval', script],
  ];
  const { status, stdout, stderr } = spawnSync(command, args, { cwd: folder, encoding: 'utf8' });
  if (status !== 0) throw new Error(`It ended with ${status}:\n${stderr}`);
  return JSON.parse(stdout) as T;
}

test.before(() => {
  // The rig has none.
  writeFileSync('/etc/shadow', 'root:*:::::::\n', { mode: 0o600 });
  run('restorecon', '-F', '/etc/shadow');
  mkdirSync(folder);
  for (const name of ['package.json', 'lib', 'prebuilds'])
    cpSync(join(root, name), join(folder, name), { recursive: true });
  run('restorecon', '-RF', folder);
  for (const name of ['casemate-vmm', 'unpack/casemate-unpack'])
    run('chcon', 'system_u:object_r:casemate_vmm_exec_t:s0', join(folder, 'prebuilds/linux-x64', name));
  for (const path of [content, images]) mkdirSync(path, { recursive: true });
  cpSync(testKernel.vmlinuz, join(content, 'vmlinuz'));
  const script =
    'dd if=/dev/vda of=/dev/null; ip addr add 10.11.12.2/24 dev eth0; ip link set eth0 up; ping -c 1 10.11.12.1; echo worked';
  const modules = ['virtio_mmio', 'virtio_blk', 'virtio_net'];
  writeFileSync(join(content, 'initrd'), initrd(testKernel, script, { modules }));
  writeFileSync(join(images, 'disk'), '');
  truncateSync(join(images, 'disk'), 4 << 20);
  run('restorecon', '-RF', '/var/lib/casemate');
});

test.serial('it launches VMs, with disks and networks, and nothing is denied it', async (t) => {
  const denials = hearDenials();
  const { isOk, output, reason } = inService<{ isOk: boolean; output: string; reason: string }>(`
    import { launch } from 'casemate';
    import { text } from 'node:stream/consumers';
    const jail = { selinux: 'enforcing' };
    await (await launch({ jail, limits: { memoryMib: 256 } })).kill();
    const vm = await launch({
      jail,
      kernel: '${content}/vmlinuz',
      initrd: '${content}/initrd',
      disks: [{ path: '${images}/disk' }],
      network: { tap: { addresses: ['10.11.12.1/24'] } },
      startTimeoutMs: 600_000,
    });
    const { ok: isOk, layers } = await vm.evidence();
    const output = await text(vm.console);
    const { reason } = await vm.exited;
    console.log(JSON.stringify({ isOk, output, reason }));
  `);
  t.true(isOk);
  t.regex(output, /worked/);
  t.is(reason, 'poweroff');
  t.deepEqual(await denials.all(), []);
});

test.serial('the file, process, network and program of somebody else are out of its reach', (t) => {
  const tries = inService<Record<string, string>>(`
    import { spawnSync } from 'node:child_process';
    import { mkdirSync, openSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
    import { createServer } from 'node:net';
    import { native } from '#lib/native.js';
    const outcomes = {};
    const attempt = (name, call) => {
      try { call(); outcomes[name] = 'done'; } catch (error) { outcomes[name] = error.code; }
    };
    attempt('read shadow', () => readFileSync('/etc/shadow'));
    attempt('read a home', () => readdirSync('/root'));
    attempt('write to /etc', () => writeFileSync('/etc/casemate-test', ''));
    attempt('write to its own code', () => writeFileSync('${folder}/lib/more.js', ''));
    attempt('write to a monitor', () => openSync('${folder}/prebuilds/linux-x64/casemate-vmm', 'r+'));
    attempt('make a folder in /var/lib', () => mkdirSync('/var/lib/casemate-test'));
    attempt('open a disk of the host', () => openSync('/dev/nvme0n1', 'r'));
    attempt('read the memory of init', () => openSync('/proc/1/mem', 'r'));
    attempt('read the environment of init', () => readFileSync('/proc/1/environ'));
    attempt('signal its parent', () => process.kill(process.ppid, 0));
    attempt('switch to permissive', () => writeFileSync('/sys/fs/selinux/enforce', '0'));
    attempt('change a boolean', () => writeFileSync('/sys/fs/selinux/booleans/casemate_debug', '1'));
    attempt('label what is not for VMs', () => native.selinuxSetFileContext(openSync('${folder}/package.json', 'r'), 'system_u:object_r:etc_t:s0'));
    for (const program of ['/bin/sh', '/usr/bin/node', '${folder}/prebuilds/linux-x64/casemate-vmm'])
      outcomes['run ' + program.split('/').at(-1)] = spawnSync(program, ['-c', 'true']).error?.code ?? 'done';
    outcomes.listen = await new Promise((resolve) => {
      const server = createServer().on('error', ({ code }) => resolve(code));
      server.listen(0, '127.0.0.1', () => { resolve('done'); server.close(); });
    });
    console.log(JSON.stringify(outcomes));
  `);
  t.is(Object.keys(tries).length, 17);
  const refusals = new Set(['EACCES', 'EPERM']);
  t.deepEqual(
    Object.entries(tries).filter(([, outcome]) => !refusals.has(outcome)),
    [],
  );
});

interface Refusals {
  readonly enforcing: { code: string; step: string; remedy: string };
  /** A launch that asks for as much as there is: its evidence of the label, or why there is no such VM. */
  readonly auto: { observed?: string; code?: string; step?: string; remedy?: string };
}

/** What comes of launches by a caller that may not; and that nothing of them is left, on the host or on the disk. */
function launchesOf(t: ExecutionContext, domain: string, through?: readonly string[]): Refusals {
  const disk = join(images, 'disk');
  const left = () => ({
    label: fileContext(disk),
    journal: readdirSync('/var/lib/casemate/relabelled'),
    cgroups: (ifThere(() => readdirSync('/sys/fs/cgroup/casemate')) ?? []).filter((name) => !name.includes('.')),
    monitors: processesWith('casemate_vmm_t'),
    callers: processesWith(domain.split(':')[2] as string),
    mounts: readFileSync('/proc/self/mountinfo', 'utf8'),
  });
  const before = left();
  const refusals = inService<Refusals>(
    `
    import { readdirSync } from 'node:fs';
    import { launch, warmUp } from 'casemate';
    const options = { kernel: '${content}/vmlinuz', disks: [{ path: '${disk}' }], limits: { memoryMib: 256 }, startPaused: true };
    const told = ({ code, step, remedy, message }) => ({ code, step, remedy, message });
    const refused = (selinux) => launch({ ...options, jail: { selinux } }).then((vm) => vm.kill(), told);
    const enforcing = await refused('enforcing');
    const descriptors = () => readdirSync('/proc/self/fd').length;
    const before = descriptors();
    for (let i = 0; i < 5; i += 1) await refused('enforcing');
    if (descriptors() !== before) throw new Error('descriptors are left');
    const auto = await launch({ startPaused: true }).then(async (vm) => {
      const { layers } = await vm.evidence();
      await vm.kill();
      return { observed: layers.find(({ layer }) => layer === 'selinux').observed };
    }, told);
    console.log(JSON.stringify({ enforcing, auto }));
  `,
    domain,
    through,
  );
  t.deepEqual(left(), before);
  t.truthy(refusals.enforcing.remedy);
  return refusals;
}

function processesWith(type: string): string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => ifThere(() => readFileSync(`/proc/${pid}/attr/current`, 'utf8'))?.includes(`:${type}:`));
}

test.serial('a caller in a domain that may not start monitors is told so, and nothing of it is left', (t) => {
  const { enforcing, auto } = launchesOf(t, 'unconfined_u:system_r:initrc_t:s0-s0:c0.c1023');
  t.like(enforcing, { code: 'ERR_CASEMATE_SELINUX', step: 'transition' });
  t.regex(enforcing.remedy, /casemate_caller/);
  t.regex(auto.observed ?? '', /^no label: The policy does not let \S+:initrc_t:\S+ start a process as .* transition/);
});

test.serial('a caller in a domain that may not open /dev/kvm is told so, and nothing of it is left', (t) => {
  const before = fileContext('/dev/kvm');
  run('chcon', '-t', 'fixed_disk_device_t', '/dev/kvm');
  t.teardown(() => run('chcon', before, '/dev/kvm'));
  const { enforcing, auto } = launchesOf(t, context);
  for (const error of [enforcing, auto]) {
    t.like(error, { code: 'ERR_CASEMATE_KVM_FORBIDDEN' });
    t.truthy(error.remedy);
  }
});

test.serial('a caller that may not ask the policy takes that for no answer, and nothing of it is left', (t) => {
  const secret = '/var/casemate-secret';
  writeFileSync(secret, '');
  run('chcon', '-t', 'shadow_t', secret);
  for (const file of ['status', 'context', 'access']) {
    const hidden = [
      'unshare',
      '--mount',
      'sh',
      '-c',
      `mount --bind ${secret} /sys/fs/selinux/${file} && exec "$@"`,
      'sh',
    ];
    const { enforcing, auto } = launchesOf(t, context, hidden);
    t.like(enforcing, { code: 'ERR_CASEMATE_SELINUX', step: 'policy' }, file);
    t.regex(enforcing.remedy, /casemate_service_t/);
    // As much as there is would be no label, and without one this domain may start nothing.
    t.like(auto, { code: 'ERR_CASEMATE_LAUNCH_STEP', step: 'exec' }, file);
  }
});
