/** What scripts/binaries.js holds the built programs against finds what is wrong with others. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import ava from 'ava';
import { requires, root } from './helpers/index.js';

interface Binaries {
  aboveFloor(names: readonly string[]): string[];
  flaws(elf: string, alone: boolean): string[];
  missingFlags(commands: readonly string[], flags: readonly string[]): string[];
  readelf(path: string): string;
}

const { aboveFloor, flaws, missingFlags, readelf } = (await import(join(root, 'scripts/binaries.js'))) as Binaries;
const test = requires('gcc');

const hardened = ['-fPIE', '-static-pie', '-nostdlib', '-Wl,-z,relro,-z,now,-z,noexecstack'];
const clean = 'void _start(void) { for (;;) {} }';

const programs: readonly (readonly [
  what: string,
  source: string,
  flags: readonly string[],
  found: RegExp | undefined,
])[] = [
  ['one as it should be', clean, hardened, undefined],
  ['a fixed address', clean, ['-static', '-no-pie', '-nostdlib'], /address of the kernel/],
  ['tables that stay writable', clean, [...hardened, '-Wl,-z,lazy,-z,norelro'], /RELRO/],
  ['a stack that may be executed', clean, [...hardened, '-Wl,-z,execstack'], /written and executed/],
  ['an interpreter', clean, ['-fPIE', '-pie', '-nostartfiles', '-Wl,-z,relro,-z,now'], /interpreter or a library/],
  ['a library path', clean, [...hardened, '-Wl,-rpath,/tmp'], /folder of its own/],
];

for (const [what, source, flags, found] of programs) {
  test(`a program is looked at: ${what}`, (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'casemate-binaries-'));
    t.teardown(() => rmSync(folder, { recursive: true }));
    const path = join(folder, 'program');
    const { status, stderr } = spawnSync('gcc', ['-xc', '-', ...flags, '-o', path], {
      input: source,
      encoding: 'utf8',
    });
    t.is(status, 0, stderr);
    const wrong = flaws(readelf(path), true);
    if (found === undefined) t.deepEqual(wrong, []);
    else
      t.true(
        wrong.some((flaw) => found.test(flaw)),
        wrong.join(', '),
      );
  });
}

ava('symbols of libraries that Node does not ask for are told', (t) => {
  const names = [
    'GLIBC_2.2.5',
    'GLIBC_2.28',
    'GLIBC_2.29',
    'GLIBC_3',
    'GLIBCXX_3.4.25',
    'GLIBCXX_3.4.26',
    'GLIBC_ABI_DT_RELR',
  ];
  t.deepEqual(aboveFloor(names), ['GLIBC_2.29', 'GLIBC_3', 'GLIBCXX_3.4.26', 'GLIBC_ABI_DT_RELR']);
});

ava('a flag that is missing, or taken back, in one command of several is told', (t) => {
  const flags = ['-fPIE', '-D_FORTIFY_SOURCE=3', '-fstack-protector-strong'];
  const all = 'g++ -fPIC -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3 -fstack-protector-strong -fPIE';
  t.deepEqual(missingFlags([all], flags), []);
  t.deepEqual(missingFlags([all, `${all} -U_FORTIFY_SOURCE`], flags), ['-D_FORTIFY_SOURCE=3']);
  t.deepEqual(missingFlags([all, `${all} -D_FORTIFY_SOURCE=0`], flags), ['-D_FORTIFY_SOURCE=3']);
  t.deepEqual(missingFlags([all, `${all} -fPIC`], flags), ['-fPIE']);
  t.deepEqual(missingFlags([all, `${all} -fno-stack-protector`], flags), ['-fstack-protector-strong']);
});
