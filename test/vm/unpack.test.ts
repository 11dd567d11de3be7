/** bzImages: kernels of a few instructions in every compression, and images that are not what they say. */
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay, setImmediate as turn } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { gzipSync } from 'node:zlib';
import { launch, warmUp } from 'casemate';
import { caller } from '#lib/jail/launcher.js';
import { parseJail } from '#lib/jail/profiles.js';
import { unpackedKernel } from '#lib/vm/unpack.js';
import { requires, root } from '../helpers/index.js';
import { kernel, loop, powerOff, print } from '../helpers/kernels.js';
import { leaks } from '../helpers/leaks.js';
import { packageWithout, tellsOf } from '../helpers/node.js';
import { childrenOf, descriptorsOf, ifThere, mountsOf, namespacesOf, statusOf } from '../helpers/proc.js';
import { refused, run } from '../helpers/vm.js';

const { serial: test } = requires('kvm', 'userns');

/** As they were made once by gzip, lzop and the others; the fuzzer begins with them. */
const corpus = join(root, 'native/test/corpus/unpack');
const sample = (compression: string): Buffer => readFileSync(join(corpus, compression));

const sectors = 1;
const start = (sectors + 1) * 512;

/** A bzImage with this payload; Documentation/arch/x86/boot.rst. */
function image(payload: Buffer, { version = 0x20f, size = payload.length }: { version?: number; size?: number } = {}) {
  const head = Buffer.alloc(start);
  head.writeUInt8(sectors, 0x1f1);
  head.write('HdrS', 0x202, 'latin1');
  head.writeUInt16LE(version, 0x206);
  head.writeUInt32LE(size, 0x24c);
  return Buffer.concat([head, payload]);
}

function changed(bytes: Buffer, change: (copy: Buffer) => unknown): Buffer {
  const copy = Buffer.from(bytes);
  change(copy);
  return copy;
}

const small = { memoryMib: 64, startTimeoutMs: 60_000 } as const;

for (const compression of readdirSync(corpus)) {
  test(`a kernel compressed by ${compression} runs`, async (t) => {
    const { output, exit } = await run({ ...small, kernel: join(corpus, compression) });
    t.is(output, 'unpacked\n');
    t.deepEqual(exit, { reason: 'poweroff' });
  });

  test(`a kernel compressed by ${compression} and cut short, or with a wrong byte, is refused`, async (t) => {
    const whole = sample(compression);
    // The size of its payload is that of what is left, its last four bytes what they were.
    const cut = Buffer.concat([whole.subarray(start, whole.length - 300), whole.subarray(-4)]);
    await refused(t, { ...small, kernel: image(cut) }, 'ERR_CASEMATE_GUEST_IMAGE');
    // Not in the middle, where it could be a literal: compressions without a checksum do not see that.
    const wrong = changed(whole, (copy) => copy.writeUInt32LE(copy.readUInt32LE(copy.length - 4) + 1, copy.length - 4));
    const error = await refused(t, { ...small, kernel: wrong }, 'ERR_CASEMATE_GUEST_IMAGE');
    t.regex(error.message, /damaged/);
    t.is(error.step, 'options.kernel');
  });
}

test('contents and descriptors are unpacked as well, by both protocols where the kernel has them', async (t) => {
  t.is((await run({ ...small, kernel: sample('xz') })).output, 'unpacked\n');
  const fd = openSync(join(corpus, 'gzip'), 'r');
  t.teardown(() => closeSync(fd));
  t.is((await run({ ...small, kernel: { fd } })).output, 'unpacked\n');
  const error = await refused(t, { ...small, kernel: { fd }, bootProtocol: 'pvh' }, 'ERR_CASEMATE_GUEST_IMAGE');
  t.regex(error.message, /no entry for PVH/);
});

const elf = kernel(print('unpacked\n'), powerOff);
const lies: readonly (readonly [title: string, why: RegExp, image: Buffer])[] = [
  ['is of a boot protocol that does not tell of payloads', /2\.08/, image(gzipSync(elf), { version: 0x207 })],
  ['is shorter than its payload', /shorter/, image(gzipSync(elf), { size: 100_000 })],
  ['has a payload that ends beyond all numbers', /shorter/, image(gzipSync(elf), { size: 0xffff_ffff })],
  ['has no payload', /shorter/, image(Buffer.alloc(0))],
  ['ends right behind its magic', /2\.08/, image(Buffer.alloc(0)).subarray(0, 0x206)],
  ['is compressed as nothing is', /compressed in a way/, image(Buffer.from('PK\x03\x04 and more'))],
  ['has a kernel that is no ELF file', /no ELF/, image(gzipSync(Buffer.alloc(1000)))],
  [
    'announces more than 512 MiB',
    /larger than 512 MiB/,
    image(changed(gzipSync(elf), (copy) => copy.writeUInt32LE(0x2000_0001, copy.length - 4))),
  ],
  [
    'announces less than it holds',
    /damaged/,
    image(changed(gzipSync(elf), (copy) => copy.writeUInt32LE(100, copy.length - 4))),
  ],
];

for (const [title, why, kernel] of lies) {
  test(`an image is refused that ${title}`, async (t) => {
    const error = await refused(t, { ...small, kernel }, 'ERR_CASEMATE_GUEST_IMAGE');
    t.regex(error.message, why);
    t.regex(error.remedy, /bzImage/);
  });
}

test('an image is unpacked once, for however many launches at the same time and later', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-unpack-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'vmlinuz');
  const bytes = image(gzipSync(kernel(print('once\n'), powerOff)));
  writeFileSync(path, bytes);
  const jail = parseJail(undefined);
  const all = await Promise.all([unpackedKernel(path, jail), unpackedKernel(bytes, jail), unpackedKernel(path, jail)]);
  const [first] = all;
  t.truthy(first);
  t.true(all.every((each) => each === first));
  t.is(await unpackedKernel(bytes, jail), first);

  // Another content is another kernel, also in the same file, and of the same size.
  const other = image(gzipSync(kernel(print('twice'), powerOff)));
  writeFileSync(path, other);
  const second = await unpackedKernel(path, jail);
  t.truthy(second);
  t.not(second, first);
  t.is((await run({ ...small, kernel: path })).output, 'twice');
});

test('a file is read again once it has changed, whatever it says of its time', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-unpack-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'vmlinuz');
  const fd = openSync(path, 'w+');
  t.teardown(() => closeSync(fd));
  const [one, two] = ['1\n', '2\n'].map((says) => image(gzipSync(kernel(print(says), powerOff)))) as [Buffer, Buffer];
  t.is(one.length, two.length);
  // One that has just changed is read each time; of one that has not, what is known is known.
  for (const settled of [false, true]) {
    for (const [bytes, says] of [
      [one, '1\n'],
      [two, '2\n'],
    ] as const) {
      writeSync(fd, bytes, 0, bytes.length, 0);
      utimesSync(path, 1, 1);
      if (settled) await delay(2100);
      t.is((await run({ ...small, kernel: path })).output, says);
      t.is((await run({ ...small, kernel: path })).output, says);
    }
  }
});

test('nobody changes a kernel that launches share', async (t) => {
  await using vm = await launch({ ...small, kernel: image(gzipSync(kernel(print('x'), loop))) });
  // Through the monitor's own descriptor, whoever may follow it; it opens for writing, which is all that it does.
  const fd = openSync(`/proc/${vm.pid}/fd/5`, 'r+');
  t.teardown(() => closeSync(fd));
  t.throws(() => writeSync(fd, 'x'), { code: 'EPERM' });
  t.throws(() => ftruncateSync(fd, 0), { code: 'EPERM' });
});

/** Holds casemate-unpack while it works, and looks at it. */
async function whileUnpacking<T>(look: (pid: number) => T): Promise<T> {
  // A second's work, of which there is more than enough.
  const big = Buffer.concat([elf, Buffer.alloc(256 << 20)]);
  const before = new Set(childrenOf('self'));
  const unpacking = warmUp({ kernel: image(gzipSync(big, { level: 1 })) });
  for (;;) {
    // Jailed before it reads anything, and it stands still while somebody looks.
    const pid = childrenOf('self').find(
      (child) => !before.has(child) && ifThere(() => statusOf(child).Name) === 'casemate-unpack',
    );
    if (pid !== undefined && ifThere(() => statusOf(pid).Seccomp) === '2') {
      process.kill(pid, 'SIGSTOP');
      try {
        return look(pid);
      } finally {
        process.kill(pid, 'SIGCONT');
        await unpacking;
      }
    }
    await turn();
  }
}

test('what unpacks is jailed as a monitor is, alone in its root, with nothing but two files', async (t) => {
  const host = namespacesOf('self');
  await whileUnpacking((pid) => {
    const status = statusOf(pid);
    t.is(status.NoNewPrivs, '1');
    for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb']) t.is(status[set], '0'.repeat(16), set);
    const own = namespacesOf(pid);
    for (const kind of ['mnt', 'cgroup', 'uts', 'ipc', 'user', 'pid', 'net'] as const) t.not(own[kind], host[kind]);
    t.deepEqual(
      mountsOf(pid).map(({ path }) => path),
      ['/'],
    );
    t.true(mountsOf(pid).every(({ options }) => options.includes('ro') && options.includes('nodev')));
    t.deepEqual(readdirSync(`/proc/${pid}/root/`), ['casemate-unpack']);
    const numbers = [...descriptorsOf(pid).keys()].sort((left, right) => left - right);
    t.deepEqual(numbers, [0, 1, 2, 3, 4, 5, ...(caller().rootless ? [] : [9])]);
    const limits = readFileSync(`/proc/${pid}/limits`, 'utf8');
    t.regex(limits, /Max address space +536870912 +536870912/);
    t.regex(limits, /Max file size +536870912 +536870912/);
  });
});

test('neither kernels that were unpacked nor images that were refused leave anything behind', async (t) => {
  const good = sample('lz4');
  const bad = image(gzipSync(Buffer.alloc(1000)));
  await warmUp({ kernel: good });
  const left = await leaks(async () => {
    await run({ ...small, kernel: good });
    await t.throwsAsync(launch({ ...small, kernel: bad }));
  });
  t.deepEqual(left, []);
});

test('a launch that is aborted does not wait for its kernel', async (t) => {
  const big = Buffer.concat([elf, Buffer.alloc(64 << 20)]);
  const kernel = image(gzipSync(big, { level: 1 }));
  const aborter = new AbortController();
  const launching = launch({ ...small, kernel, signal: aborter.signal });
  aborter.abort();
  await t.throwsAsync(launching, { name: 'AbortError' });
  await warmUp({ kernel }); // which waits for what goes on
});

test('without casemate-unpack the error says how to get it, and others launch as ever', async (t) => {
  const copy = packageWithout('unpack/casemate-unpack');
  const library = JSON.stringify(pathToFileURL(join(copy, 'lib/index.js')));
  const told = await tellsOf<{ code: string; remedy: string; exit: string }>(`
    const { launch } = await import(${library});
    const kernel = ${JSON.stringify(join(corpus, 'xz'))};
    const error = await launch({ kernel }).catch((error) => error);
    const vm = await launch({ console: 'ignore' });
    tell({ ...failure(error), exit: (await vm.exited).reason });
  `);
  t.is(told.code, 'ERR_CASEMATE_NOT_BUILT');
  t.regex(told.remedy, /apt-get install .*liblzma-dev/);
  t.is(told.exit, 'exit');
});
