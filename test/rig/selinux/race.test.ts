/** Categories under contention: processes that launch VMs at the same time, with hardly more pairs than there are VMs. */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { OtherNode } from '../../helpers/node.js';

/** Each VM's pair is a file that may not be there yet. Ten categories are 45 pairs, and up to 40 VMs live. */
const script = `
  import { closeSync, openSync, rmSync } from 'node:fs';
  import { join } from 'node:path';
  import { launch } from 'casemate';
  import { getContext } from 'casemate/selinux';
  const [folder, launches] = process.argv.slice(1);
  const options = { console: 'ignore', startPaused: true, startTimeoutMs: 600_000, jail: { selinux: { categories: 'c0.c9' } } };
  const held = [];
  let twice = 0;
  const drop = async ({ vm, mark }) => { rmSync(mark); await vm.kill(); };
  for (let i = 0; i < Number(launches); i += 1) {
    if (held.length > 4) await drop(held.splice(Math.floor(Math.random() * held.length), 1)[0]);
    const vm = await launch(options);
    const mark = join(folder, getContext(vm.pid).split(':').at(-1));
    try { closeSync(openSync(mark, 'wx')); held.push({ vm, mark }); } catch { twice += 1; await vm.kill(); }
  }
  for (const one of held) await drop(one);
  tell(twice);`;

test.serial('of 1000 launches by 8 processes none has a pair that another VM has at the time', async (t) => {
  t.timeout(1_200_000);
  const folder = mkdtempSync(join(tmpdir(), 'casemate-race-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const racers = Array.from({ length: 8 }, () => new OtherNode(script, { args: [folder, '125'] }));
  for (const racer of racers) t.teardown(() => racer.kill());
  const twice = await Promise.all(racers.map((racer) => racer.told<number>()));
  t.deepEqual(twice, Array(8).fill(0));
  t.deepEqual(readdirSync(folder), []);
});
