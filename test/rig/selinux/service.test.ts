/** A Node service in a domain of its own, which may launch VMs, and little else: docs/selinux.md. */
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { root } from '../../helpers/index.js';
import { initrd, testKernel } from '../../helpers/linux.js';
import { hearDenials, run } from '../../helpers/selinux.js';

const folder = '/usr/lib/casemate-service';
const content = '/var/lib/casemate/content';
const images = '/var/lib/casemate/images';
const context = 'unconfined_u:unconfined_r:casemate_service_t:s0-s0:c0.c1023';

/** What a Node in that domain says of a script's end. */
function inService<T>(script: string): T {
  const args = [context, process.execPath, '--input-type=module', '--eval', script];
  const { status, stdout, stderr } = spawnSync('runcon', args, { cwd: folder, encoding: 'utf8' });
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
