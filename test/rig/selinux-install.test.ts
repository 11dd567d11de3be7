/** The README's section on SELinux, followed word by word: CASEMATE_RIG_SELINUX=debian, a Debian without casemate's policy. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import ava, { type ExecutionContext } from 'ava';
import { launch } from 'casemate';
import {
  checkContext,
  fileContext,
  getContext,
  isEnabled,
  type SelinuxFinding,
  type SelinuxStatus,
} from 'casemate/selinux';
import { builtFile } from '#lib/native.js';
import { kernel, loop, print } from '../helpers/kernels.js';
import { linux, testKernel } from '../helpers/linux.js';
import { OtherNode } from '../helpers/node.js';
import { within } from '../helpers/proc.js';
import { refused, run } from '../helpers/vm.js';

function isFresh(): boolean {
  if (!isEnabled()) return false;
  try {
    checkContext('system_u:system_r:casemate_vmm_t:s0');
    return false;
  } catch {
    return true;
  }
}

const cli = 'lib/cli/main.js';

/** What the command prints; each time a process of its own, which knows nothing from before. */
function casemate(...args: string[]): string {
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, 'selinux', ...args], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`casemate selinux ${args.join(' ')} ended with ${status}:\n${stdout}${stderr}`);
  return stdout;
}

const typeOf = (context: string): string | undefined => context.split(':')[2];

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
    const command = line.replace(/^npx casemate\b/, `${process.execPath} ${cli}`);
    console.log(`# ${line}`);
    const { status, stdout, stderr } = spawnSync('sh', ['-c', command], { encoding: 'utf8' });
    t.is(status, 0, `${line}\n${stdout}${stderr}`);
  }
  {
    await using vm = await launch({ startPaused: true, jail: { selinux: 'enforcing' } });
    t.regex(getContext(vm.pid), /:casemate_vmm_t:s0:c\d+,c\d+$/);
    t.true((await vm.evidence()).ok);
  }
  // A kernel as its distribution has it, which a program of the package unpacks.
  mkdirSync('/var/casemate');
  copyFileSync(testKernel.vmlinuz, '/var/casemate/vmlinuz');
  const { output } = await run(
    linux('echo works', { kernel: '/var/casemate/vmlinuz', jail: { selinux: 'enforcing' } }),
  );
  t.regex(output, /works/);

  await commands(t);
});

/** What else the command does, upon the policy that it has installed. */
async function commands(t: ExecutionContext): Promise<void> {
  const status = JSON.parse(casemate('status', '--json')) as SelinuxStatus;
  t.is(status.mode, 'enforcing');
  t.is(typeOf(status.label ?? ''), 'casemate_vmm_t');
  const findings = JSON.parse(casemate('check', '--json')) as SelinuxFinding[];
  t.deepEqual(
    findings.filter(({ ok }) => !ok),
    [],
  );

  // It has been killed while its VM ran, and the label of a disk stayed.
  const disk = '/var/casemate/disk';
  writeFileSync(disk, Buffer.alloc(1 << 16));
  const before = fileContext(disk);
  const other = new OtherNode(
    `import { launch } from 'casemate';
     globalThis.vm = await launch({ kernel: Buffer.from(process.argv[1], 'hex'), startPaused: true,
       disks: [{ path: process.argv[2] }], jail: { selinux: 'enforcing' } });
     tell('launched');
     setInterval(() => {}, 1e9);`,
    { args: [kernel(print('x'), loop).toString('hex'), disk] },
  );
  await other.told();
  t.is(typeOf(fileContext(disk)), 'casemate_image_t');
  t.is(casemate('restore'), '', 'its VM is alive');
  await other.kill();
  t.true(await within(10_000, () => casemate('restore') === `${disk}\n`));
  t.is(fileContext(disk), before);

  const following = spawn(process.execPath, [cli, 'selinux', 'denials'], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => following.kill('SIGKILL'));
  const lines = createInterface({ input: following.stdout })[Symbol.asyncIterator]();
  t.regex((await lines.next()).value, /^Denials from now on, by audit/);
  // No program but the monitor is a way into its domain.
  spawnSync('runcon', ['unconfined_u:unconfined_r:casemate_vmm_t:s0:c1,c2', '/bin/true']);
  t.regex(
    (await lines.next()).value,
    /^denied: A monitor \(s0:c1,c2, process \d+\) tried to be started from .*bin_t:s0$/,
  );
  t.regex((await lines.next()).value, /granted by \(allow casemate_vmm_t bin_t \(file \(entrypoint\)\)\)$/);
  t.regex((await lines.next()).value, /^ {2}! Every program with that label/);
  following.kill('SIGINT');
  t.deepEqual(await once(following, 'exit'), [0, null]);

  casemate('remove');
  const after = JSON.parse(casemate('status', '--json')) as SelinuxStatus;
  t.is(after.label, undefined);
  t.regex(after.unlabelled ?? '', /casemate's module/);
  for (const name of ['casemate-vmm', 'casemate-guest-hello.elf'])
    t.notRegex(typeOf(fileContext(builtFile(name))) ?? '', /casemate/);
}
