/**
 * That SELinux alone keeps two VMs apart: no namespace, no filter, the same user. What stands in for their monitors is a
 * program of ours, started by a plan's own label steps; it is the same one that succeeds where the categories are the same.
 */
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { createInterface } from 'node:readline';
import test, { type ExecutionContext } from 'ava';
import { launch } from 'casemate';
import { type JailedProcess, spawn, steps } from 'casemate/jail';
import { type Denial, getContext } from 'casemate/selinux';
import { within } from '../../helpers/proc.js';
import { program } from '../../helpers/programs.js';
import { run } from '../../helpers/selinux.js';

const folder = '/var/casemate-test';
const captive = `${folder}/captive`;
const image = `${folder}/image`;
const monitorOf = (pair: string) => `unconfined_u:unconfined_r:casemate_vmm_t:s0:${pair}`;
const imageOf = (pair: string) => `unconfined_u:object_r:casemate_image_t:s0:${pair}`;

test.before(() => {
  mkdirSync(folder);
  copyFileSync(program('captive'), captive);
  writeFileSync(image, 'of one VM');
  run('chcon', 'system_u:object_r:casemate_content_t:s0', folder);
  run('chcon', 'system_u:object_r:casemate_vmm_exec_t:s0', captive);
  // Without it the policy forbids most of this between any two monitors, whatever their categories.
  run('setsebool', 'casemate_debug', 'on');
  run('sysctl', '-q', 'kernel.yama.ptrace_scope=0');
});

test.after.always(() => run('setsebool', 'casemate_debug', 'off'));

/** A program with a label and no other layer of a jail, and the lines that it says. */
async function start(t: ExecutionContext, context: string, ...args: string[]) {
  const process: JailedProcess = await spawn({
    clone: [],
    descriptors: [],
    cgroup: undefined,
    steps: [
      steps.execLabel(context),
      steps.socketLabel(context),
      steps.socketPair('stream', 'theirs', 'ours'),
      steps.descriptors({ theirs: [1] }),
      steps.exec(captive, ['captive', ...args]),
    ],
    check: [],
  });
  t.teardown(() => process[Symbol.asyncDispose]());
  const socket = new Socket({ fd: process.takeDescriptor('ours') });
  t.teardown(() => socket.destroy());
  const lines = createInterface({ input: socket })[Symbol.asyncIterator]();
  // Before it speaks it may not have its label yet: an execve lets its launcher go on a moment before it changes that.
  await until(lines, 'begun');
  t.is(getContext(process.pid), context);
  return { process, lines };
}

async function until(lines: AsyncIterator<string>, last: string): Promise<Record<string, number>> {
  const said: Record<string, number> = {};
  for (;;) {
    const { value, done } = await lines.next();
    if (done) throw new Error(`It ended after ${JSON.stringify(said)}`);
    const [name = '', number] = String(value).split(' ');
    said[name] = Number(number);
    if (name === last) return said;
  }
}

/** What a program in one context achieves against one in another: an errno for each try. */
async function attack(t: ExecutionContext, from: string, to: string, name: string) {
  const victim = await start(t, to, 'victim', name);
  const { secret, ...ready } = await until(victim.lines, 'secret');
  t.deepEqual(ready, { socket: 0, bind: 0, listen: 0 });
  const attacker = await start(t, from, 'attack', String(victim.process.pid), image, name, String(secret));
  const { done, ...tries } = await until(attacker.lines, 'done');
  return tries;
}

test.serial(
  'in the same categories everything succeeds, so that the next test is known to be able to fail',
  async (t) => {
    run('chcon', imageOf('c1,c2'), image);
    const tries = await attack(t, monitorOf('c1,c2'), monitorOf('c1,c2'), 'same');
    t.is(Object.keys(tries).length, 11);
    t.deepEqual(
      Object.entries(tries).filter(([, errno]) => errno !== 0),
      [],
    );
  },
);

test.serial('in other categories nothing does: not one signal, byte, file or connection', async (t) => {
  run('chcon', imageOf('c1,c2'), image);
  for (const [index, pair] of ['c1,c3', 'c2,c3', 'c7,c9', 'c1'].entries()) {
    const tries = await attack(t, monitorOf(pair), monitorOf('c1,c2'), `other-${index}`);
    t.is(Object.keys(tries).length, 11);
    t.deepEqual(
      Object.entries(tries).filter(([, errno]) => errno === 0),
      [],
      pair,
    );
  }
});

test.serial('a denial arrives at the VM whose label it was, and at no other one', async (t) => {
  await using one = await launch({ startPaused: true, jail: { selinux: 'enforcing' } });
  await using two = await launch({ startPaused: true, jail: { selinux: 'enforcing' } });
  const [first, second] = [getContext(one.pid), getContext(two.pid)];
  t.not(first, second);
  run('chcon', second.replace(/^.*casemate_vmm_t/, 'unconfined_u:object_r:casemate_image_t'), image);
  const heard: Denial[] = [];
  one.on('denial', (denial) => heard.push(denial));
  const attacker = await start(t, first, 'attack', String(two.pid), image, 'nobody', '4096');
  const { done, ...tries } = await until(attacker.lines, 'done');
  t.deepEqual(
    Object.entries(tries).filter(([, errno]) => errno === 0),
    [],
  );
  const isDenied = (kind: string) => heard.some((denial) => `${denial.class} ${denial.permissions}` === kind);
  for (const kind of ['file read', 'file write']) t.true(await within(5000, () => isDenied(kind)), kind);
  t.true(heard.every(({ source, enforced }) => source === first && enforced));
  t.true(heard.some(({ target }) => target === second));
  t.deepEqual(two.denials, []);
});
