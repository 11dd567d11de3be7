/** The README's section on SELinux, followed word by word: CASEMATE_RIG_SELINUX=debian, a Debian without casemate's policy. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import ava from 'ava';
import { launch } from 'casemate';
import { checkContext, getContext, isEnabled } from 'casemate/selinux';
import { refused } from '../helpers/vm.js';

function isFresh(): boolean {
  if (!isEnabled()) return false;
  try {
    checkContext('system_u:system_r:casemate_vmm_t:s0');
    return false;
  } catch {
    return true;
  }
}

const title = 'the README’s lines install a policy under which VMs are labelled';
const reason = '(skipped: no SELinux, or casemate’s policy is installed already)';

(isFresh() ? ava.serial : ava.skip)(isFresh() ? title : `${title} ${reason}`, async (t) => {
  t.timeout(1_200_000); // the whole policy is built anew, by a processor that is emulated
  const error = await refused(t, { jail: { selinux: 'enforcing' } }, 'ERR_CASEMATE_SELINUX');
  t.is(error.step, 'policy');
  t.regex(error.remedy, /casemate selinux install/);
  {
    await using vm = await launch({ startPaused: true });
    const { layers } = await vm.evidence();
    t.regex(layers.find(({ layer }) => layer === 'selinux')?.observed ?? '', /no label: .*casemate's module/);
  }

  const readme = readFileSync('README.md', 'utf8');
  const [, block = ''] = /^### SELinux\n.*?^```sh\n(.*?)^```/ms.exec(readme) ?? [];
  const lines = block.trim().split('\n');
  t.is(lines.length, 3);
  for (const line of lines) {
    // The rig has no npm; this is what npx runs.
    const command = line.replace(/^npx casemate\b/, `${process.execPath} lib/cli/main.js`);
    console.log(`# ${line}`);
    const { status, stdout, stderr } = spawnSync('sh', ['-c', command], { encoding: 'utf8' });
    t.is(status, 0, `${line}\n${stdout}${stderr}`);
  }
  await using vm = await launch({ startPaused: true, jail: { selinux: 'enforcing' } });
  t.regex(getContext(vm.pid), /:casemate_vmm_t:s0:c\d+,c\d+$/);
  t.true((await vm.evidence()).ok);
});
