/** Images of directories and archives: what debugfs(8), e2fsck(8) and cpio(1) find in them. */
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import ava from 'ava';
import { CasemateError, type ErrorCode } from 'casemate';
import { type Entry, type ImageOptions, makeImage, readDirectory } from 'casemate/image';
import { type ExecutionContext, has, requires, root } from '../helpers/index.js';
import { list, said, temporary, tree } from './tree.js';

const test = requires('e2fsprogs');
const testNoErofs = requires('noErofs');
const testCpio = requires('cpio');

/** A small tree on this host, of what any user can make. */
function folder(t: ExecutionContext): string {
  const path = temporary(t);
  mkdirSync(join(path, 'etc'));
  mkdirSync(join(path, 'closed'), { mode: 0o700 });
  writeFileSync(join(path, 'etc/conf'), 'a line\n');
  chmodSync(join(path, 'etc/conf'), 0o640);
  linkSync(join(path, 'etc/conf'), join(path, 'same'));
  symlinkSync('/etc/conf', join(path, 'link'));
  writeFileSync(join(path, 'etc/big'), 'big'.repeat(200_000));
  said('mkfifo', ['-m', '600', 'pipe'], { cwd: path });
  return path;
}

testCpio("a directory becomes an initrd: in the order of names, all of it root's, links as links", async (t) => {
  const path = folder(t);
  const image = join(temporary(t), 'initrd');
  const server = createServer().listen(join(path, 'socket'));
  await new Promise((resolve) => server.once('listening', resolve));
  await makeImage({ from: path, to: image });
  server.close();
  const umask = statSync(join(path, 'etc')).mode & 0o777;
  t.is(umask, 0o755);
  t.deepEqual(list(readFileSync(image)), [
    'drwx------ 2 0 0 0 closed',
    'drwxr-xr-x 2 0 0 0 etc',
    '-rw-r--r-- 1 0 0 600000 etc/big',
    '-rw-r----- 2 0 0 7 etc/conf',
    'lrwxrwxrwx 1 0 0 9 link -> /etc/conf',
    'prw------- 1 0 0 0 pipe',
    '-rw-r----- 2 0 0 0 same',
  ]);
});

testCpio('owners are kept where that is asked for, and entries can be added', async (t) => {
  const image = join(temporary(t), 'initrd');
  const add: Entry[] = [
    { type: 'file', path: 'etc/conf', contents: 'another' },
    { type: 'character', path: 'dev/null', mode: 0o666, major: 1, minor: 3 },
  ];
  await makeImage({ from: folder(t), to: image, add, ownership: 'keep' });
  const owner = `${process.getuid?.()} ${process.getgid?.()}`;
  const listed = list(readFileSync(image));
  t.true(listed.includes(`-rw-r--r-- 1 ${owner} 600000 etc/big`), listed.join('\n'));
  t.true(listed.includes('-rw-r--r-- 1 0 0 7 etc/conf'));
  t.true(listed.includes(`-rw-r----- 1 ${owner} 7 same`), 'the other name has what the file had');
  t.true(listed.includes('crw-rw-rw- 1 0 0 1, 3 dev/null'));
});

/** What stands in an ext4 image at a path, by debugfs: type and mode, links, owner, size or device. */
function inode(image: string, path: string): string {
  const text = said('debugfs', ['-R', `stat "/${path}"`, image]);
  const field = (pattern: RegExp) => pattern.exec(text)?.[1] ?? '';
  const device = /Device major\/minor number: (\d+):(\d+)/.exec(text);
  const what = device ? `${Number(device[1])},${Number(device[2])}` : field(/Size: (\d+)/);
  return `${field(/Type: (\S+)/)} ${field(/Mode: +(\d+)/)} ${field(/Links: (\d+)/)} ${field(/User: +(\d+)/)}:${field(/Group: +(\d+)/)} ${what}`;
}

const contents = (image: string, path: string): string => said('debugfs', ['-R', `cat "/${path}"`, image]);

test('an ext4 image has every kind of file, with its mode, owner and device, and is sound', async (t) => {
  const image = join(temporary(t), 'disk');
  const add: Entry[] = [
    ...tree,
    { type: 'file', path: 'etc/with "quotes" and  spaces', uid: 1000, gid: 70_000, contents: 'q' },
    { type: 'symlink', path: 'etc/long', uid: 5, target: 'l'.repeat(300) },
    { type: 'directory', path: 'lost+found', mode: 0o700 },
  ];
  await makeImage({ add, to: image, format: 'ext4' });
  said('e2fsck', ['-f', '-n', image]);
  const found = Object.fromEntries(
    [
      'usr',
      'usr/bin/hello',
      'bin',
      'tmp',
      'etc/secret',
      'etc/same',
      'etc/empty',
      'pipe',
      'dev/console',
      'dev/vda',
      'etc/long',
      'etc/with ""quotes"" and  spaces',
    ].map((path) => [path, inode(image, path)]),
  );
  t.deepEqual(found, {
    usr: 'directory 0755 3 0:0 4096',
    'usr/bin/hello': 'regular 04755 1 0:0 10',
    bin: 'symlink 0777 1 0:0 7',
    tmp: 'directory 01777 2 0:0 4096',
    'etc/secret': 'regular 0600 2 0:0 2',
    'etc/same': 'regular 0600 2 0:0 2',
    'etc/empty': 'regular 0644 1 0:0 0',
    pipe: 'FIFO 0644 1 0:0 0',
    'dev/console': 'character 0600 1 0:0 5,1',
    'dev/vda': 'block 0644 1 7:8 254,74565',
    'etc/long': 'symlink 0777 1 5:0 300',
    'etc/with ""quotes"" and  spaces': 'regular 0644 1 1000:70000 1',
  });
  t.is(contents(image, 'usr/bin/hello'), '#!/bin/sh\n');
  t.is(contents(image, 'etc/same'), 'ab');
  t.is(inode(image, '.'), 'directory 0755 7 0:0 4096');
});

test('an ext4 image of a directory is the same each time, and has its files', async (t) => {
  const [path, images] = [folder(t), temporary(t)];
  const made = ['one', 'two'].map((name) => join(images, name));
  for (const to of made) await makeImage({ from: path, to, format: 'ext4' });
  said('cmp', made);
  t.is(contents(made[0] as string, 'etc/big'), 'big'.repeat(200_000));
  t.is(inode(made[0] as string, 'closed'), 'directory 0700 2 0:0 4096');
  t.deepEqual(readdirSync(images).sort(), ['one', 'two']);
});

test('a directory of thousands of files, and a big file, go into an ext4 image', async (t) => {
  const add: Entry[] = Array.from({ length: 3000 }, (_, i) => ({
    type: 'file',
    path: `many/file-${i}`,
    contents: String(i),
  }));
  const size = 48 * 2 ** 20 + 1;
  add.push({ type: 'file', path: 'big', contents: { size, stream: pieces } });
  const image = join(temporary(t), 'disk');
  await makeImage({ add, to: image, format: 'ext4' });
  t.is(contents(image, 'many/file-2999'), '2999');
  t.is(inode(image, 'big'), `regular 0644 1 0:0 ${size}`);

  async function* pieces(): AsyncGenerator<Uint8Array> {
    for (let left = size; left > 0; left -= 2 ** 20) yield Buffer.alloc(Math.min(left, 2 ** 20), 'b');
  }
});

test('the size of an ext4 image is as asked for, and what does not fit is an error that leaves nothing', async (t) => {
  const path = temporary(t);
  const to = join(path, 'disk');
  await makeImage({ add: tree, to, format: 'ext4', sizeMib: 100 });
  t.is(statSync(to).size, 100 * 2 ** 20);
  const add: Entry[] = [{ type: 'file', path: 'big', contents: Buffer.alloc(20 * 2 ** 20, 1) }];
  await refused(t, { add, to, format: 'ext4', sizeMib: 16 }, 'ERR_CASEMATE_IMAGE', /debugfs/);
  t.is(statSync(to).size, 100 * 2 ** 20, 'what was there before is there yet');
  t.deepEqual(readdirSync(path), ['disk']);
});

testNoErofs('without mkfs.erofs an erofs image is an error that says what to install', async (t) => {
  const to = join(temporary(t), 'disk');
  const error = await refused(t, { add: tree, to, format: 'erofs' }, 'ERR_CASEMATE_IMAGE', /not installed/);
  t.regex(error.remedy, /apt-get install erofs-utils/);
});

async function refused(t: ExecutionContext, options: unknown, code: ErrorCode, message = /./): Promise<CasemateError> {
  return (await t.throwsAsync(makeImage(options as ImageOptions), {
    instanceOf: CasemateError,
    code,
    message,
  })) as CasemateError;
}

const file = (path: string, text = ''): Entry => ({ type: 'file', path, contents: text });

test('names that debugfs would take for commands are refused, in whichever place', async (t) => {
  const to = join(temporary(t), 'disk');
  for (const entry of [
    file('a\nrm /etc'),
    file('a\rb'),
    { type: 'symlink', path: 'a', target: 'b\nrm c' },
    { type: 'symlink', path: 'a', target: 'b'.repeat(2001) },
    { type: 'fifo', path: 'a\nb' },
  ] as const) {
    await refused(t, { add: [entry], to, format: 'ext4' }, 'ERR_CASEMATE_IMAGE', /debugfs does not take/);
  }
});

ava('a file that changes while it is read is an error, and leaves nothing', async (t) => {
  const [path, images] = [folder(t), temporary(t)];
  const entries = await readDirectory(path);
  truncateSync(join(path, 'etc/big'), 10);
  await refused(t, { add: entries, to: join(images, 'i') }, 'ERR_CASEMATE_IMAGE', /"etc\/big" changed while/);
  t.deepEqual(readdirSync(images), []);
});

ava('what cannot be read or written is named', async (t) => {
  const path = temporary(t);
  const to = join(path, 'image');
  await refused(t, { from: '/nowhere', to }, 'ERR_CASEMATE_FILE', /nowhere/);
  await refused(t, { from: '/dev/null', to }, 'ERR_CASEMATE_IMAGE', /cut short/);
  await refused(t, { from: folder(t), to: '/nowhere/image' }, 'ERR_CASEMATE_FILE', /nowhere/);
  t.deepEqual(readdirSync(path), []);
});

ava('options of an image are checked', async (t) => {
  const code = 'ERR_CASEMATE_INVALID_OPTION';
  await refused(t, {}, code, /options\.to/);
  await refused(t, { to: 'x', format: 'iso' }, code, /options\.format/);
  await refused(t, { to: 'x', ownership: 'mine' }, code, /options\.ownership/);
  await refused(t, { to: 'x', sizeMib: 64 }, code, /options\.sizeMib/);
  await refused(t, { to: 'x', format: 'ext4', sizeMib: 1 }, code, /options\.sizeMib/);
  await refused(t, { to: 'x', size: 1 }, code, /options\.size/);
});

const command = (...args: string[]) =>
  spawnSync(process.execPath, [join(root, 'lib/cli/main.js'), 'image', ...args], { encoding: 'utf8' });

ava('casemate image makes one of a directory or an archive', (t) => {
  const [path, images] = [folder(t), temporary(t)];
  t.like(command(path, join(images, 'initrd')), { status: 0, stdout: '', stderr: '' });
  said('tar', ['--create', '--sort=name', '--file', join(images, 'tar'), '.'], { cwd: path });
  t.like(command('--keep-owners', join(images, 'tar'), join(images, 'same')), { status: 0, stderr: '' });
  if (process.getuid?.() === 0) t.deepEqual(readFileSync(join(images, 'same')), readFileSync(join(images, 'initrd')));
  if (has('e2fsprogs')) {
    t.like(command('--format', 'ext4', '--size', '20', path, join(images, 'disk')), { status: 0, stderr: '' });
    t.is(statSync(join(images, 'disk')).size, 20 * 2 ** 20);
  }
  const { status, stderr } = command('/nowhere', join(images, 'no'));
  t.is(status, 125);
  t.regex(stderr, /nowhere.*ERR_CASEMATE_FILE/);
});
