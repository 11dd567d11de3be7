/** VMs under casemate's policy, enforced. */

import { spawnSync } from 'node:child_process';
import test from 'ava';
import { launch } from 'casemate';
import { getContext, mode, parseContext } from 'casemate/selinux';

const denied = () => spawnSync('dmesg', { encoding: 'utf8' }).stdout.match(/^.*avc: .*casemate.*$/gm) ?? [];

test.serial('SELinux is enforcing, and the caller is unconfined with all categories', (t) => {
  t.is(mode(), 'enforcing');
  t.is(getContext(), 'unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023');
});

test.serial('a VM runs in the domain, with a pair of categories of its own, and nothing is denied it', async (t) => {
  await using vm = await launch({ startPaused: true, jail: { selinux: 'enforcing' } });
  const { type, range } = parseContext(getContext(vm.pid));
  t.is(type, 'casemate_vmm_t');
  t.is(range?.low.categories.length, 2);
  t.deepEqual(range?.low, range?.high);
  const evidence = await vm.evidence();
  t.true(evidence.ok, JSON.stringify(evidence, undefined, 1));
  await vm.resume();
  t.like(await vm.exited, { reason: 'exit' });
  t.deepEqual(vm.denials, []);
  t.deepEqual(denied(), []);
});
