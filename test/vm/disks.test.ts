/** Disks of Linux guests: what a guest and the host see of them, who may have one, and what becomes of failures. */
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import ava from 'ava';
import { type CasemateError, launch } from 'casemate';
import { requires } from '../helpers/index.js';
import { follow, kernel, loop, powerOff, print, printString } from '../helpers/kernels.js';
import { linux, says } from '../helpers/linux.js';
import { refused, run } from '../helpers/vm.js';

const test = requires('kvm').serial;
const testLinux = requires('kvm', 'kernels').serial;
const testAsRoot = requires('kvm', 'kernels', 'root').serial;

const folder = mkdtempSync(join(tmpdir(), 'casemate-disks-'));
ava.after.always(() => rmSync(folder, { recursive: true }));

const modules = ['virtio_mmio', 'virtio_blk'];
let count = 0;

/** A file for a disk. */
function disk(contents: string | Uint8Array, size = 1 << 20): string {
  count += 1;
  const path = join(folder, `disk-${count}`);
  writeFileSync(path, contents);
  truncateSync(path, size);
  return path;
}

const invalid = [
  { disks: {} },
  { disks: [undefined] },
  { disks: [{}] },
  { disks: [{ path: 'disk', fd: 3 }] },
  { disks: [{ path: '' }] },
  { disks: [{ path: 'disk', serial: 'x'.repeat(21) }] },
  { disks: [{ path: 'disk', readOnly: 1 }] },
  { disks: [{ path: 'disk', rateLimit: { bytesPerSecond: 0 } }] },
  { disks: [{ path: 'disk', bootable: true }] },
  { disks: Array.from({ length: 16 }, () => ({ path: 'disk' })) },
] as const;

for (const options of invalid) {
  test(`${JSON.stringify(options).slice(0, 80)} is refused`, async (t) => {
    const error = await refused(t, { kernel: 'k', ...options } as never, 'ERR_CASEMATE_INVALID_OPTION');
    t.regex(error.step ?? '', /^options\.disks/);
  });
}

test('a guest without a kernel has no disks', async (t) => {
  await refused(t, { disks: [{ path: 'disk' }] }, 'ERR_CASEMATE_INVALID_OPTION');
});

test('what cannot be a disk is refused before anything is created', async (t) => {
  const nothing = await refused(
    t,
    { kernel: kernel(loop), disks: [{ path: join(folder, 'none') }] },
    'ERR_CASEMATE_FILE',
  );
  t.is(nothing.step, 'options.disks[0]');
  for (const path of [folder, '/dev/null', disk('', 511)]) {
    await refused(t, { kernel: kernel(loop), disks: [{ path, readOnly: true }] }, 'ERR_CASEMATE_FILE');
  }
  const fd = openSync(disk('x'), 'r');
  t.teardown(() => closeSync(fd));
  await refused(t, { kernel: kernel(loop), disks: [{ fd }] }, 'ERR_CASEMATE_FILE');
});

test('a disk that a VM writes to no other one has; one that is only read several have', async (t) => {
  const path = disk('shared');
  const options = { kernel: kernel(print('x'), loop), startPaused: true };
  const reading = { ...options, disks: [{ path, readOnly: true }] };
  const writing = { ...options, disks: [{ path }] };
  {
    await using vm = await launch(writing);
    t.true((await refused(t, writing, 'ERR_CASEMATE_FILE')).message.includes('in use'));
    await refused(t, reading, 'ERR_CASEMATE_FILE');
    await vm.kill();
  }
  await using one = await launch(reading);
  await using other = await launch(reading);
  await refused(t, writing, 'ERR_CASEMATE_FILE');
  t.is(one.state, other.state);
});

test('the jail of a guest with disks is as strict as any', async (t) => {
  const disks = [{ path: disk('a') }, { path: disk('b', 4 << 20) }, { path: disk('c'), readOnly: true }];
  await using vm = await launch({ kernel: kernel(print('x'), loop), startPaused: true, disks });
  const { ok, layers } = await vm.evidence();
  t.deepEqual(
    layers.filter((layer) => !layer.ok),
    [],
  );
  t.true(ok);
  // It can write to its disks, and make no file larger than they are.
  t.regex(layers.find(({ layer }) => layer === 'rlimits')?.observed ?? '', new RegExp(`fsize ${4 << 20}\\b`));
});

test('the first disk is the root of a kernel without an initrd', async (t) => {
  const path = disk('root');
  const showing = kernel(follow(0x228), printString, powerOff);
  const line = async (options: object) => (await run({ kernel: showing, ...options })).output;
  t.is(await line({ disks: [{ path }] }), 'console=ttyS0 quiet panic=-1 pci=off root=/dev/vda rw\0');
  t.regex(await line({ disks: [{ path, readOnly: true }] }), / root=\/dev\/vda ro\0$/);
  t.notRegex(await line({ disks: [{ path }], initrd: Buffer.from('initrd') }), /root=/);
  t.is(await line({ disks: [{ path }], cmdline: 'mine' }), 'mine\0');
});

testLinux('a guest finds its disks in their order, with their sizes and serials, and reads them', async (t) => {
  const fd = openSync(disk('the second\n', 3 << 20), 'r+');
  t.teardown(() => closeSync(fd));
  const script = `for disk in vda vdb vdc; do
    echo "$disk $(cat /sys/block/$disk/size /sys/block/$disk/ro /sys/block/$disk/serial | tr '\\n' ' ')"
    head -n 1 /dev/$disk
  done`;
  const disks = [
    { path: disk('the first\n'), serial: 'one' },
    { fd, serial: 'a serial of 20 bytes' },
    { path: disk('the third\n'), readOnly: true },
  ];
  const { output, exit } = await run(linux(script, { modules, disks }));
  t.regex(output, /^vda 2048 0 one\s*\r?\nthe first/m);
  t.regex(output, /^vdb 6144 0 a serial of 20 bytes\s*\r?\nthe second/m);
  t.regex(output, /^vdc 2048 1\s*\r?\nthe third/m);
  t.deepEqual(exit, { reason: 'poweroff' });
});

testLinux('what a guest writes, discards and zeroes is so in its file', async (t) => {
  const path = disk(Buffer.alloc(64 << 10, 'x'), 8 << 20);
  const script = `
    echo written | dd of=/dev/vda bs=4096 seek=1 conv=sync,fsync 2>/dev/null && echo done: write
    blkdiscard -o 8192 -l 4096 /dev/vda && echo done: discard
    dd if=/dev/urandom of=/dev/vda bs=64k seek=16 count=64 conv=fsync 2>/dev/null && echo done: much
    dd if=/dev/vda bs=64k skip=16 count=64 2>/dev/null | md5sum`;
  const { output } = await run(linux(script, { modules, disks: [{ path }] }));
  t.deepEqual(
    [...output.matchAll(/done: (\w+)/g)].map(([, word]) => word),
    ['write', 'discard', 'much'],
  );
  const bytes = readFileSync(path);
  t.is(bytes.length, 8 << 20);
  t.is(bytes.toString('latin1', 4096, 4104), 'written\n');
  t.true(bytes.subarray(8192, 12288).every((byte) => byte === 0));
  t.true(bytes.subarray(12288, 64 << 10).every((byte) => byte === 0x78));
  const { createHash } = await import('node:crypto');
  const sum = createHash('md5')
    .update(bytes.subarray(1 << 20, 5 << 20))
    .digest('hex');
  t.true(output.includes(sum), output);
});

testLinux('a read-only disk cannot be written to', async (t) => {
  const path = disk('as it was');
  const script = 'echo no | dd of=/dev/vda bs=512 conv=sync,fsync 2>&1; echo "ended $?"';
  const { output } = await run(linux(script, { modules, disks: [{ path, readOnly: true }] }));
  t.notRegex(output, /ended 0/);
  t.is(readFileSync(path, 'latin1').slice(0, 9), 'as it was');
});

testLinux(
  'a file that becomes shorter is an error to its guest and an event to Node, and the guest goes on',
  async (t) => {
    const path = disk('x', 8 << 20);
    const script = `echo ready; read line
    dd if=/dev/vda of=/dev/null bs=4096 skip=1024 count=1 2>&1; echo "read $?"
    dd if=/dev/vda of=/dev/null bs=4096 count=1 2>/dev/null; echo "read again $?"`;
    await using vm = await launch(linux(script, { modules, disks: [{ path }] }));
    await says(vm, 'ready');
    truncateSync(path, 1 << 20);
    const failed = once(vm, 'device-error') as Promise<[CasemateError]>;
    vm.console.write('go\n');
    const output = await says(vm, 'read again');
    const [error] = await failed;
    t.is(error.code, 'ERR_CASEMATE_DEVICE');
    t.is(error.step, 'options.disks[0]');
    t.regex(error.message, /read failed: EIO/);
    t.regex(output, /read 1/);
    vm.console.resume();
    t.deepEqual(await vm.exited, { reason: 'poweroff' });
  },
);

testLinux('what a guest may read and write in a second it does not exceed', async (t) => {
  const rateLimit = { bytesPerSecond: 1 << 20, burstBytes: 256 << 10 };
  const script = `echo ready; read line
    dd if=/dev/vda of=/dev/null bs=64k count=24 2>/dev/null; echo "read $?"
    dd if=/dev/zero of=/dev/vda bs=64k count=24 conv=fsync 2>/dev/null; echo "wrote $?"`;
  await using vm = await launch(linux(script, { modules, disks: [{ path: disk('x', 8 << 20), rateLimit }] }));
  await says(vm, 'ready');
  const since = performance.now();
  vm.console.write('go\n');
  t.regex(await says(vm, 'wrote 0'), /read 0/);
  const seconds = (performance.now() - since) / 1000;
  // A burst and the largest request may have come at once.
  const least = (2 * 24 * (64 << 10) - rateLimit.burstBytes - (1 << 20)) / rateLimit.bytesPerSecond;
  t.true(seconds > least, `${seconds} s, and at least ${least}`);
});

const ringSwitch = '/proc/sys/kernel/io_uring_disabled';

testLinux('where the host forbids io_uring, threads serve disks, and it can be seen', async (t) => {
  if (process.getuid?.() !== 0 || !existsSync(ringSwitch)) {
    t.log('Not tried: only root can forbid it, and on kernels from 6.6 on');
    return t.pass();
  }
  const before = readFileSync(ringSwitch, 'utf8');
  t.teardown(() => writeFileSync(ringSwitch, before));
  const served = async () => {
    const path = disk('x', 8 << 20);
    const script = `echo ready; read line
      dd if=/dev/zero of=/dev/vda bs=64k count=64 conv=fsync 2>/dev/null; echo "wrote $?"
      echo here | dd of=/dev/vda bs=512 seek=100 conv=sync,fsync 2>/dev/null; echo "wrote $?"
      blkdiscard -o 8192 -l 4096 /dev/vda; echo "discarded $?"`;
    await using vm = await launch(linux(script, { modules, disks: [{ path }] }));
    await says(vm, 'ready');
    const { ok, descriptors } = await vm.evidence();
    t.true(ok);
    vm.console.write('go\n');
    t.regex(await says(vm, 'discarded 0'), /wrote 0\s+wrote 0/);
    vm.console.resume();
    t.deepEqual(await vm.exited, { reason: 'poweroff' });
    t.is(readFileSync(path, 'latin1').slice(51200, 51205), 'here\n');
    return descriptors.find(({ fd }) => fd === 1)?.target;
  };
  writeFileSync(ringSwitch, '0');
  t.is(await served(), 'anon_inode:[io_uring]');
  writeFileSync(ringSwitch, '2');
  t.is(await served(), 'anon_inode:[eventfd]');
});

/** Runs a program of the host's, which must succeed. */
function host(command: string, ...args: string[]): string {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr}`);
  return stdout.trim();
}

testAsRoot(
  'while the file system of a disk is full the guest is told so and Node too, and then it goes on',
  async (t) => {
    const place = join(folder, 'full');
    mkdirSync(place);
    host('mount', '-t', 'tmpfs', '-o', 'size=4m', 'full', place);
    t.teardown(() => host('umount', '--lazy', place));
    const [path, filler] = [join(place, 'disk'), join(place, 'filler')];
    writeFileSync(path, '');
    truncateSync(path, 16 << 20);
    writeFileSync(filler, Buffer.alloc(3 << 20));
    const write = 'dd if=/dev/zero of=/dev/vda bs=64k count=32 conv=fsync 2>/dev/null; echo "wrote $?"';
    await using vm = await launch(linux(`${write}; read line; ${write}; echo end`, { modules, disks: [{ path }] }));
    const errors: CasemateError[] = [];
    vm.on('device-error', (error) => errors.push(error));
    await says(vm, 'wrote 1');
    t.is(errors.length, 1);
    t.like(errors[0], { code: 'ERR_CASEMATE_DEVICE', step: 'options.disks[0]' });
    t.regex(errors[0]?.message ?? '', /ENOSPC/);
    rmSync(filler);
    vm.console.write('\n');
    t.regex(await says(vm, 'end'), /wrote 0/);
    t.deepEqual(await vm.exited, { reason: 'poweroff' });
  },
);

testAsRoot('block devices are disks, too, unless they are mounted', async (t) => {
  const path = disk(Buffer.concat([Buffer.from('of a device\n'), Buffer.alloc(64 << 10, 'x')]), 8 << 20);
  host('modprobe', 'loop');
  const device = host('losetup', '--find', '--show', path);
  t.teardown(() => host('losetup', '--detach', device));
  const script = `head -n 1 /dev/vda; cat /sys/block/vda/size
    echo written | dd of=/dev/vda bs=4096 seek=1 conv=sync,fsync 2>/dev/null; echo "wrote $?"
    blkdiscard -o 8192 -l 4096 /dev/vda; echo "discarded $?"`;
  const { output, exit } = await run(linux(script, { modules, disks: [{ path: device }] }));
  t.regex(output, /of a device\r?\n16384\r?\nwrote 0\r?\ndiscarded 0/);
  t.deepEqual(exit, { reason: 'poweroff' });
  const bytes = readFileSync(path);
  t.is(bytes.toString('latin1', 4096, 4104), 'written\n');
  t.true(bytes.subarray(8192, 12288).every((byte) => byte === 0));
  t.is(bytes[12288], 'x'.charCodeAt(0));
  host('mke2fs', '-q', '-t', 'ext4', device);
  const mounted = join(folder, 'mounted');
  mkdirSync(mounted);
  host('mount', device, mounted);
  try {
    await refused(t, { kernel: kernel(loop), disks: [{ path: device }] }, 'ERR_CASEMATE_FILE');
  } finally {
    host('umount', mounted);
  }
});

testLinux(
  'of a monitor that is killed while its guest writes, every block that was flushed is in the file',
  async (t) => {
    for (let round = 0; round < 2; round += 1) {
      const path = disk('', 16 << 20);
      const script = `i=1; echo ready; while true; do
      echo "block $i" | dd of=/dev/vda bs=4096 seek=$i conv=sync,fsync,notrunc 2>/dev/null && echo "flushed $i"
      i=$((i + 1)); done`;
      await using vm = await launch(linux(script, { modules, disks: [{ path }] }));
      let said = await says(vm, 'flushed 1');
      vm.console.on('data', (chunk) => {
        said += chunk;
      });
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 1500));
      await vm.kill();
      const flushed = [...said.matchAll(/^flushed (\d+)\r?$/gm)].map(([, number]) => Number(number));
      t.true(flushed.length > 0);
      const bytes = readFileSync(path);
      for (const number of flushed) {
        t.true(
          bytes.toString('latin1', number * 4096, number * 4096 + 16).startsWith(`block ${number}\n`),
          `${number}`,
        );
      }
    }
  },
);
