/** VMs under casemate's policy, enforced. */
import test from 'ava';
import { launch } from 'casemate';
import { getContext, mode, parseContext } from 'casemate/selinux';
import { within } from '../../helpers/proc.js';
import { hearDenials } from '../../helpers/selinux.js';

const enforcing = { jail: { selinux: 'enforcing' } } as const;

test.serial('SELinux is enforcing, and the caller is unconfined with all categories', (t) => {
  t.is(mode(), 'enforcing');
  t.is(getContext(), 'unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023');
});

test.serial('a VM runs in the domain, with a pair of categories of its own, and nothing is denied it', async (t) => {
  const denials = hearDenials();
  await using vm = await launch({ startPaused: true, ...enforcing });
  const { type, range } = parseContext(getContext(vm.pid));
  t.is(type, 'casemate_vmm_t');
  t.is(range?.low.categories.length, 2);
  t.deepEqual(range?.low, range?.high);
  const evidence = await vm.evidence();
  t.true(evidence.ok, JSON.stringify(evidence, undefined, 1));
  await vm.resume();
  t.like(await vm.exited, { reason: 'exit' });
  t.deepEqual(vm.denials, []);
  t.deepEqual(await denials.all(), []);
});

test.serial('a pair that the kernel knows is used again once its VM is gone, and no sooner', async (t) => {
  const contexts = new Set<string>();
  const again = await within(10_000, async () => {
    await using one = await launch({ startPaused: true, ...enforcing });
    await using two = await launch({ startPaused: true, ...enforcing });
    const [first, second] = [getContext(one.pid), getContext(two.pid)];
    t.not(first, second);
    const isKnown = contexts.has(first) || contexts.has(second);
    contexts.add(first).add(second);
    return isKnown;
  });
  t.true(again);
});
