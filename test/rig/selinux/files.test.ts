/** What becomes of files' labels, and of a host that changes, under casemate's policy enforced. */
import { spawn as spawnChild, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { type LaunchOptions, launch } from 'casemate';
import { fileContext, getContext, restoreLabels } from 'casemate/selinux';
import { builtFile } from '#lib/native.js';
import { root } from '../../helpers/index.js';
import { kernel, loop, print } from '../../helpers/kernels.js';
import { testKernel } from '../../helpers/linux.js';
import { tellsOf } from '../../helpers/node.js';
import { within } from '../../helpers/proc.js';
import { run } from '../../helpers/selinux.js';
import { refused } from '../../helpers/vm.js';

const folder = '/var/casemate-files';
const journal = '/var/lib/casemate/relabelled';
const enforcing = { selinux: 'enforcing' } as const;
let count = 0;

function file(size = 1 << 20): string {
  count += 1;
  const path = join(folder, `file-${count}`);
  writeFileSync(path, 'x');
  truncateSync(path, size);
  return path;
}

const waiting = (options: LaunchOptions): LaunchOptions => ({
  kernel: kernel(print('x'), loop),
  startPaused: true,
  jail: enforcing,
  ...options,
});

test.before(() => mkdirSync(folder));

const typeOf = (context: string) => context.split(':')[2];

test.serial('a disk has the VM’s categories while it runs, and its own label again after', async (t) => {
  const [path, shared] = [file(), file()];
  const before = fileContext(path);
  {
    await using vm = await launch(waiting({ disks: [{ path }, { path: shared, readOnly: true }] }));
    t.is(fileContext(path), getContext(vm.pid).replace(/^.*casemate_vmm_t/, 'unconfined_u:object_r:casemate_image_t'));
    t.is(typeOf(fileContext(shared)), 'casemate_content_t');
    t.is(readdirSync(journal).length, 1);
    t.true((await vm.evidence()).ok);
    t.deepEqual(vm.denials, []);
  }
  t.is(fileContext(path), before);
  t.deepEqual(readdirSync(journal), []);
});

test.serial('a launch that fails leaves no label, no lease and no journal', async (t) => {
  const path = file();
  const before = fileContext(path);
  await refused(t, waiting({ disks: [{ path }, { path: join(folder, 'none') }] }), 'ERR_CASEMATE_FILE');
  await refused(t, waiting({ kernel: Buffer.from('no kernel'), disks: [{ path }] }), 'ERR_CASEMATE_GUEST_IMAGE');
  t.is(fileContext(path), before);
  t.deepEqual(readdirSync(journal), []);
});

test.serial('what a Node that was killed has left on a disk is restored, once the VM is gone', async (t) => {
  const path = file();
  const before = fileContext(path);
  const script = `
    import { launch } from 'casemate';
    const vm = await launch({ kernel: Buffer.from(process.argv[1], 'hex'), startPaused: true,
      disks: [{ path: process.argv[2] }], jail: { selinux: 'enforcing' } });
    console.log('launched');
  `;
  const image = kernel(print('x'), loop).toString('hex');
  const child = spawnChild(process.execPath, ['--input-type=module', '--eval', script, image, path], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  t.is(typeOf(fileContext(path)), 'casemate_image_t');
  t.deepEqual(restoreLabels(), [], 'its VM is alive');
  child.kill('SIGKILL');
  await once(child, 'close');
  // The monitor sees that its control socket is closed, and is gone soon.
  await within(10_000, () => {
    restoreLabels();
    return fileContext(path) === before;
  });
  t.is(fileContext(path), before);
  t.deepEqual(readdirSync(journal), []);
});

test.serial(
  'files on a filesystem that is read-only are an error that says so, unless a monitor may read them',
  async (t) => {
    // The rig's kernels lie on one, without labels.
    const error = await refused(t, { kernel: testKernel.vmlinux, jail: enforcing }, 'ERR_CASEMATE_SELINUX');
    t.like(error, { step: 'options.kernel', errno: -30 });
    t.regex(error.remedy, /context=/);
  },
);

test.serial('a filesystem that stores no labels is an error that says so', async (t) => {
  // As of network filesystems: all that is in there has the label of its mount.
  const mounted = join(folder, 'mounted');
  mkdirSync(mounted);
  run('mount', '-t', 'tmpfs', '-o', 'context=system_u:object_r:var_t:s0', 'none', mounted);
  t.teardown(() => run('umount', mounted));
  const path = join(mounted, 'disk');
  writeFileSync(path, Buffer.alloc(4096));
  for (const readOnly of [false, true]) {
    const error = await refused(t, waiting({ disks: [{ path, readOnly }] }), 'ERR_CASEMATE_SELINUX');
    t.like(error, { step: 'options.disks[0]', errno: -95 });
    t.regex(error.remedy, /context=/);
  }
  t.deepEqual(readdirSync(journal), []);
});

/** A small ext4 that a test has for itself, whose inodes have no room for labels: these take a block each, unless alike. */
function ext4(t: ExecutionContext): string {
  const [image, mounted] = [file(4 << 20), join(folder, `ext4-${count}`)];
  mkdirSync(mounted);
  run('mke2fs', '-q', '-t', 'ext4', '-I', '128', '-m', '0', image);
  run('modprobe', 'loop');
  run('mount', '-o', 'loop', image, mounted);
  t.teardown(() => run('umount', mounted));
  return mounted;
}

test.serial('a disk on a full filesystem is an error that says so, and keeps its label', async (t) => {
  const mounted = ext4(t);
  const path = join(mounted, 'disk');
  writeFileSync(path, Buffer.alloc(4096));
  const before = fileContext(path);
  // Its block is shared with others of the same label. Data leaves some blocks, which new labels take one by one.
  const others = Array.from({ length: 400 }, (_, i) => join(mounted, `other-${i}`));
  for (const other of others) writeFileSync(other, '');
  t.throws(() => writeFileSync(join(mounted, 'rest'), Buffer.alloc(8 << 20)), { code: 'ENOSPC' });
  const label = (i: number) => `system_u:object_r:casemate_image_t:s0:c${i},c1023`;
  const last = others.findIndex((other, i) => spawnSync('chcon', [label(i), other]).status !== 0);
  t.true(last >= 0);
  const error = await refused(t, waiting({ disks: [{ path }] }), 'ERR_CASEMATE_SELINUX');
  t.like(error, { step: 'options.disks[0]', errno: -28 });
  t.regex(error.remedy, /no room for a label/);
  t.is(fileContext(path), before);
  t.deepEqual(readdirSync(journal), []);
});

test.serial('a disk on a read-only filesystem is an error that says so', async (t) => {
  const mounted = ext4(t);
  const path = join(mounted, 'disk');
  writeFileSync(path, Buffer.alloc(4096));
  // As of what no monitor may read.
  run('chcon', 'system_u:object_r:user_home_t:s0', path);
  run('mount', '-o', 'remount,ro', mounted);
  const writable = await refused(t, waiting({ disks: [{ path }] }), 'ERR_CASEMATE_FILE');
  t.is(writable.errno, -30);
  const error = await refused(t, waiting({ disks: [{ path, readOnly: true }] }), 'ERR_CASEMATE_SELINUX');
  t.like(error, { step: 'options.disks[0]', errno: -30 });
  t.regex(error.remedy, /read-only.*context=/);
  t.is(typeOf(fileContext(path)), 'user_home_t');
  t.deepEqual(readdirSync(journal), []);
});

test.serial('contexts that the policy does not know or let start are refused by name', async (t) => {
  const label = (context: string) => ({ jail: { selinux: { context } } });
  const cases = [
    ['checkContext', 'unconfined_u:unconfined_r:no_such_t:s0:c1,c2'],
    ['transition', 'system_u:system_r:sshd_t:s0:c1,c2'],
  ] as const;
  for (const [step, context] of cases) {
    const error = await refused(t, label(context), 'ERR_CASEMATE_SELINUX');
    t.is(error.step, step, error.message);
  }
});

test.serial('a range of three categories is enough for three VMs, and the fourth is told', async (t) => {
  const options = { startPaused: true, jail: { selinux: { categories: 'c5.c7' } } };
  const vms = await Promise.all([launch(options), launch(options), launch(options)]);
  t.is(new Set(vms.map((vm) => getContext(vm.pid))).size, 3);
  t.is((await refused(t, options, 'ERR_CASEMATE_SELINUX')).step, 'categories');
  await Promise.all(vms.map((vm) => vm.kill()));
  await using vm = await launch(options);
  t.is(vm.state, 'paused');
});

test.serial('a caller whose context has no categories is told that it can give none', async (t) => {
  const error = await tellsOf<{ code: string; step: string; remedy: string }>(
    `import { launch } from 'casemate';
     await launch({ jail: { selinux: 'enforcing' } }).catch((error) => tell(failure(error)));`,
    { through: ['runcon', '-l', 's0'] },
  );
  t.like(error, { code: 'ERR_CASEMATE_SELINUX', step: 'categories' });
  t.regex(error.remedy, /runcon -l s0-s0:c0\.c1023/);
});

test.serial('a monitor’s binary with another label does not start, and nothing is left', async (t) => {
  const binary = builtFile('casemate-vmm');
  run('chcon', '-t', 'bin_t', binary);
  t.teardown(() => run('chcon', '-t', 'casemate_vmm_exec_t', binary));
  const error = await refused(t, { jail: enforcing }, 'ERR_CASEMATE_LAUNCH_STEP');
  t.like(error, { step: 'exec', errno: -13 });
  t.regex(error.remedy, /casemate selinux check/);
});

const modeIs = (value: 0 | 1) => run('setenforce', String(value));

test.serial(
  'a host that is switched to permissive is an event for its VMs, or their end',
  async (t: ExecutionContext) => {
    t.teardown(() => modeIs(1));
    await using told = await launch({ startPaused: true, jail: enforcing });
    await using ended = await launch({ startPaused: true, jail: { selinux: { onModeChange: 'end' } } });
    const event = once(told, 'selinux-mode');
    modeIs(0);
    t.deepEqual(await event, ['permissive']);
    t.is((await ended.exited).reason, 'killed');
    t.false((await told.evidence()).ok);
    t.is((await refused(t, { jail: enforcing }, 'ERR_CASEMATE_SELINUX')).step, 'mode');
    await using lenient = await launch({ startPaused: true, jail: { selinux: 'permissive-ok' } });
    t.is(typeOf(getContext(lenient.pid)), 'casemate_vmm_t');
    t.true((await lenient.evidence()).ok);
    const back = once(told, 'selinux-mode');
    modeIs(1);
    t.deepEqual(await back, ['enforcing']);
    t.true((await told.evidence()).ok);
  },
);
