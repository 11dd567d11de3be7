/** Linux guests on file systems that casemate/image made, of a directory and of an archive, as initrds and as disks. */
import {
  chmodSync,
  copyFileSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { type Entry, type ImageFormat, makeImage } from 'casemate/image';
import { type ExecutionContext, requires } from '../helpers/index.js';
import { initrd, linux, testKernel } from '../helpers/linux.js';
import { run } from '../helpers/vm.js';
import { said } from '../image/tree.js';

// One after the other: each takes a kernel's memory.
const { serial: test } = requires('kvm', 'kernels');
const { serial: testDisk } = requires('kvm', 'kernels', 'e2fsprogs', 'erofs');

const busybox = join(process.env.CASEMATE_TEST_KERNELS ?? '', 'busybox');

/** What a guest says of a file: its mode, links, owner and size or device. */
const look = (path: string) => `stat -c '%n %A %h %u:%g %s %t,%T' ${path}\n`;
const looked = ['secret', 'other', 'folder', 'link', 'pipe', 'setuid', 'folder/dev'];

const tells = [
  './secret -rw------- 2 0:0 5 0,0',
  './other -rw------- 2 0:0 5 0,0',
  './folder drwxr-x--x 2 0:0',
  './link lrwxrwxrwx 1 0:0 6 0,0',
  './pipe prw-r--r-- 1 0:0 0 0,0',
  './setuid -rwsr-xr-x 1 0:0 0 0,0',
  './folder/dev brw-r----- 1 3:4 0 fe,12345',
];

const check = `${looked.map((path) => look(`./${path}`)).join('')}cat secret\nmd5sum big\n`;

/** What no ordinary user can make on this host. */
const device: Entry = { type: 'block', path: 'folder/dev', mode: 0o640, uid: 3, gid: 4, major: 254, minor: 0x12345 };

function folder(t: ExecutionContext): { from: string; to: string } {
  const place = mkdtempSync(join(tmpdir(), 'casemate-root-'));
  t.teardown(() => rmSync(place, { recursive: true }));
  const from = join(place, 'from');
  mkdirSync(join(from, 'folder'), { recursive: true });
  chmodSync(join(from, 'folder'), 0o751);
  writeFileSync(join(from, 'secret'), 'told\n', { mode: 0o600 });
  linkSync(join(from, 'secret'), join(from, 'other'));
  symlinkSync('secret', join(from, 'link'));
  writeFileSync(join(from, 'setuid'), '');
  chmodSync(join(from, 'setuid'), 0o4755);
  writeFileSync(join(from, 'big'), Buffer.alloc(5_000_001, 'casemate'));
  said('mkfifo', ['-m', '644', 'pipe'], { cwd: from });
  return { from, to: join(place, 'image') };
}

const sumOfBig = (from: string): string => said('md5sum', ['big'], { cwd: from }).trim();

for (const kind of ['directory', 'archive'] as const) {
  test(`a kernel takes an initrd, made of ${kind === 'archive' ? 'an archive' : 'a directory'}, for what it was`, async (t) => {
    const { from, to } = folder(t);
    said('tar', ['--create', '--file', `${to}.tar`, '.'], { cwd: from });
    await makeImage({ from: kind === 'archive' ? gzipSync(readFileSync(`${to}.tar`)) : from, to, add: [device] });
    // In front of it a small one whose init looks at what both of them make.
    const first = initrd(testKernel, `cd /\n${check}`);
    const { output, exit } = await run({ ...linux(''), initrd: [first, to] });
    t.deepEqual(exit, { reason: 'poweroff' });
    for (const line of tells) t.true(output.includes(line), `${line} in ${output}`);
    t.true(output.includes(`told\r\n${sumOfBig(from)}`), output);
  });
}

for (const format of ['ext4', 'erofs'] satisfies ImageFormat[]) {
  testDisk(`a kernel takes an ${format} of a directory for what it was`, async (t) => {
    const { from, to } = folder(t);
    await makeImage({ from, to, format, add: [device] });
    const readOnly = format === 'erofs';
    const write = readOnly ? '' : 'echo written >/mnt/new && sync && cat /mnt/new';
    const script = `mkdir /mnt\nmount -t ${format} ${readOnly ? '-o ro ' : ''}/dev/vda /mnt\ncd /mnt\n${check}${write}\ncd /\numount /mnt\n`;
    const modules = ['virtio_mmio', 'virtio_blk', format];
    const { output, exit } = await run(linux(script, { modules, disks: [{ path: to, readOnly }] }));
    t.deepEqual(exit, { reason: 'poweroff' });
    for (const line of tells) t.true(output.includes(line), `${line} in ${output}`);
    t.true(output.includes(`told\r\n${sumOfBig(from)}`), output);
    if (readOnly) return;
    t.true(output.includes('written'), output);
    said('e2fsck', ['-f', '-n', to]);
    t.is(said('debugfs', ['-R', 'cat /new', to]), 'written\n');
  });
}

testDisk('a kernel has its root on a disk of a directory, and its init there', async (t) => {
  const { from, to } = folder(t);
  mkdirSync(join(from, 'bin'));
  copyFileSync(busybox, join(from, 'bin/busybox'));
  chmodSync(join(from, 'bin/busybox'), 0o755);
  for (const name of ['sh', 'echo', 'poweroff', 'mount']) symlinkSync('busybox', join(from, `bin/${name}`));
  for (const name of ['proc', 'dev']) mkdirSync(join(from, name));
  writeFileSync(
    join(from, 'init'),
    '#!/bin/sh\nmount -t proc proc /proc\necho "root is $(cat /proc/mounts)"\npoweroff -f\n',
    { mode: 0o755 },
  );
  symlinkSync('busybox', join(from, 'bin/cat'));
  await makeImage({ from, to, format: 'ext4' });
  const modules = ['virtio_mmio', 'virtio_blk', 'ext4'];
  const script = 'mkdir /new\nmount /dev/vda /new\nmount -o move /dev /new/dev\nexec switch_root /new /init\n';
  const { output, exit } = await run(linux(script, { modules, disks: [{ path: to }] }));
  t.deepEqual(exit, { reason: 'poweroff' });
  t.regex(output, /root is .*\/dev\/vda \/ ext4/s);
});
