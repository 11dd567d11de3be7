import { spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { CasemateError } from 'casemate';
import {
  checkContext,
  fileContext,
  formatContext,
  formatRange,
  getContext,
  isEnabled,
  mode,
  parseContext,
  parseRange,
  type SelinuxContext,
} from 'casemate/selinux';
import { requires, root } from './helpers/index.js';

const invalid = { instanceOf: CasemateError, code: 'ERR_CASEMATE_INVALID_OPTION' };
const refused = { instanceOf: CasemateError, code: 'ERR_CASEMATE_SELINUX' };
const failed = { instanceOf: CasemateError, code: 'ERR_CASEMATE_SYSTEM' };

test('a context comes apart into user, role, type and range', (t) => {
  t.deepEqual(parseContext('system_u:system_r:casemate_vmm_t:s0:c12,c700'), {
    user: 'system_u',
    role: 'system_r',
    type: 'casemate_vmm_t',
    range: {
      low: { sensitivity: 0, categories: [12, 700] },
      high: { sensitivity: 0, categories: [12, 700] },
    },
  });
});

test('a context of a policy without levels has no range', (t) => {
  t.deepEqual(parseContext('user_u:user_r:user_t'), { user: 'user_u', role: 'user_r', type: 'user_t' });
  t.is(formatContext({ user: 'user_u', role: 'user_r', type: 'user_t' }), 'user_u:user_r:user_t');
});

test('a range has a low and a high level, and runs of categories are spelt out', (t) => {
  t.deepEqual(parseRange('s0-s15:c0.c3,c9'), {
    low: { sensitivity: 0, categories: [] },
    high: { sensitivity: 15, categories: [0, 1, 2, 3, 9] },
  });
  t.is(parseRange('s0-s0:c0.c1023').high.categories.length, 1024);
});

test('categories come in rising order, each once', (t) => {
  t.deepEqual(parseRange('s0:c9,c1.c3,c2').low.categories, [1, 2, 3, 9]);
});

for (const context of [
  'system_u:system_r:init_t:s0',
  'unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023',
  'system_u:object_r:casemate_image_t:s0:c1,c2',
  'system_u:object_r:casemate_image_t:s0:c1,c2,c4.c6,c9-s3:c0.c9',
  'a:b:c',
]) {
  test(`${context} survives parsing and formatting`, (t) => {
    t.is(formatContext(parseContext(context)), context);
  });
}

test('categories are written as the kernel writes them', (t) => {
  const level = (categories: number[]) => ({ sensitivity: 0, categories });
  const format = (categories: number[]) => formatRange({ low: level(categories), high: level(categories) });
  t.is(format([]), 's0');
  t.is(format([5]), 's0:c5');
  t.is(format([5, 4]), 's0:c4,c5');
  t.is(format([6, 4, 5, 5]), 's0:c4.c6');
  t.is(format([0, 1, 2, 7, 9, 10]), 's0:c0.c2,c7,c9,c10');
});

for (const bad of [
  '',
  'a',
  'a:b',
  ':b:c',
  'a::c',
  'a:b:',
  'a b:c:d',
  'a:b:c\n',
  'a:b:c:',
  'a:b:c:SystemLow',
  'a:b:c:s0:',
  'a:b:c:s0:c',
  'a:b:c:s0:c1,',
  'a:b:c:s0:c1024',
  'a:b:c:s0:c5.c4',
  'a:b:c:s0:c1.c2.c3',
  'a:b:c:s0-s1-s2',
  'a:b:c:s0-',
  'a:b:c:s99999',
  'a:b:c:s0:c1\0',
]) {
  test(`${JSON.stringify(bad)} is no context`, (t) => {
    t.throws(() => parseContext(bad), invalid);
  });
}

test('formatting refuses what would not come apart again', (t) => {
  const good = parseContext('a:b:c:s0:c1');
  const low = { sensitivity: 0, categories: [] as readonly number[] };
  const bad: unknown[] = [
    undefined,
    'a:b:c',
    { user: 'a', role: 'b' },
    { ...good, user: 'a:b' },
    { ...good, type: '' },
    { ...good, level: 's0' },
    { ...good, range: 's0' },
    { ...good, range: { low } },
    { ...good, range: { low, high: { ...low, sensitivity: -1 } } },
    { ...good, range: { low, high: { ...low, categories: [1024] } } },
    { ...good, range: { low, high: { ...low, categories: 'c1' } } },
  ];
  for (const context of bad) t.throws(() => formatContext(context as SelinuxContext), invalid);
});

test('wrong types are refused before the library is asked', (t) => {
  for (const pid of [0, -1, 1.5, '1', null]) t.throws(() => getContext(pid as number), invalid);
  for (const context of [undefined, 1, 'a\0b']) t.throws(() => checkContext(context as string), invalid);
  for (const target of [undefined, null, -1, 1.5, 'a\0b', {}]) t.throws(() => fileContext(target as string), invalid);
});

const withoutSelinux = requires('noSelinux');

withoutSelinux('without SELinux the mode is disabled', (t) => {
  t.false(isEnabled());
  t.is(mode(), 'disabled');
});

withoutSelinux('without SELinux asking for contexts is a typed error with a remedy', (t) => {
  for (const ask of [() => getContext(), () => getContext(process.pid), () => checkContext('a:b:c:s0')]) {
    const error = t.throws(ask, refused) as CasemateError | undefined;
    t.truthy(error?.remedy);
  }
});

test('a file that is not there is an error of the system call', (t) => {
  const error = t.throws(() => fileContext('/nonexistent/file'), failed) as CasemateError | undefined;
  t.is((error?.cause as NodeJS.ErrnoException | undefined)?.code, 'ENOENT');
});

withoutSelinux('a file without a label is a typed error', (t) => {
  t.throws(() => fileContext('/proc/self/status'), refused);
});

test('without libselinux nothing is enabled, and asking is a typed error with a remedy', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  // A broken library found first is as good as none: the loader looks no further.
  writeFileSync(join(folder, 'libselinux.so.1'), '');
  const script = `
    import { fileContext, getContext, isEnabled, mode } from 'casemate/selinux';
    const codes = [() => getContext(), () => fileContext('/')].map((ask) => {
      try { ask(); } catch (error) { return error.code + (error.remedy ? ' with a remedy' : ''); }
    });
    console.log(JSON.stringify([isEnabled(), mode(), ...codes]));
  `;
  const child = spawnSync(process.execPath, ['--input-type=module', '--eval', script], {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, LD_LIBRARY_PATH: folder },
  });
  t.is(child.stderr, '');
  const refusal = 'ERR_CASEMATE_SELINUX with a remedy';
  t.deepEqual(JSON.parse(child.stdout), [false, 'disabled', refusal, refusal]);
});

requires('labels')('the label of a file is read by path and by descriptor', (t) => {
  // Labels are stored with or without SELinux, wherever the file system keeps security attributes.
  const folder = mkdtempSync(join(tmpdir(), 'casemate-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const file = join(folder, 'labelled');
  const label = 'system_u:object_r:user_tmp_t:s0:c1,c2';
  writeFileSync(file, '');
  const code = `import os, sys; os.setxattr(sys.argv[1], 'security.selinux', sys.argv[2].encode() + b'\\0')`;
  const labelled = spawnSync('python3', ['-c', code, file, label], { encoding: 'utf8' });
  t.is(labelled.stderr, '');
  t.is(fileContext(file), label);
  const fd = openSync(file, 'r');
  t.teardown(() => closeSync(fd));
  t.is(fileContext(fd), label);
});

const withSelinux = requires('selinux');

withSelinux('with SELinux a mode is known, and contexts are what /proc says', (t) => {
  t.true(isEnabled());
  t.true(['enforcing', 'permissive'].includes(mode()));
  t.is(getContext(), getContext(process.pid));
  t.is(formatContext(parseContext(getContext())), getContext());
  t.notThrows(() => checkContext(getContext()));
});

withSelinux('with SELinux a context that the policy does not know is refused', (t) => {
  t.throws(() => checkContext('casemate_no_such_u:r:t:s0'), refused);
});

withSelinux('with SELinux a process that is not there is an error of the system call', (t) => {
  t.throws(() => getContext(0x7fffffff), failed);
});
