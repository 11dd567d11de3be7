/** A monitor at rest, as the kernel has it: nothing here is asked of the monitor or of our own library. */
import { closeSync, mkdtempSync, openSync, readdirSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { launch, type Vm } from 'casemate';
import { type LayerName, layerNames, steps } from 'casemate/jail';
import { requires } from '../helpers/index.js';
import { leaks } from '../helpers/leaks.js';
import { OtherNode } from '../helpers/node.js';
import {
  descriptorsOf,
  isAlive,
  mountsOf,
  namespaceKinds,
  namespacesOf,
  readProc,
  statusOf,
  within,
} from '../helpers/proc.js';
import { asScript, spinning, waiting } from './guests.js';
import { spawnReport } from './spawned.js';

const { serial: test } = requires('kvm', 'userns');
const { serial: testAsRoot } = requires('kvm', 'root');
const { serial: testWithPrograms } = requires('kvm', 'root', 'programs');

const rootless = process.geteuid?.() !== 0;
const layer = (evidence: Awaited<ReturnType<Vm['evidence']>>, name: string) =>
  evidence.layers.find((each) => each.layer === name);

test('every namespace of a monitor but that of time is its own', async (t) => {
  await using one = await launch({ guest: waiting });
  await using two = await launch({ guest: waiting });
  const host = namespacesOf('self');
  const first = namespacesOf(one.pid);
  const second = namespacesOf(two.pid);
  for (const kind of namespaceKinds.filter((kind) => kind !== 'time')) {
    t.not(first[kind], host[kind], `${kind}, of the host`);
    t.not(second[kind], host[kind], `${kind}, of the host`);
    t.not(first[kind], second[kind], `${kind}, of the other VM`);
  }
  t.is(first.time, host.time);
});

test('the time namespace is its own where asked for', async (t) => {
  await using vm = await launch({ guest: waiting, jail: { layers: { timeNamespace: 'required' } } });
  t.not(namespacesOf(vm.pid).time, namespacesOf('self').time);
  t.true((await vm.evidence()).ok);
});

test('it sees two mounts, read-only: an empty root and its own file', async (t) => {
  await using vm = await launch({ guest: waiting });
  const mounts = mountsOf(vm.pid);
  t.deepEqual(mounts.map(({ path }) => path).sort(), ['/', '/casemate-vmm']);
  for (const { path, type, options } of mounts) {
    t.true(options.includes('ro'), path);
    t.true(options.includes('nodev'), path);
    if (path !== '/') continue;
    t.is(type, 'tmpfs');
    t.true(options.includes('nosuid') && options.includes('noexec'), options.join());
  }
  t.is(readlinkSync(`/proc/${vm.pid}/exe`), '/casemate-vmm');
  t.is(readlinkSync(`/proc/${vm.pid}/cwd`), '/');
  t.is(readlinkSync(`/proc/${vm.pid}/root`), '/');
});

testAsRoot('nothing but the monitor lies in its root', async (t) => {
  await using vm = await launch({ guest: waiting });
  t.deepEqual(readdirSync(`/proc/${vm.pid}/root/`), ['casemate-vmm']);
});

test('it has no capability in any set, no way to new ones, and a filter in every thread', async (t) => {
  await using vm = await launch({ guest: waiting });
  const status = statusOf(vm.pid);
  for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb']) t.is(status[set], '0'.repeat(16), set);
  const tasks = readdirSync(`/proc/${vm.pid}/task`);
  t.true(tasks.length >= 1);
  for (const task of tasks) {
    const of = statusOf(vm.pid, `task/${task}/`);
    t.is(of.NoNewPrivs, '1');
    t.is(of.Seccomp, '2');
    t.is(of.Seccomp_filters, '2', 'one for the set-up, a tighter one for the guest');
  }
});

test('its user is nobody else, and the only one in its user namespace', async (t) => {
  await using one = await launch({ guest: waiting });
  await using two = await launch({ guest: waiting });
  const uids = [one, two].map(({ pid }) => statusOf(pid).Uid?.split('\t') ?? []);
  for (const [index, vm] of [one, two].entries()) {
    const uid = uids[index]?.[0];
    t.deepEqual(uids[index], Array(4).fill(uid));
    for (const map of ['uid_map', 'gid_map']) {
      const lines = readProc(vm.pid, map).trim().split('\n');
      t.is(lines.length, 1, map);
      t.regex(lines[0] ?? '', /^\s*\d+\s+\d+\s+1$/, map);
    }
  }
  if (rootless) return void t.is(uids[0]?.[0], String(process.geteuid?.()));
  t.not(uids[0]?.[0], uids[1]?.[0]);
  t.not(uids[0]?.[0], '0');
  t.is(statusOf(one.pid).Groups, '');
  t.is(statusOf(one.pid).Gid, statusOf(one.pid).Uid);
});

test('its environment is empty, and so are its arguments but for its name', async (t) => {
  await using vm = await launch({ guest: waiting, args: ['secret'] });
  t.is(readProc(vm.pid, 'environ'), '');
  t.is(readProc(vm.pid, 'cmdline'), 'casemate-vmm\0');
});

test('it has the descriptors that it was given, and those of its own VM', async (t) => {
  const kinds = (pid: number) =>
    Object.fromEntries([...descriptorsOf(pid)].map(([fd, target]) => [fd, target.replace(/\[\d+\]$/, '')]));
  const given = {
    0: '/dev/null',
    1: '/dev/null',
    2: '/dev/null',
    3: 'socket:',
    4: '/dev/kvm',
    5: '/memfd:casemate (deleted)',
  };
  const consoles = { 6: 'socket:', 7: 'socket:' };
  const lease = rootless ? {} : { 9: '/run/casemate/user-ids' };
  const own = (pid: number) => {
    const found = Object.entries(kinds(pid)).filter(([, target]) => target.startsWith('anon_inode:'));
    return { found: Object.fromEntries(found), kinds: found.map(([, target]) => target).sort() };
  };

  await using vm = await launch({ guest: waiting });
  t.deepEqual(own(vm.pid).kinds, ['anon_inode:kvm-vcpu:0', 'anon_inode:kvm-vm']);
  t.deepEqual(kinds(vm.pid), { ...given, ...consoles, ...lease, ...own(vm.pid).found });

  await using more = await launch({ guest: waiting, input: Buffer.from('input') });
  t.deepEqual(kinds(more.pid), { ...given, ...consoles, ...lease, 8: given[5], ...own(more.pid).found });

  await using less = await launch({ guest: spinning, console: 'ignore' });
  t.deepEqual(kinds(less.pid), { ...given, ...lease, ...own(less.pid).found });
});

test('its table of descriptors is no larger for what Node has open', async (t) => {
  await using first = await launch({ guest: waiting });
  const many = Array.from({ length: 300 }, () => openSync('/dev/null', 'r'));
  try {
    await using second = await launch({ guest: waiting });
    t.true(Number(statusOf(process.pid).FDSize) > many.length);
    t.is(statusOf(second.pid).FDSize, statusOf(first.pid).FDSize);
  } finally {
    for (const fd of many) closeSync(fd);
  }
});

test('a guest given by path it can only read', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-test-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'guest.bin');
  writeFileSync(path, waiting);
  await using vm = await launch({ guest: path });
  // Flags in octal; the last digit is the access mode: 0 to read, 2 to read and write.
  const access = (fd: number) => /^flags:\s+\d*(\d)$/m.exec(readProc(vm.pid, `fdinfo/${fd}`))?.[1];
  t.is(descriptorsOf(vm.pid).get(5), path);
  t.is(access(5), '0');
  t.is(access(4), '2');
});

test('its limits leave room for its work and no more', async (t) => {
  await using vm = await launch({ guest: waiting });
  const limits = readProc(vm.pid, 'limits');
  const expected = {
    'Max open files': 256,
    'Max processes': 64,
    'Max file size': 0,
    'Max core file size': 0,
    'Max locked memory': 0,
    'Max msgqueue size': 0,
  };
  for (const [name, value] of Object.entries(expected)) {
    t.regex(limits, new RegExp(`^${name} +${value} +${value} `, 'm'), name);
  }
});

test('it leads a session of its own, without a terminal', async (t) => {
  await using vm = await launch({ guest: waiting });
  const stat = readProc(vm.pid, 'stat');
  const [, , group, session, terminal] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  t.is(session, String(vm.pid));
  t.is(group, String(vm.pid));
  t.is(terminal, '0');
});

test('it is the first process of its pid namespace', async (t) => {
  await using vm = await launch({ guest: waiting });
  t.deepEqual(statusOf(vm.pid).NSpid?.split('\t'), [String(vm.pid), '1']);
});

testWithPrograms('no namespace can be made in its user namespace', async (t) => {
  await using vm = await launch({ guest: waiting });
  const user = openSync(`/proc/${vm.pid}/ns/user`, 'r');
  try {
    await using inside = await spawnReport([steps.setns('user', 'user')], { descriptors: { user } });
    t.is(namespacesOf(inside.pid).user, namespacesOf(vm.pid).user);
    t.deepEqual(inside.report.maxNamespaces, { user: 0, mnt: 0, pid: 0, net: 0, ipc: 0, uts: 0, cgroup: 0, time: 0 });
  } finally {
    closeSync(user);
  }
});

testAsRoot('its network namespace has a loopback that is down, and nothing else', async (t) => {
  await using vm = await launch({ guest: waiting });
  const links = readProc(vm.pid, 'net/dev').trim().split('\n').slice(2);
  t.deepEqual(
    links.map((line) => line.trim().split(':')[0]),
    ['lo'],
  );
  t.is(readProc(vm.pid, 'net/route').trim().split('\n').length, 1);
});

testAsRoot('its host name is the one asked for', async (t) => {
  await using vm = await launch({ guest: waiting, jail: { hostname: 'elsewhere' } });
  const uts = openSync(`/proc/${vm.pid}/ns/uts`, 'r');
  try {
    await using inside = await spawnReport([steps.setns('uts', 'uts')], { descriptors: { uts } });
    t.is(inside.report.hostname, 'elsewhere');
    t.is(inside.report.domainname, '');
  } finally {
    closeSync(uts);
  }
});

testWithPrograms('a given network namespace is the one that it is in', async (t) => {
  await using other = await launch({ guest: waiting });
  const fd = openSync(`/proc/${other.pid}/ns/net`, 'r');
  try {
    await using vm = await launch({ guest: waiting, jail: { networkNamespace: { fd } } });
    t.is(namespacesOf(vm.pid).net, namespacesOf(other.pid).net);
    t.true((await vm.evidence()).ok);
  } finally {
    closeSync(fd);
  }
});

/**
 * A Node with a VM. When told, it closes its control socket, or lends it to a program that outlives it: with those that
 * wait for other launches, as all of them are of type SOCK_SEQPACKET.
 */
const holding = (guest: Uint8Array) => `
  import { spawn } from 'node:child_process';
  import { closeSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
  import { createInterface } from 'node:readline';
  import { launch } from 'casemate';
  const vm = await launch({ guest: ${asScript(guest)} });
  const packets = readFileSync('/proc/net/unix', 'utf8').split('\\n').map((line) => line.trim().split(/ +/));
  const inodes = packets.filter(([, , , , type]) => type === '0005').map((fields) => 'socket:[' + fields[6] + ']');
  const control = readdirSync('/proc/self/fd').filter((fd) => {
    try { return inodes.includes(readlinkSync('/proc/self/fd/' + fd)); } catch { return false; }
  }).map(Number);
  tell({ pid: vm.pid, control });
  createInterface({ input: process.stdin }).on('line', (wish) => {
    if (wish === 'close it') control.forEach((fd) => closeSync(fd));
    else tell(spawn('sleep', ['60'], { stdio: ['ignore', 'ignore', 'ignore', ...control], detached: true }).pid);
  });
  setInterval(() => {}, 1000);
`;

interface Holding {
  pid: number;
  control: number[];
}

for (const [name, guest] of Object.entries({ waiting, spinning })) {
  test(`a monitor whose guest is ${name} dies with a Node that is killed`, async (t) => {
    const node = new OtherNode(holding(guest));
    t.teardown(() => node.kill());
    const { pid, control } = await node.told<Holding>();
    t.not(control.length, 0);
    // While somebody else has its control socket open, nothing but PDEATHSIG tells the monitor.
    node.process.stdin?.write('lend it\n');
    const keeper = await node.told<number>();
    t.teardown(() => process.kill(keeper, 'SIGKILL'));
    t.true(await within(10_000, () => descriptorsOf(keeper).get(3)?.startsWith('socket:') ?? false));
    t.true(isAlive(pid));
    await node.kill();
    t.true(await within(10_000, () => !isAlive(pid)));
    t.true(isAlive(keeper));
  });

  test(`a monitor whose guest is ${name} ends when its control socket is closed`, async (t) => {
    const node = new OtherNode(holding(guest));
    t.teardown(() => node.kill());
    const { pid, control } = await node.told<Holding>();
    t.not(control.length, 0);
    t.true(isAlive(pid));
    node.process.stdin?.write('close it\n');
    t.true(await within(10_000, () => !isAlive(pid)));
    t.true(isAlive(node.pid));
  });
}

test('the evidence says what the kernel says', async (t) => {
  await using vm = await launch({ guest: waiting, input: Buffer.from('input') });
  const evidence = await vm.evidence();
  t.deepEqual(
    evidence.layers.filter(({ ok }) => !ok),
    [],
  );
  t.true(evidence.ok);
  t.is(evidence.pid, vm.pid);
  t.deepEqual(
    evidence.mounts.map(({ path }) => path),
    mountsOf(vm.pid).map(({ path }) => path),
  );
  t.deepEqual(
    evidence.descriptors.map(({ fd, target }) => [fd, target]),
    [...descriptorsOf(vm.pid)].sort(([left], [right]) => left - right),
  );
  const namespaces = namespacesOf(vm.pid);
  t.is(layer(evidence, 'networkNamespace')?.observed, namespaces.net);
  t.is(layer(evidence, 'userNamespace')?.observed, namespaces.user);
  t.is(layer(evidence, 'mountNamespace')?.observed, namespaces.mnt);
  t.regex(layer(evidence, 'ids')?.observed ?? '', new RegExp(`uid ${statusOf(vm.pid).Uid?.split('\t')[0]},`));
  t.is(layer(evidence, 'capabilities')?.observed, 'every set is 0');
  for (const name of layerNames) t.truthy(layer(evidence, name === 'coreScheduling' ? 'root' : name), name);
});

/** What the evidence must say of each layer where it is off, and the others that cannot be had without it. */
const weaker: Record<
  Exclude<LayerName, 'timeNamespace' | 'coreScheduling'>,
  { observed: RegExp; also?: LayerName[] }
> = {
  pidNamespace: { observed: /the host's$/ },
  mountNamespace: { observed: /./ },
  ipcNamespace: { observed: /the host's$/ },
  utsNamespace: { observed: /the host's$/ },
  cgroupNamespace: { observed: /the host's$/ },
  networkNamespace: { observed: /the host's$/ },
  userNamespace: { observed: /the host's$/ },
  capabilities: { observed: /^CapBnd 0*[1-9a-f]/ },
  noNewPrivs: { observed: /^not set$/, also: ['landlock', 'seccomp'] },
  landlock: { observed: /^off$/ },
  seccomp: { observed: /without a filter/ },
  rlimits: { observed: /nofile \d{4,}/ },
  keyring: { observed: /^off$/ },
};

for (const [name, { observed, also = [] }] of Object.entries(weaker)) {
  testAsRoot(`the evidence shows a jail without ${name}`, async (t) => {
    const off = [name as LayerName, ...also];
    const layers = Object.fromEntries(off.map((each) => [each, 'off' as const]));
    await using vm = await launch({ guest: waiting, jail: { profile: 'custom', layers } });
    await using whole = await launch({ guest: waiting });
    const evidence = await vm.evidence();
    t.is(layer(evidence, name)?.asked, 'off');
    t.regex(layer(evidence, name)?.observed ?? '', observed);
    t.true(evidence.ok, 'it is as asked for');
    for (const { layer: each, asked } of (await whole.evidence()).layers) {
      // Without a user namespace there is no user id of its own, nor its lease.
      const follows = name === 'userNamespace' && ['ids', 'descriptors'].includes(each);
      const isOff = off.includes(each as LayerName) || follows;
      // Every VM has a user id of its own, so only that part differs.
      const same = (text: string | undefined) => text?.replace(/\d+, its own/, 'its own');
      if (!isOff) t.is(same(layer(evidence, each)?.asked), same(asked), each);
    }
  });
}

test('the strict profile has no layer to switch off', async (t) => {
  for (const name of Object.keys(weaker)) {
    const jail = { layers: { [name]: 'off' } as const };
    await t.throwsAsync(launch({ jail }), { code: 'ERR_CASEMATE_INVALID_OPTION' }, name);
  }
});

test('Landlock and seccomp are refused without no_new_privs, which they need', async (t) => {
  for (const needs of ['landlock', 'seccomp'] as const) {
    const off = { noNewPrivs: 'off', [needs === 'landlock' ? 'seccomp' : 'landlock']: 'off' } as const;
    const error = await t.throwsAsync(launch({ jail: { profile: 'custom', layers: off } }), {
      code: 'ERR_CASEMATE_INVALID_OPTION',
    });
    t.like(error, { step: `options.jail.layers.${needs}` });
  }
});

test('the evidence of a VM that ends meanwhile is refused', async (t) => {
  const vm = await launch({ guest: waiting });
  process.kill(vm.pid, 'SIGKILL');
  await t.throwsAsync(
    async () => {
      for (;;) await vm.evidence();
    },
    { code: 'ERR_CASEMATE_CLOSED' },
  );
  await vm.exited;
  await t.throwsAsync(vm.evidence(), { code: 'ERR_CASEMATE_CLOSED' });
});

test('nothing is left of VMs that ended, whichever way', async (t) => {
  const left = await leaks(async () => {
    const killed = await launch({ guest: waiting });
    await killed.kill();
    killed.console.destroy();
    {
      await using disposed = await launch({ guest: spinning });
      t.is(disposed.state, 'running');
    }
    const done = await launch({ guest: waiting });
    done.console.end('x');
    t.deepEqual(await done.exited, { reason: 'exit', code: 0 });
    done.console.destroy();
    // One that does not end by itself, as one that reads would without a console.
    const alone = await launch({ guest: spinning, console: 'ignore' });
    process.kill(alone.pid, 'SIGKILL');
    await alone.exited;
  });
  t.deepEqual(left, []);
});
