/** That the rig is what it is meant to be: an ordinary machine with an ordinary KVM. */
import { readFileSync, statSync } from 'node:fs';
import test from 'ava';
import { launch } from 'casemate';

test('the CPU has AMD’s virtualization, and kvm_amd drives it', (t) => {
  t.regex(readFileSync('/proc/cpuinfo', 'utf8'), /^flags.* svm /m);
  t.regex(readFileSync('/proc/cpuinfo', 'utf8'), /^flags.* npt /m);
  t.regex(readFileSync('/proc/modules', 'utf8'), /^kvm_amd /m);
  t.true(statSync('/dev/kvm').isCharacterDevice());
});

test('a VM runs in the strict jail', async (t) => {
  await using vm = await launch();
  t.is((await vm.exited).reason, 'exit');
});
