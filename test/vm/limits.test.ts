/** What a VM may take of its host, as the kernel holds it to it. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import ava from 'ava';
import { CasemateError, type LaunchOptions, type Limits, launch, type Vm, warmUp } from 'casemate';
import { directoryForLimits } from '#lib/jail/cgroup.js';
import { flat, guest, stillborn } from '../helpers/guests.js';
import { requires } from '../helpers/index.js';
import { leaks } from '../helpers/leaks.js';
import { OtherNode } from '../helpers/node.js';
import { patience, readProc, within } from '../helpers/proc.js';
import { script } from '../helpers/scripts.js';
import { refused } from '../helpers/vm.js';
import { asScript, spinning, waiting } from '../jail/guests.js';

const { serial: test } = requires('kvm', 'limits');
const testWithout = requires('kvm', 'noLimits');

/** out 0xe0, eax; from 8 MiB on, each page is written: mov eax, 8 << 20; mov [rax], al; add rax, 0x1000; jmp to the mov */
const hungry = flat('e7e0 b800008000 8800 480500100000 ebf6');

const mount = () => /^\S+ (\S+) cgroup2 /m.exec(readFileSync('/proc/self/mounts', 'utf8'))?.[1] as string;

/** The directory of the cgroup that a process is in. */
const cgroupOf = (pid: number) => join(mount(), /^0::(.*)$/m.exec(readProc(pid, 'cgroup'))?.[1] as string);

const said = (vm: Vm, file: string) => readFileSync(join(cgroupOf(vm.pid), file), 'utf8').trim();

/** A whole block device. */
function disk(): string {
  const name = readdirSync('/sys/block').find((one) => !/^(loop|ram|zram)/.test(one)) ?? 'none';
  return `/dev/${name}`;
}

test('a VM is born in a cgroup of its own, with every limit that was asked for', async (t) => {
  const device = disk();
  await using vm = await launch({
    guest: waiting,
    limits: { memoryMib: 64, cpus: 0.25, pids: 32, io: [{ device, rbps: 1_000_000, wiops: 50 }] },
  });
  t.is(basename(dirname(cgroupOf(vm.pid))), 'casemate');
  t.is(said(vm, 'cgroup.procs'), String(vm.pid));
  t.is(said(vm, 'memory.max'), String(64 * 2 ** 20));
  t.is(said(vm, 'memory.oom.group'), '1');
  t.is(said(vm, 'cpu.max'), '25000 100000');
  t.is(said(vm, 'pids.max'), '32');
  const number = readFileSync(`/sys/class/block/${basename(device)}/dev`, 'utf8').trim();
  t.is(said(vm, 'io.max'), `${number} rbps=1000000 wbps=max riops=max wiops=50`);
});

test('evidence has the limits as the kernel has them', async (t) => {
  await using vm = await launch({ guest: waiting, limits: { memoryMib: 64, cpus: 2, pids: 100 } });
  const { ok, layers } = await vm.evidence();
  t.true(ok, JSON.stringify(layers.filter((layer) => !layer.ok)));
  const limits = layers.find(({ layer }) => layer === 'limits');
  t.is(limits?.source, 'kernel');
  for (const words of ['memory.max 67108864', 'memory.oom.group 1', 'cpu.max 200000 100000', 'pids.max 100'])
    t.true(limits?.observed.includes(words), `${words} in ${limits?.observed}`);
  t.is(layers.find(({ layer }) => layer === 'cgroup')?.asked, 'born in one of its own');
});

test('VMs get their cgroups where the doctor says, which makes nothing', async (t) => {
  const said = directoryForLimits(['cpu', 'memory', 'pids']);
  const before = readdirSync(dirname(said)).sort();
  t.is(directoryForLimits(['cpu', 'memory', 'pids']), said);
  t.deepEqual(readdirSync(dirname(said)).sort(), before);
  await using vm = await launch({ guest: waiting, limits: { memoryMib: 64, cpus: 1, pids: 32 } });
  t.is(dirname(cgroupOf(vm.pid)), said);
});

test('evidence tells when somebody has changed a limit', async (t) => {
  await using vm = await launch({ guest: waiting, limits: { pids: 100 } });
  writeFileSync(join(cgroupOf(vm.pid), 'pids.max'), 'max');
  const { ok, layers } = await vm.evidence();
  t.false(ok);
  t.like(
    layers.find(({ layer }) => layer === 'limits'),
    { ok: false, observed: 'pids.max max' },
  );
});

test('nothing is left of a cgroup, however its VM ends or does not start', async (t) => {
  const limits: Limits = { memoryMib: 64, cpus: 1, pids: 32 };
  await using first = await launch({ guest: waiting, limits });
  const all = dirname(cgroupOf(first.pid));
  const before = readdirSync(all).sort();
  const left = await leaks(async () => {
    const killed = await launch({ guest: waiting, limits });
    t.not(cgroupOf(killed.pid), cgroupOf(first.pid));
    await killed.kill();
    const exited = await launch({ guest: waiting, limits });
    exited.console.end('x');
    t.deepEqual(await exited.exited, { reason: 'exit', code: 0 });
    await refused(t, { guest: stillborn, limits }, 'ERR_CASEMATE_EARLY_EXIT');
    await refused(t, { guest: '/nowhere', limits }, 'ERR_CASEMATE_FILE');
    await refused(
      t,
      { guest: waiting, limits, jail: { selinux: { context: 'no:such:context:s0:c1,c2' } } },
      'ERR_CASEMATE_SELINUX',
    );
    const others = readdirSync(all).length;
    const aborting = new AbortController();
    const launched = launch({ guest: guest('silent'), limits, signal: aborting.signal });
    const aborted = t.throwsAsync(launched, { name: 'AbortError' });
    // Its launch never ends, so it is aborted with a cgroup.
    t.true(await within(5000, () => readdirSync(all).length > others));
    aborting.abort();
    await aborted;
  });
  t.deepEqual(left, []);
  t.deepEqual(readdirSync(all).sort(), before);
});

test('a VM over its limit of memory ends with that reason, and no other one is touched', async (t) => {
  await using other = await launch({ guest: waiting, limits: { memoryMib: 32 } });
  await using vm = await launch({
    guest: hungry,
    memoryMib: 256,
    limits: { memoryMib: 32 },
    timeoutMs: 60_000 * patience,
  });
  t.deepEqual(await vm.exited, { reason: 'out-of-memory' });
  t.regex(said(other, 'memory.events'), /^oom_kill 0$/m);
  other.console.end('x');
  t.deepEqual(await other.exited, { reason: 'exit', code: 0 });
});

test('a VM that runs out of memory before its guest runs is an error that says so', async (t) => {
  const options: LaunchOptions = { guest: waiting, input: Buffer.alloc(64 * 2 ** 20, 1), memoryMib: 128 };
  const error = await refused(t, { ...options, limits: { memoryMib: 16 } }, 'ERR_CASEMATE_EARLY_EXIT');
  t.deepEqual(error.cause, { reason: 'out-of-memory' });
  t.regex(error.remedy, /limits\.memoryMib/);
});

test('a VM that was killed is not one that ran out of memory', async (t) => {
  const vm = await launch({ guest: waiting, limits: { memoryMib: 64 } });
  t.deepEqual(await vm.kill(), { reason: 'killed' });
});

test('a VM that spins is held to its share of a processor', async (t) => {
  await using vm = await launch({ guest: spinning, limits: { cpus: 0.1 } });
  const throttled = () => Number(/^nr_throttled (\d+)$/m.exec(said(vm, 'cpu.stat'))?.[1]);
  t.true(await within(20_000, () => throttled() > 3), said(vm, 'cpu.stat'));
});

test('many VMs with limits start at once, each in a cgroup of its own', async (t) => {
  const vms = await Promise.all([1, 2, 3, 4].map((pids) => launch({ guest: waiting, limits: { pids: 10 + pids } })));
  t.deepEqual(
    vms.map((vm) => said(vm, 'pids.max')),
    ['11', '12', '13', '14'],
  );
  await Promise.all(vms.map((vm) => vm.kill()));
});

test('what a Node that was killed has left is removed by a later one', async (t) => {
  const holding = `
    import { launch } from 'casemate';
    const vm = await launch({ guest: ${asScript(waiting)}, limits: { pids: 32 } });
    tell(vm.pid);
    process.stdin.on('data', () => vm.kill());
  `;
  const first = new OtherNode(holding);
  t.teardown(() => first.kill());
  const pid = await first.told<number>();
  const left = cgroupOf(pid);
  await first.kill();
  t.true(await within(10_000, () => readFileSync(join(left, 'cgroup.procs'), 'utf8') === ''));
  const second = new OtherNode(holding);
  t.teardown(() => second.kill());
  const theirs = cgroupOf(await second.told<number>());
  t.is(dirname(theirs), dirname(left));
  t.false(existsSync(left));
  // Its own is in use, and stays where a third one comes.
  const third = new OtherNode(holding);
  t.teardown(() => third.kill());
  await third.told<number>();
  t.true(existsSync(theirs));
});

test('a worker that is terminated leaves no cgroup', async (t) => {
  const ended = await script(`
    import { readFileSync } from 'node:fs';
    const code = encodeURIComponent(\`
      import { parentPort } from 'node:worker_threads';
      import { launch } from '\${import.meta.resolve('casemate')}';
      const vm = await launch({ guest: ${asScript(waiting)}, limits: { pids: 32 } });
      parentPort.postMessage(vm.pid);
    \`);
    const worker = new Worker(new URL('data:text/javascript,' + code), { execArgv: [] });
    const pid = await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
    const mount = /^\\S+ (\\S+) cgroup2 /m.exec(readFileSync('/proc/self/mounts', 'utf8'))[1];
    const directory = mount + /^0::(.*)$/m.exec(readFileSync('/proc/' + pid + '/cgroup', 'utf8'))[1];
    tell(readdirSync(directory).length > 0);
    await worker.terminate();
    tell((() => { try { return readdirSync(directory).length; } catch (error) { return error.code; } })());
  `);
  t.deepEqual(ended, { code: 0, signal: null, errors: '', told: [true, 'ENOENT'] });
});

testWithout(
  'limits are refused where version 2 of cgroups has no controllers, with their names, and nothing is made',
  async (t) => {
    const limits: Limits = { memoryMib: 64, cpus: 0.5, pids: 32 };
    const error = await refused(t, { guest: waiting, limits }, 'ERR_CASEMATE_LIMITS');
    t.is(t.throws(() => directoryForLimits(['memory', 'cpu', 'pids'])).message, error.message);
    t.regex(error.message, /Limits of memory, cpu, pids cannot be set here: .*(memory, cpu, pids|not mounted)/);
    t.true(error.remedy.length > 0);
    t.is(error.step, 'options.limits');
    const onlyOne = await refused(t, { guest: waiting, limits: { pids: 32 } }, 'ERR_CASEMATE_LIMITS');
    t.notRegex(onlyOne.message, /memory|cpu/);
    await t.throwsAsync(warmUp({ limits }), { instanceOf: CasemateError, code: 'ERR_CASEMATE_LIMITS' });
    t.deepEqual(await leaks(() => refused(t, { limits }, 'ERR_CASEMATE_LIMITS')), []);
  },
);

const bad: Readonly<Record<string, [limits: unknown, code: CasemateError['code']]>> = {
  'none at all': [{}, 'ERR_CASEMATE_INVALID_OPTION'],
  'something else': [true, 'ERR_CASEMATE_INVALID_OPTION'],
  'an unknown one': [{ memory: 64 }, 'ERR_CASEMATE_INVALID_OPTION'],
  'too little memory': [{ memoryMib: 3 }, 'ERR_CASEMATE_INVALID_OPTION'],
  'a fraction of memory': [{ memoryMib: 64.5 }, 'ERR_CASEMATE_INVALID_OPTION'],
  'no processor': [{ cpus: 0 }, 'ERR_CASEMATE_INVALID_OPTION'],
  'too many processors': [{ cpus: 1025 }, 'ERR_CASEMATE_INVALID_OPTION'],
  'processors in words': [{ cpus: '1' }, 'ERR_CASEMATE_INVALID_OPTION'],
  'a NaN': [{ cpus: Number.NaN }, 'ERR_CASEMATE_INVALID_OPTION'],
  'one task': [{ pids: 1 }, 'ERR_CASEMATE_INVALID_OPTION'],
  'no list of devices': [{ io: { device: '/dev/sda' } }, 'ERR_CASEMATE_INVALID_OPTION'],
  'a hole in the list of devices': [{ io: new Array(1) }, 'ERR_CASEMATE_INVALID_OPTION'],
  'a device without a rate': [{ io: [{ device: '/dev/sda' }] }, 'ERR_CASEMATE_INVALID_OPTION'],
  'a rate of nothing': [{ io: [{ device: '/dev/sda', rbps: 0 }] }, 'ERR_CASEMATE_INVALID_OPTION'],
  'a device that is none': [{ io: [{ device: '/dev/null', rbps: 1 }] }, 'ERR_CASEMATE_FILE'],
  'a device that is not there': [{ io: [{ device: '/dev/nowhere', rbps: 1 }] }, 'ERR_CASEMATE_FILE'],
};

for (const [what, [limits, code]] of Object.entries(bad)) {
  ava(`limits cannot be ${what}`, async (t) => {
    await refused(t, { limits: limits as Limits }, code);
  });
}

ava('limits and a cgroup of the caller are refused together', async (t) => {
  const error = await refused(t, { limits: { pids: 9 }, jail: { cgroup: { fd: 0 } } }, 'ERR_CASEMATE_INVALID_OPTION');
  t.is(error.step, 'options.limits');
});
