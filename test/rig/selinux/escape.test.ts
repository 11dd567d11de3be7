/**
 * The hostile program of test/hostile in the monitor's place, with SELinux as the only layer of its jail, with all layers,
 * with neither, and where SELinux only logs. Each VM hears of what it was denied.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import test from 'ava';
import type { Denial } from 'casemate/selinux';
import { jailOf, parse, underAttack } from '../../hostile/escape/escape.js';
import { surprises } from '../../hostile/escape/expected.js';

const off = jailOf('none');
const jails = {
  neither: { ...off, selinux: 'off' },
  alone: { ...off, selinux: 'enforcing' },
  all: { selinux: 'enforcing' },
  permissive: { ...off, selinux: 'permissive-ok' },
  // The kernel says nothing twice of what it has let a label do; so this VM has another one.
  again: { ...off, selinux: 'permissive-ok' },
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
    // Denials come by a way of their own: until no more do. By then a pair that may be used again would be.
    for (let count = -1; count < vm.denials.length; await delay(300)) count = vm.denials.length;
    attacks[name] = { context, output, denials: vm.denials };
  }
  spawnSync('setenforce', ['1']);
  const victim = { context: getContext(neighbour.pid), denials: neighbour.denials };
  await neighbour.kill();
  rmSync(folder, { recursive: true });
  tell({ ...attacks, victim });`;

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
    const { victim, neither, alone, all, permissive, again } =
      await underAttack<Record<keyof typeof jails | 'victim', Attack>>(script);

    const [free, left] = [openIn(neither), openIn(alone)];
    t.deepEqual(surprises({ only: 'selinux' }, parse(alone.output)), []);
    t.true(free.filter((name) => !left.includes(name)).length > 80, 'and it is SELinux that denies them');
    t.deepEqual(openIn(all), []);
    for (const lenient of [permissive, again]) t.deepEqual(openIn(lenient), free);

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
    for (const { context, denials } of [alone, all, permissive, again, victim])
      t.deepEqual(
        denials.filter(({ source }) => source !== context),
        [],
      );
    t.true([...alone.denials, ...all.denials].every(({ enforced }) => enforced));
    t.true([...permissive.denials, ...again.denials].every(({ enforced }) => !enforced));
    t.deepEqual(neither.denials, []);
    for (const lenient of [permissive, again]) {
      const unsaid = [...kindsOf(alone)].filter((kind) => !kindsOf(lenient).has(kind));
      // The kernel asks for this one at every mmap without a word, and in permissive mode an answer is not asked for again.
      t.deepEqual(
        unsaid.filter((kind) => kind !== 'capability sys_admin casemate_vmm_t'),
        [],
      );
    }
  },
);

test.serial('each layer off, and alone: the matrix has SELinux as one of them', async (t) => {
  t.timeout(1_200_000);
  const matrix = spawn(process.execPath, ['build/test/hostile/escape/main.js', '--matrix'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = once(matrix, 'exit');
  const output = await text(matrix.stdout);
  if (process.env.CASEMATE_RESULTS !== undefined)
    writeFileSync(join(process.env.CASEMATE_RESULTS, 'matrix.txt'), output);
  t.deepEqual(await exited, [0, null], output);
  const [head = '', ...rows] = output.split('\n').slice(3);
  const column = head.trim().split(/ +/).indexOf('selinux');
  t.true(column > 0, head);
  t.regex(rows.join('\n'), /^ok \d+ - only selinux: [1-9]\d* of \d+ succeed$/m);
  t.regex(rows.join('\n'), /^ok \d+ - without selinux: 0 of \d+ succeed$/m);
});
