/** That the rig is what it is meant to be, an ordinary machine with an ordinary KVM, and that a VM runs in it. */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import test from 'ava';
import { launch } from 'casemate';
import { builtFile } from '#lib/native.js';
import { ownCgroup } from '../helpers/proc.js';

const isRoot = process.geteuid?.() === 0;

test('the CPU has AMD’s virtualization with nested paging, and kvm_amd drives it', (t) => {
  t.regex(readFileSync('/proc/cpuinfo', 'utf8'), /^flags\s.*\bsvm\b/m);
  t.regex(readFileSync('/proc/modules', 'utf8'), /^kvm_amd /m);
  t.is(readFileSync('/sys/module/kvm_amd/parameters/npt', 'utf8'), 'Y\n');
});

test('cgroup v2 is mounted, with its controllers, and the caller has a cgroup of its own', (t) => {
  const delegated = `/sys/fs/cgroup/${isRoot ? 'root' : 'user'}`;
  const controllers = readFileSync(`${delegated}/cgroup.controllers`, 'utf8').trim().split(' ');
  for (const controller of ['cpu', 'io', 'memory', 'pids']) t.true(controllers.includes(controller), controller);
  t.is(ownCgroup(), `${delegated}/main`);
});

test('an ordinary user is in group kvm, and nothing else', (t) => {
  t.deepEqual(process.getgroups?.(), isRoot ? [0] : [104, 1000]);
});

test('the package is the one that npm packed: its native part is prebuilt', (t) => {
  t.regex(builtFile('casemate.node'), /^\/casemate\/prebuilds\//);
  t.regex(builtFile('casemate-vmm'), /^\/casemate\/prebuilds\//);
  t.false(existsSync('/casemate/binding.gyp'));
});

test('the built-in guest runs in the strict jail, and every layer is seen', async (t) => {
  await using vm = await launch({ startPaused: true });
  const evidence = await vm.evidence();
  t.true(evidence.ok, JSON.stringify(evidence));
  await vm.resume();
  t.is((await vm.exited).reason, 'exit');
});

const casemate = (...args: string[]) =>
  spawnSync(process.execPath, ['/casemate/lib/cli/main.js', ...args], { encoding: 'utf8' });

test('the doctor finds everything that is needed', (t) => {
  const { status, stdout } = casemate('doctor', '--json');
  const { ok, checks } = JSON.parse(stdout) as { ok: boolean; checks: { status: string }[] };
  t.deepEqual(
    checks.filter((check) => check.status === 'fail'),
    [],
  );
  t.true(ok);
  t.is(status, 0);
});

test('the command line runs the built-in guest', (t) => {
  const { status, stdout } = casemate('run');
  t.regex(stdout, /hello/i);
  t.is(status, 0);
});
