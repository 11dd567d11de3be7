/** Archives for initrds, as cpio(1) of the host understands them. */
import { spawnSync } from 'node:child_process';
import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { cpio, cpioStream, type Entry } from 'casemate/image';
import { requires } from '../helpers/index.js';
import { collect, list, temporary, tree } from './tree.js';

const test = requires('cpio');

/** Unpacks what an ordinary user can, devices left out. */
function unpack(t: ExecutionContext, archive: Uint8Array): string {
  const folder = temporary(t);
  const { stderr, status } = spawnSync('cpio', ['--extract', '--quiet', '--nonmatching', 'dev/*'], {
    input: archive,
    cwd: folder,
    encoding: 'utf8',
  });
  t.is(status, 0, stderr);
  return folder;
}

test('an archive has every kind of file, with its mode, owner and device, and the parents that nobody named', (t) => {
  t.deepEqual(list(cpio(tree)), [
    'drwxr-xr-x 2 0 0 0 usr',
    'drwxr-xr-x 2 0 0 0 usr/bin',
    '-rwsr-xr-x 1 0 0 10 usr/bin/hello',
    'lrwxrwxrwx 1 0 0 7 bin -> usr/bin',
    'drwxrwxrwt 2 0 0 0 tmp',
    'drwxr-xr-x 2 0 0 0 etc',
    '-rw------- 2 0 0 2 etc/secret',
    '-rw------- 2 0 0 0 etc/same',
    '-rw-r--r-- 1 0 0 0 etc/empty',
    'prw-r--r-- 1 0 0 0 pipe',
    'drwxr-xr-x 2 0 0 0 dev',
    'crw------- 1 0 0 5, 1 dev/console',
    'brw-r--r-- 1 7 8 254, 74565 dev/vda',
  ]);
});

test('what was packed is there when it is unpacked, two names of a file as one', (t) => {
  const folder = unpack(t, cpio(tree));
  t.is(readFileSync(join(folder, 'usr/bin/hello'), 'utf8'), '#!/bin/sh\n');
  t.is(readlinkSync(join(folder, 'bin')), 'usr/bin');
  t.is(readFileSync(join(folder, 'etc/same'), 'utf8'), 'ab');
  t.is(lstatSync(join(folder, 'etc/same')).ino, lstatSync(join(folder, 'etc/secret')).ino);
  t.deepEqual(readdirSync(join(folder, 'etc')).sort(), ['empty', 'same', 'secret']);
});

test('the same entries make the same bytes, at once or in a stream, in whole blocks', async (t) => {
  const archive = cpio(tree);
  t.deepEqual(cpio(structuredClone([...tree])), archive);
  t.is(archive.length % 512, 0);
  const streamed = tree.map((entry): Entry => {
    if (entry.type !== 'file') return entry;
    const bytes = Buffer.from(entry.contents as string | Buffer);
    return {
      ...entry,
      contents: {
        size: bytes.length,
        stream: async function* () {
          yield* split(bytes);
        },
      },
    };
  });
  t.deepEqual(await collect(cpioStream(streamed)), archive);
});

function* split(bytes: Buffer): Iterable<Buffer> {
  for (let at = 0; at < bytes.length; at += 3) yield bytes.subarray(at, at + 3);
}

test('a later entry for a path replaces an earlier one', (t) => {
  const twice: Entry[] = [
    { type: 'file', path: 'a', contents: 'old' },
    { type: 'file', path: './b//', contents: 'b' },
    { type: 'directory', path: 'd', mode: 0o700 },
    { type: 'file', path: 'd/f', contents: '' },
    { type: 'directory', path: 'd/', mode: 0o711 },
    { type: 'link', path: 'a', target: 'b' },
  ];
  t.deepEqual(list(cpio(twice)), [
    '-rw-r--r-- 2 0 0 1 b',
    'drwx--x--x 2 0 0 0 d',
    '-rw-r--r-- 1 0 0 0 d/f',
    '-rw-r--r-- 2 0 0 0 a',
  ]);
});

const file = (path: string): Entry => ({ type: 'file', path, contents: '' });
const refused: Readonly<Record<string, [why: RegExp, ...Entry[]]>> = {
  'an absolute path': [/"\/etc" is absolute/, file('/etc')],
  'a path that leads out': [/'\.\.'/, file('a/../../b')],
  'a path with a NUL': [/NUL/, file('a\0b')],
  'a path that is too long': [/too long/, file('a/'.repeat(2100))],
  'a name that is too long': [/too long/, file('ä'.repeat(128))],
  'the root as a file': [/is the root/, file('./')],
  'a path through a symbolic link': [
    /"out\/passwd" lies behind out, which is no directory/,
    { type: 'symlink', path: 'out', target: '/etc' },
    file('out/passwd'),
  ],
  'a path through a file': [/lies behind a/, file('a'), file('a/b')],
  'a file in the place of a directory': [/comes twice/, file('a/b'), file('a')],
  'a link to what is not there': [/no file before it/, { type: 'link', path: 'a', target: 'b' }],
  'a link to what comes later': [/no file before it/, { type: 'link', path: 'a', target: 'b' }, file('b')],
  'a link to a directory': [/no file/, { type: 'directory', path: 'd' }, { type: 'link', path: 'a', target: 'd' }],
  'a link to the outside': [/'\.\.'/, { type: 'link', path: 'a', target: '../b' }],
  'a link that points nowhere': [/points to no path/, { type: 'symlink', path: 'a', target: '' }],
  'more than permission bits': [/mode/, { type: 'directory', path: 'a', mode: 0o100644 }],
  'an owner that is no number': [/uid/, { ...file('a'), uid: -1 } as Entry],
  'a device number that is too great': [/minor/, { type: 'block', path: 'a', major: 1, minor: 1 << 20 }],
  'a file that is too big': [/4 GiB/, { ...file('a'), contents: { size: 2 ** 32, stream: nothing } } as Entry],
  'contents that are not in memory': [/stream/, { ...file('a'), contents: { size: 1, stream: nothing } } as Entry],
};

async function* nothing(): AsyncGenerator<Uint8Array> {}

for (const [what, [why, ...entries]] of Object.entries(refused)) {
  test(`an archive cannot have ${what}`, (t) => {
    const error = t.throws(() => cpio(entries), { message: why });
    t.like(error, { name: 'CasemateError', code: 'ERR_CASEMATE_IMAGE' });
  });
}

test('a file that has changed while it was read is an error, whether it grew or shrank', async (t) => {
  for (const size of [2, 4]) {
    const contents = {
      size,
      stream: async function* () {
        yield Buffer.from('abc');
      },
    };
    await t.throwsAsync(collect(cpioStream([{ type: 'file', path: 'a', contents }])), { message: /changed/ });
  }
});
