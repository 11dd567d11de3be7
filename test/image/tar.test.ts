/** Archives as tar(1) makes them, and as nobody should. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import ava from 'ava';
import { CasemateError, type ErrorCode } from 'casemate';
import { cpio, cpioStream, type Entry, openTar, type TarSource } from 'casemate/image';
import { tarStream } from '#lib/image/tar-writer.js';
import { completeTree } from '#lib/image/tree.js';
import { requires } from '../helpers/index.js';
import { descriptorsOf } from '../helpers/proc.js';
import { collect, said, temporary, tree } from './tree.js';

const test = requires('cpio');

const tarOf = (entries: readonly Entry[]): Promise<Buffer> => collect(tarStream(completeTree(entries)));

/** An initrd of an archive: entries with their contents, in one comparable piece. */
async function repacked(source: TarSource, ownership: 'root' | 'keep' = 'keep'): Promise<Buffer> {
  await using tar = await openTar(source, { ownership });
  return await collect(cpioStream(tar.entries)); // before it is closed
}

test('what an archive holds comes out again: every kind of file, its mode, owner and device', async (t) => {
  t.deepEqual(await repacked(await tarOf(tree)), cpio(tree));
  const owned = tree.map((entry) => ('uid' in entry ? { ...entry, uid: 0, gid: 0 } : entry));
  t.deepEqual(await repacked(await tarOf(tree), 'root'), cpio(owned));
});

ava('tar(1) reads our archives as we do', async (t) => {
  const long = { type: 'file', path: `${'d'.repeat(120)}/${'é'.repeat(120)}`, contents: 'x'.repeat(1000) } as const;
  const listed = said(
    'tar',
    ['--list', '--verbose', '--numeric-owner', '--utc', '--full-time', '--quoting-style=literal', '--file', '-'],
    {
      input: await tarOf([...tree, long]),
    },
  );
  t.deepEqual(
    listed
      .trim()
      .split('\n')
      .map((line) => line.replace(' 1980-01-01 00:00:00', '').replaceAll(/ +/g, ' ')),
    [
      'drwxr-xr-x 0/0 0 usr',
      'drwxr-xr-x 0/0 0 usr/bin',
      '-rwsr-xr-x 0/0 10 usr/bin/hello',
      'lrwxrwxrwx 0/0 0 bin -> usr/bin',
      'drwxrwxrwt 0/0 0 tmp',
      'drwxr-xr-x 0/0 0 etc',
      '-rw------- 0/0 2 etc/secret',
      'hrw-r--r-- 0/0 0 etc/same link to etc/secret',
      '-rw-r--r-- 0/0 0 etc/empty',
      'prw-r--r-- 0/0 0 pipe',
      'drwxr-xr-x 0/0 0 dev',
      'crw------- 0/0 5,1 dev/console',
      'brw-r--r-- 7/8 254,74565 dev/vda',
      `drwxr-xr-x 0/0 0 ${'d'.repeat(120)}`,
      `-rw-r--r-- 0/0 1000 ${long.path}`,
    ],
  );
});

for (const format of ['gnu', 'pax', 'ustar', 'oldgnu', 'v7']) {
  test(`archives of tar --format=${format} are read, links and long names included`, async (t) => {
    const folder = temporary(t);
    const deep = `${'a'.repeat(60)}/${'b'.repeat(30)}`;
    const long = format === 'v7' || format === 'ustar' ? 'c'.repeat(30) : 'c'.repeat(200);
    said('mkdir', ['-p', deep], { cwd: folder });
    writeFileSync(join(folder, deep, 'f'), 'f'.repeat(700));
    said('ln', [`${deep}/f`, 'hard'], { cwd: folder });
    said('ln', ['-s', long, 'soft'], { cwd: folder });
    const all = ['--create', `--format=${format}`, '--sort=name', '--owner=0', '--group=0', '--mode=u=rwX,go=rX'];
    said('tar', [...all, '--file', 'x.tar', deep.slice(0, 60), 'hard', 'soft'], { cwd: folder });
    const expected: Entry[] = [
      { type: 'directory', path: deep.slice(0, 60) },
      { type: 'directory', path: deep },
      { type: 'file', path: `${deep}/f`, contents: 'f'.repeat(700) },
      { type: 'link', path: 'hard', target: `${deep}/f` },
      { type: 'symlink', path: 'soft', target: long },
    ];
    t.deepEqual(await repacked(join(folder, 'x.tar')), cpio(expected));
  });
}

test('an archive is taken as its path, its bytes or a stream, compressed or not', async (t) => {
  const archive = await tarOf(tree);
  const path = join(temporary(t), 'a');
  const expected = cpio(tree);
  for (const bytes of [archive, gzipSync(archive)]) {
    writeFileSync(path, bytes);
    t.deepEqual(await repacked(path), expected);
    t.deepEqual(await repacked(bytes), expected);
    t.deepEqual(await repacked(split(bytes)), expected);
  }
});

async function* split(bytes: Buffer): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += 333) yield bytes.subarray(at, at + 333);
}

/** An archive of one header, written over by `change`, and its end. */
async function header(change: (bytes: Buffer) => void, checked = true): Promise<Buffer> {
  const bytes = (await tarOf([{ type: 'file', path: 'f', contents: '' }])).subarray(1024);
  change(bytes);
  if (checked) {
    bytes.fill(' ', 148, 156);
    bytes.write(
      bytes
        .subarray(0, 512)
        .reduce((sum, byte) => sum + byte, 0)
        .toString(8)
        .padStart(6, '0'),
      148,
    );
  }
  return bytes;
}

/** The same with an extended header in front. */
async function extended(text: string, type = 'x'): Promise<Buffer> {
  const body = Buffer.alloc(512);
  const length = body.write(text);
  const first = await header((bytes) => {
    bytes.write(length.toString(8).padStart(11, '0'), 124);
    bytes.write(type, 156);
  });
  return Buffer.concat([first.subarray(0, 512), body, await header(() => {})]);
}

const bad: Readonly<Record<string, [archive: () => Promise<TarSource> | TarSource, why: RegExp, code?: ErrorCode]>> = {
  'is empty': [() => Buffer.alloc(0), /cut short/],
  'is none': [() => Buffer.alloc(2048, 'x'), /number in a header|checksum/],
  'is cut short in a header': [async () => (await tarOf(tree)).subarray(0, 700), /cut short/],
  'is cut short in a file': [
    async () => (await tarOf([{ type: 'file', path: 'f', contents: 'f'.repeat(4096) }])).subarray(0, 3000),
    /cut short/,
  ],
  'has no end': [async () => (await tarOf(tree)).subarray(0, -1024), /cut short/],
  'has a damaged header': [() => header((bytes) => bytes.write('g', 0), false), /checksum/],
  'has letters for a mode': [() => header((bytes) => bytes.write('rwxr-xr', 100)), /number in a header/],
  'has a negative owner': [() => header((bytes) => bytes.fill(0xff, 108, 116)), /number in a header/],
  'has a size beyond all bounds': [() => header((bytes) => bytes.fill(0x7f, 125, 136).writeUInt8(0x80, 124)), /number/],
  'has a size beyond its end': [() => header((bytes) => bytes.write('00000003000', 124)), /cut short/],
  'has a kind of file that images do not': [() => header((bytes) => bytes.write('V', 156)), /of the type "V"/],
  'has a sparse file of GNU': [() => header((bytes) => bytes.write('S', 156)), /of the type "S"/],
  'has a sparse file of pax': [() => extended('22 GNU.sparse.major=1\n'), /sparse/],
  'has a hard link with contents': [
    () => header((bytes) => bytes.fill('1', 156, 157).write('00000000001', 124)),
    /contents of its own/,
  ],
  'has a name that is not UTF-8': [() => header((bytes) => bytes.writeUInt8(0xe4, 0)), /not UTF-8/],
  'has an extended header without a length': [() => extended('path=a\n'), /extended header that is none/],
  'has an extended header longer than itself': [() => extended('99 path=a\n'), /extended header that is none/],
  'has an extended header without a key': [() => extended('6 abc\n'), /extended header that is none/],
  'has an extended size in words': [() => extended('13 size=many\n'), /"many" for a number/],
  'has an extended header of a gigabyte': [
    () => header((bytes) => bytes.fill('x', 156, 157).write('10000000000', 124)),
    /extended header of 1073741824 bytes/,
  ],
  'is compressed, and cut short': [async () => gzipSync(await tarOf(tree)).subarray(0, 100), /cannot be unpacked/],
  'is compressed by something else': [() => Buffer.from('BZh91AY'), /bzip2/],
  'is not there': [() => '/nowhere.tar', /nowhere/, 'ERR_CASEMATE_FILE'],
};

for (const [what, [archive, why, code = 'ERR_CASEMATE_IMAGE']] of Object.entries(bad)) {
  ava(`an archive that ${what} is refused`, async (t) => {
    const error = await t.throwsAsync(openTar(await archive(), { ownership: 'keep' }), {
      instanceOf: CasemateError,
      message: why,
    });
    t.is((error as CasemateError).code, code);
  });
}

ava('no path of an archive leads out of an image', async (t) => {
  for (const [text, why] of [
    ['17 path=/etc/pas\n', /absolute/],
    ['15 path=a/../b\n', /'\.\.'/],
  ] as const) {
    await using tar = await openTar(await extended(text));
    t.throws(() => cpio(tar.entries), { message: why });
  }
  await using tar = await openTar(await extended('15 path=global\n', 'g'));
  t.is(tar.entries[0]?.path, 'global');
});

ava.serial('temporary files have no name, and go with their archive', async (t) => {
  const open = () => [...descriptorsOf('self').values()].filter((target) => /casemate-.*deleted/.test(target)).length;
  const before = open();
  const tar = await openTar(gzipSync(await tarOf(tree)));
  t.is(open(), before + 1);
  await tar[Symbol.asyncDispose]();
  t.is(open(), before);
  await t.throwsAsync(openTar(gzipSync(Buffer.alloc(5000, 'x'))));
  t.is(open(), before);
});
