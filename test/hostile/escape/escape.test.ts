/**
 * A monitor in its guest's hands tries to get out. Here with all layers, and with those few of them off that show most;
 * `npm run test:escape` has every layer off, and every one alone.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { syscalls } from '#lib/jail/syscalls.js';
import { requires, root } from '../../helpers/index.js';
import { callForeign, type FilterName, filters, type Setting, sweepAll, tryAll } from './escape.js';
import { surprises } from './expected.js';

const { serial: test } = requires('kvm', 'programs');
const { serial: testAsRoot } = requires('kvm', 'programs', 'root');
const { serial: testAsUser } = requires('kvm', 'programs', 'root', 'userns', 'setpriv');

testAsRoot('nothing that a taken-over monitor tries succeeds, and all of it would without a jail', async (t) => {
  const settings: Setting[] = ['strict', { without: 'seccomp' }, 'none', 'host'];
  const outcomes = await tryAll(settings);
  t.deepEqual(
    settings.flatMap((setting, i) => surprises(setting, outcomes[i] ?? [])),
    [],
  );
});

testAsUser("nor does any of it in a rootless caller's jail, and little without a filter", async (t) => {
  const settings: Setting[] = ['strict', { without: 'seccomp' }];
  const outcomes = await tryAll(settings, 65534);
  t.deepEqual(
    settings.flatMap((setting, i) => surprises(setting, outcomes[i] ?? [], true)),
    [],
  );
});

/** A row of the table in docs/jail.md: names of system calls, whatever their arguments and with some. */
function documented(name: FilterName): { free: Set<string>; limited: Set<string> } {
  const row = readFileSync(join(root, 'docs/jail.md'), 'utf8')
    .split('\n')
    .find((line) => line.startsWith(`| ${name} |`));
  const [, , free = '', limited = ''] = row?.split('|') ?? [];
  const names = (cell: string) => new Set([...cell.matchAll(/`([a-z0-9_]+)`/g)].map(([, each]) => each as string));
  return { free: names(free), limited: names(limited) };
}

test('of all system calls those pass that the documents list, and no others', async (t) => {
  const name = new Map<number, string>(Object.entries(syscalls).map(([key, number]) => [number, key]));
  const namesOf = (numbers: readonly number[]) => numbers.map((number) => name.get(number) ?? String(number));
  // What no call means anything by, and what many do.
  const odd = await sweepAll(0x7fff_ffff);
  const zeroes = await sweepAll(0);
  for (const each of Object.keys(filters) as FilterName[]) {
    const { free, limited } = documented(each);
    // Every signal's handler has returned, and every monitor has ended by its own will.
    t.is(odd[each].code, 7, each);
    t.is(zeroes[each].code, 7, each);
    t.deepEqual([...namesOf(odd[each].passed), 'rt_sigreturn', 'exit_group'].sort(), [...free].sort(), each);
    t.deepEqual(
      namesOf(zeroes[each].passed).filter((call) => !free.has(call) && !limited.has(call)),
      [],
      each,
    );
  }
});

test('slots of memory can be set by monitors that have some left to give, and by no others', async (t) => {
  const setUserMemoryRegion = 0x4020_ae46;
  const swept = await sweepAll(setUserMemoryRegion);
  const allowed = Object.entries(swept).filter(([, { passed }]) => passed.includes(syscalls.ioctl));
  t.deepEqual(
    allowed.map(([name]) => name),
    ['The same, of one with memory on demand'],
  );
});

for (const abi of ['i386', 'x32'] as const) {
  test(`a monitor that calls the kernel as ${abi} does is killed`, async (t) => {
    t.like(await callForeign(abi), { reason: 'monitor-crashed', signal: 'SIGSYS' });
  });
}
