/** A Linux guest under casemate's policy, enforced, and what a label costs. */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { launch } from 'casemate';
import { linux, testKernel } from '../../helpers/linux.js';
import { run as runVm } from '../../helpers/vm.js';

const folder = '/var/casemate-linux';
const enforcing = { selinux: 'enforcing' } as const;
const denied = () => spawnSync('dmesg', { encoding: 'utf8' }).stdout.match(/^.*avc: .*casemate.*$/gm) ?? [];

test.serial('a Linux boots, works and powers off, and nothing at all is denied it', async (t) => {
  const before = denied().length;
  mkdirSync(folder);
  const image = join(folder, 'vmlinuz');
  copyFileSync(testKernel.vmlinuz, image);
  const disk = join(folder, 'disk');
  writeFileSync(disk, '');
  truncateSync(disk, 4 << 20);
  const script = `
    dd if=/dev/vda of=/dev/null bs=64k
    dd if=/dev/zero of=/dev/vda bs=64k count=32
    i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i; done`;
  const modules = ['virtio_mmio', 'virtio_blk'];
  const { output, exit } = await runVm(
    linux(script, { kernel: image, modules, disks: [{ path: disk }], vcpus: 2, jail: enforcing }),
  );
  t.regex(output, /line 200/);
  t.is(exit.reason, 'poweroff');
  t.deepEqual(denied().slice(before), []);
});

test.serial('what a label costs, step by step', async (t) => {
  const median = (list: number[]) => list.sort((a, b) => a - b)[list.length >> 1] as number;
  const timed = async (selinux: 'enforcing' | 'off') => {
    const totals: number[] = [];
    const steps = new Map<string, number[]>();
    for (let i = 0; i < 25; i += 1) {
      await using vm = await launch({ jail: { selinux } });
      const { t0, t1, steps: list } = vm.timeline;
      totals.push(Number(t1 - t0) / 1e3);
      for (const { name, where, durationNs } of list) {
        const key = `${where} ${name}`;
        steps.set(key, [...(steps.get(key) ?? []), durationNs / 1e3]);
      }
    }
    return { total: median(totals), steps: Object.fromEntries([...steps].map(([name, list]) => [name, median(list)])) };
  };
  await timed('off');
  const result = { off: await timed('off'), enforcing: await timed('enforcing') };
  if (process.env.CASEMATE_RESULTS !== undefined) {
    writeFileSync(join(process.env.CASEMATE_RESULTS, 'selinux-costs.json'), JSON.stringify(result, undefined, 1));
  }
  t.true(result.enforcing.total > 0);
});
