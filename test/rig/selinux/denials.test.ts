/** What `casemate selinux denials` says of denials, as whoever runs it reads it. */

import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { appendFileSync, copyFileSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { CasemateError, launch } from 'casemate';
import { getContext } from 'casemate/selinux';
import { patience } from '../../helpers/proc.js';
import { program } from '../../helpers/programs.js';
import { run } from '../../helpers/selinux.js';

const folder = '/var/casemate-denials';
const captive = join(folder, 'captive');
const monitorOf = (pair: string) => `unconfined_u:unconfined_r:casemate_vmm_t:s0:${pair}`;

test.before(() => {
  mkdirSync(folder);
  copyFileSync(program('captive'), captive);
  run('chcon', 'system_u:object_r:casemate_vmm_exec_t:s0', captive);
});

/** The command, and the lines that it says; `stop()` is Ctrl-C, after which come the last of them. */
async function follow(t: ExecutionContext, ...args: string[]) {
  const following = spawn(process.execPath, ['lib/cli/main.js', 'selinux', 'denials', ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => following.kill('SIGKILL'));
  const lines = createInterface({ input: following.stdout })[Symbol.asyncIterator]();
  const said: string[] = [];
  t.teardown(() => {
    const folder = process.env.CASEMATE_RESULTS;
    if (folder !== undefined) appendFileSync(join(folder, 'denials.txt'), `${said.join('\n')}\n\n`);
  });
  /** Up to the first line that is like this. */
  const until = async (pattern: RegExp): Promise<string> => {
    const limit = new AbortController();
    const tooLate = delay(20_000 * patience, undefined, { signal: limit.signal }).then(
      () => assert.fail(`No ${pattern} in\n${said.join('\n')}`),
      () => '',
    );
    try {
      for (;;) {
        const line = await Promise.race([lines.next().then(({ value }) => String(value)), tooLate]);
        said.push(line);
        if (pattern.test(line)) return line;
      }
    } finally {
      limit.abort();
    }
  };
  const next = () => until(/(?:)/);
  const stop = async () => {
    following.kill('SIGINT');
    const rest: string[] = [];
    for (let line = await lines.next(); line.done !== true; line = await lines.next()) rest.push(line.value);
    said.push(...rest);
    t.deepEqual(await once(following, 'exit'), [0, null]);
    return rest;
  };
  return { following, next, until, stop };
}

/** No program but the monitor is a way into its domain. */
const beMonitor = (pair: string, what = '/bin/true', ...args: string[]) =>
  spawnSync('runcon', [monitorOf(pair), what, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });

test.serial('denials are told kind by kind, with the smallest rule and a warning, and are counted', async (t) => {
  const { next, until, stop } = await follow(t);
  t.regex(await next(), /^Denials from now on, by audit, each kind once; Ctrl-C/);

  for (const pair of ['c1,c2', 'c1,c2', 'c3,c4']) beMonitor(pair);
  const told = [await next(), await next(), await next()];
  t.regex(
    told[0] ?? '',
    /^denied: A monitor \(s0:c1,c2, process \d+\) tried to be started from the file \/\S+, labelled \S+:bin_t:s0$/,
  );
  t.is(told[1], '  granted by (allow casemate_vmm_t bin_t (file (entrypoint)))');
  t.regex(told[2] ?? '', /^ {2}! Every program with that label/);

  // What is another VM's no rule grants. Of the same user: else its capabilities would be asked for first.
  const jail = { profile: 'custom', layers: { userNamespace: 'off' }, selinux: 'enforcing' } as const;
  await using vm = await launch({ startPaused: true, jail });
  beMonitor('c5,c6', captive, 'attack', String(vm.pid), '/nonexistent', 'nobody', '4096');
  const attack = await until(/tried to look for a process/);
  t.true(attack.endsWith(`labelled ${getContext(vm.pid)}`), attack);
  t.regex(await next(), /^ {2}! It is another VM's: no rule can grant it/);

  // What a boolean of ours grants needs no rule.
  run('setsebool', 'casemate_kvm', 'off');
  t.teardown(() => run('setsebool', 'casemate_kvm', 'on'));
  await t.throwsAsync(launch({ jail: { selinux: 'enforcing' } }), { instanceOf: CasemateError });
  t.regex(
    await until(/\/dev\/kvm/),
    /^denied: A monitor \(\S+, process \d+\) tried to read and write the device \/dev\/kvm, labelled/,
  );
  t.is(await next(), '  granted by `setsebool -P casemate_kvm on`');

  const counted = await stop();
  const row = counted.map((one) => one.trim().split(/ {2,}/));
  t.deepEqual(
    row.find(([first]) => first === 'times'),
    ['times', 'labels', 'who', 'what', 'on'],
  );
  t.deepEqual(
    row.find(([, , , what]) => what === 'file entrypoint'),
    ['3', '2', 'casemate_vmm_t', 'file entrypoint', 'bin_t'],
  );
});

test.serial('where nothing is denied that is said', async (t) => {
  const { next, stop } = await follow(t);
  await next();
  t.deepEqual(await stop(), ['Nothing was denied.']);
});

test.serial('as JSON each denial is a line, with its advice', async (t) => {
  const { next, stop } = await follow(t, '--json');
  const heard: Record<string, unknown>[] = [];
  // It says nothing of when it has begun to listen.
  const reading = next();
  const again = setInterval(() => beMonitor('c1,c2'), 500);
  heard.push(JSON.parse(await reading));
  clearInterval(again);
  t.like(heard[0], {
    source: monitorOf('c1,c2'),
    class: 'file',
    permissions: ['entrypoint'],
    enforced: true,
    rule: '(allow casemate_vmm_t bin_t (file (entrypoint)))',
  });
  for (const line of await stop()) t.notThrows(() => JSON.parse(line));
});

test.serial('it ends when nobody reads it any more', async (t) => {
  const { following, next } = await follow(t);
  await next();
  following.stdout?.destroy();
  const ended = once(following, 'exit');
  const pairs = ['c1,c2', 'c3,c4'];
  // Each kind is told once, so it takes others to have it write: of another mode of opening, of another domain.
  beMonitor(pairs[0] as string);
  spawnSync('runcon', ['unconfined_u:unconfined_r:casemate_service_t:s0', captive], { stdio: 'ignore' });
  t.deepEqual(await ended, [0, null]);
});
