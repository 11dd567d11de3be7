/**
 * The hostile program of test/hostile in the monitor's place, with SELinux as the only layer of its jail, with all layers,
 * with neither, and where SELinux only logs. Each VM hears of what it was denied.
 */
import { join } from 'node:path';
import test from 'ava';
import type { Denial } from 'casemate/selinux';
import { run } from '../../helpers/selinux.js';
import { hostilePackage, jailOf, parse, underAttack } from '../../hostile/escape/escape.js';

const off = jailOf('none');
const jails = {
  neither: { ...off, selinux: 'off' },
  alone: { ...off, selinux: 'enforcing' },
  all: { selinux: 'enforcing' },
  permissive: { ...off, selinux: 'permissive-ok' },
};

interface Attack {
  readonly context: string;
  readonly output: string;
  readonly denials: readonly Denial[];
}

/** The mode is changed in there, for what is denied has to be of one run. */
const script = `
  import { spawnSync } from 'node:child_process';
  import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
  import { tmpdir } from 'node:os';
  import { join } from 'node:path';
  import { text } from 'node:stream/consumers';
  import { setTimeout as delay } from 'node:timers/promises';
  import { getContext } from 'casemate/selinux';
  const folder = mkdtempSync(join(tmpdir(), 'casemate-escape-'));
  const [guest, path] = ['guest', 'secret'].map((name) => join(folder, name));
  for (const each of [guest, path]) writeFileSync(each, 'nobody looks into it');
  // The same user as the hostile one, and with nothing else around it either.
  const neighbour = await launch({ guest, args: ['wait'], jail: ${JSON.stringify(jails.alone)} });
  const targets = [...process.env.CASEMATE_ESCAPE.split(','), 'neighbour=' + neighbour.pid, 'path=' + path];
  const attacks = {};
  for (const [name, jail] of Object.entries(${JSON.stringify(jails)})) {
    if (name === 'permissive') spawnSync('setenforce', ['0']);
    const vm = await launch({ guest, args: ['tries', ...targets], jail });
    const context = getContext(vm.pid);
    const output = await text(vm.console);
    const exit = await vm.exited;
    if (exit.reason !== 'monitor-crashed' || exit.code !== 0) throw new Error(JSON.stringify({ name, exit, output }));
    // Denials come by a way of their own: until no more do.
    for (let count = -1; count < vm.denials.length; await delay(100)) count = vm.denials.length;
    attacks[name] = { context, output, denials: vm.denials };
  }
  spawnSync('setenforce', ['1']);
  const victim = { context: getContext(neighbour.pid), denials: neighbour.denials };
  await neighbour.kill();
  rmSync(folder, { recursive: true });
  tell({ ...attacks, victim });`;

/** What the policy leaves to the other layers: it reaches nobody else's process, file, socket or memory. */
const leftToOthers = new Set([
  // A number that stands for a process, and what is asked of a scheduler. What is sent by it is denied.
  "open the host's process",
  "have a socket signal the host's process",
  "read the priority of the host's process",
  "learn the host's name",
  'fork',
  'a unix socket',
  'make an io_uring',
  'change its personality',
  'change its segments',
  'hide memory',
  'set its label',
  'become root',
  "become root's group",
  'keep capabilities',
  'be root',
  'be without a filter',
  'raise its limit of file sizes',
  'take 300 descriptors',
  'map memory',
  'lock memory',
  "change the flags of its guest's file",
  "lock its guest's file",
  'change the flags of /dev/null',
  'create another VM',
  'send a descriptor away',
]);

const openIn = ({ output }: Attack): string[] =>
  parse(output)
    .filter(({ outcome }) => outcome === 'open')
    .map(({ name }) => name);

const kindsOf = ({ denials }: Attack): Set<string> =>
  new Set(
    denials.flatMap(({ class: kind, target, permissions }) =>
      permissions.map((permission) => `${kind} ${permission} ${target.split(':')[2]}`),
    ),
  );

test.serial(
  'what a hostile monitor tries is denied by SELinux alone, and each VM hears of its own denials',
  async (t) => {
    t.timeout(600_000);
    run('chcon', '-t', 'casemate_vmm_exec_t', join(hostilePackage(), 'prebuilds/linux-x64/casemate-vmm'));
    const { victim, neither, alone, all, permissive } =
      await underAttack<Record<keyof typeof jails | 'victim', Attack>>(script);

    const [free, left] = [openIn(neither), openIn(alone)];
    t.deepEqual(
      left.filter((name) => !leftToOthers.has(name)),
      [],
    );
    t.true(free.filter((name) => !left.includes(name)).length > 80, 'and it is SELinux that denies them');
    t.deepEqual(openIn(all), []);
    t.deepEqual(openIn(permissive), free);

    // Of another VM's process, and of every other kind.
    t.true(
      alone.denials.some(({ target, class: kind }) => kind === 'process' && target === victim.context),
      JSON.stringify([victim, alone.denials], undefined, 1),
    );
    for (const kind of ['process ptrace', 'process signull', 'file read', 'unix_stream_socket connectto']) {
      t.true(
        [...kindsOf(alone)].some((one) => one.startsWith(`${kind} `)),
        kind,
      );
    }
    for (const { context, denials } of [alone, all, permissive, victim])
      t.deepEqual(
        denials.filter(({ source }) => source !== context),
        [],
      );
    t.true([...alone.denials, ...all.denials].every(({ enforced }) => enforced));
    t.true(permissive.denials.every(({ enforced }) => !enforced));
    t.deepEqual(neither.denials, []);
    const unsaid = [...kindsOf(alone)].filter((kind) => !kindsOf(permissive).has(kind));
    // The kernel asks for this one at every mmap without a word, and in permissive mode an answer is not asked for again.
    t.deepEqual(
      unsaid.filter((kind) => kind !== 'capability sys_admin casemate_vmm_t'),
      [],
    );
  },
);
