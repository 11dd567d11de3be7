/** Every step of a plan, as the program that it starts finds it and as the kernel shows it from outside. */
import {
  closeSync,
  fstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readlinkSync,
  rmdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import type { CasemateError } from 'casemate';
import {
  type NamespaceKind,
  type Plan,
  runSteps,
  type Step,
  type StepName,
  type SyscallName,
  seccompFilter,
  spawn,
  steps,
  syscalls,
} from 'casemate/jail';
import { close, fsmount } from 'casemate/system';
import { requires } from '../helpers/index.js';
import { leaks } from '../helpers/leaks.js';
import { tellsOf } from '../helpers/node.js';
import {
  childrenOf,
  descriptorsOf,
  isAlive,
  mountsOf,
  namespaceKinds,
  namespacesOf,
  ownCgroup,
  readProc,
  statusOf,
  within,
} from '../helpers/proc.js';
import { program } from '../helpers/programs.js';
import { type ReportOptions, reportPlan, run, spawnReport } from './spawned.js';

const { serial: test } = requires('root', 'programs');
const { serial: testWithCgroup } = requires('root', 'programs', 'cgroup');
const { serial: testWithoutSelinux } = requires('root', 'programs', 'noSelinux');
const { serial: testAsUser } = requires('root', 'userns', 'setpriv');

const MS_BIND = 0x1000;
const MS_PRIVATE = 0x40000;
const MNT_DETACH = 2;
const MOUNT_ATTR_RDONLY = 1;
const MOUNT_ATTR_NOSUID = 2;

/** A folder of the test's own, removed after it. */
function folder(t: { teardown(call: () => void): void }): string {
  const made = mkdtempSync(join(tmpdir(), 'casemate-test-'));
  t.teardown(() => rmSync(made, { recursive: true }));
  return made;
}

/** Opens files by name for as long as `body` takes. */
async function withDescriptors<T>(paths: Record<string, string>, body: (fds: Record<string, number>) => Promise<T>) {
  const fds = Object.fromEntries(Object.entries(paths).map(([name, path]) => [name, openSync(path, 'r')]));
  try {
    return await body(fds);
  } finally {
    for (const fd of Object.values(fds)) closeSync(fd);
  }
}

/** Mounts made in a mount namespace of one's own reach the host's where that is shared. */
const privateMounts = steps.mountSetattr({ target: '/', propagation: MS_PRIVATE, recursive: true });

test('a program starts with a clean process and nothing of ours', async (t) => {
  await using started = await spawnReport([]);
  const { report, pid } = started;
  t.deepEqual(
    report.descriptors.map(({ fd, closeOnExec }) => [fd, closeOnExec]),
    [
      [0, 0],
      [1, 0],
      [2, 0],
      [3, 0],
    ],
  );
  t.deepEqual(report.env, []);
  t.deepEqual(report.args, [program('report')]);
  t.is(report.blockedSignals, 0);
  // Node ignores SIGPIPE (13) and SIGXFSZ (25); what Node's parent ignores goes on being ignored.
  t.false(
    report.handledSignals.some((signal) => [13, 25].includes(signal)),
    report.handledSignals.join(),
  );
  t.is(report.dumpable, 1);
  t.deepEqual(namespacesOf(pid), namespacesOf('self'));
  t.is(statusOf(pid).PPid, String(process.pid));
  t.deepEqual(await started.end(), { code: 7, signal: null });
  t.false(isAlive(pid));
});

test('exec hands over arguments and environment, in order', async (t) => {
  const args = ['report', '3', '', 'a b', 'ü'];
  const env = ['A=1', 'B=', 'A=2'];
  await using started = await spawnReport([steps.exec(program('report'), args, env)]);
  t.deepEqual(started.report.args, args);
  t.deepEqual(started.report.env, env);
});

const born = namespaceKinds.filter((kind) => kind !== 'user');

for (const kind of born) {
  test(`a program can be born into a ${kind} namespace`, async (t) => {
    await using started = await spawnReport([], { clone: [kind] });
    const host = namespacesOf('self');
    const own = namespacesOf(started.pid);
    for (const each of namespaceKinds) t.is(own[each] !== host[each], each === kind, each);
    if (kind === 'pid') t.is(started.report.pid, 1);
  });
}

test('a program can be born into every namespace at once', async (t) => {
  await using started = await spawnReport([], { clone: [...namespaceKinds] });
  const host = namespacesOf('self');
  const own = namespacesOf(started.pid);
  for (const kind of namespaceKinds) t.not(own[kind], host[kind], kind);
});

const unshared: readonly NamespaceKind[] = ['mnt', 'cgroup', 'uts', 'ipc', 'user', 'net', 'time'];

for (const kind of unshared) {
  test(`unshare leaves the ${kind} namespace for a new one`, async (t) => {
    await using started = await spawnReport([steps.unshare(kind)]);
    t.not(namespacesOf(started.pid)[kind], namespacesOf('self')[kind]);
  });
}

test('setns joins namespaces of every kind', async (t) => {
  const kinds: readonly NamespaceKind[] = ['mnt', 'cgroup', 'uts', 'ipc', 'net', 'user'];
  await using other = await spawnReport([], { clone: [...namespaceKinds] });
  const theirs = namespacesOf(other.pid);
  for (const kind of kinds) {
    await withDescriptors({ namespace: `/proc/${other.pid}/ns/${kind}` }, async (descriptors) => {
      await using started = await spawnReport([steps.setns('namespace', kind)], { descriptors });
      t.is(namespacesOf(started.pid)[kind], theirs[kind], kind);
    });
  }
});

test('setns refuses a namespace of another kind than the one named', async (t) => {
  await withDescriptors({ namespace: '/proc/self/ns/net' }, async (descriptors) => {
    const plan = reportPlan([steps.setns('namespace', 'uts')], { descriptors });
    await t.throwsAsync(run(plan, descriptors), { message: /setns/ });
  });
});

test('mount and umount change what the program sees and nothing else', async (t) => {
  const where = folder(t);
  const [kept, gone] = [join(where, 'kept'), join(where, 'gone')];
  const mount = (target: string) =>
    steps.mount({ source: 'none', target, type: 'tmpfs', flags: 2, data: 'size=64k,mode=0700' });
  const list = [privateMounts, steps.mkdir(kept), steps.mkdir(gone), mount(kept), mount(gone), steps.umount(gone)];
  await using started = await spawnReport(list, { clone: ['mnt'] });
  const own = mountsOf(started.pid);
  t.like(
    own.find(({ path }) => path === kept),
    { type: 'tmpfs' },
  );
  t.true(own.find(({ path }) => path === kept)?.options.includes('nosuid'));
  t.regex(readProc(started.pid, 'mounts'), new RegExp(`${kept} tmpfs .*size=64k,mode=700`));
  t.false(own.some(({ path }) => path === gone));
  t.false(mountsOf('self').some(({ path }) => path.startsWith(where)));
});

test('mountSetattr sets attributes, clears them, and reaches what is below', async (t) => {
  const where = folder(t);
  const below = join(where, 'below');
  const tmpfs = (target: string, flags = 0) => steps.mount({ source: 'none', target, type: 'tmpfs', flags });
  const list = [
    privateMounts,
    tmpfs(where, MOUNT_ATTR_NOSUID),
    steps.mkdir(below),
    tmpfs(below),
    steps.mountSetattr({ target: where, set: MOUNT_ATTR_RDONLY, clear: MOUNT_ATTR_NOSUID, recursive: true }),
  ];
  await using started = await spawnReport(list, { clone: ['mnt'] });
  const options = (at: string) => mountsOf(started.pid).find(({ path }) => path === at)?.options ?? [];
  t.true(options(where).includes('ro') && options(below).includes('ro'));
  t.false(options(where).includes('nosuid'));
  await using shallow = await spawnReport([...list.slice(0, -1), steps.mountSetattr({ target: where, set: 1 })], {
    clone: ['mnt'],
  });
  t.true(
    mountsOf(shallow.pid)
      .find(({ path }) => path === where)
      ?.options.includes('ro'),
  );
  t.false(
    mountsOf(shallow.pid)
      .find(({ path }) => path === below)
      ?.options.includes('ro'),
  );
});

test('moveMount attaches a detached mount, and pivotRoot makes it the root', async (t) => {
  const where = folder(t);
  const detached = fsmount('tmpfs', { size: '64k', mode: '0755' }, ['nodev']);
  t.teardown(() => closeSync(detached));
  const programs = dirname(program('report'));
  const list = [
    privateMounts,
    steps.moveMount('detached', where),
    steps.mkdir(join(where, 'programs'), 0o750),
    steps.mount({ source: programs, target: join(where, 'programs'), flags: MS_BIND }),
    steps.pivotRoot(where),
    steps.chdir('/'),
    steps.checkCwd(),
    steps.exec(`/programs/${basename(program('report'))}`),
  ];
  await using started = await spawnReport(list, { clone: ['mnt'], descriptors: { detached } });
  t.deepEqual(started.report.root, ['programs']);
  t.is(started.report.password, 'ENOENT');
  t.is(started.report.cwd, '/');
  t.deepEqual(
    mountsOf(started.pid).map(({ path }) => path),
    ['/', '/programs'],
  );
  t.is(readlinkSync(`/proc/${started.pid}/root`), '/');
});

test('chdir goes where it says, and checkCwd refuses a place that is gone from the root', async (t) => {
  const where = folder(t);
  {
    await using started = await spawnReport([steps.chdir(where), steps.checkCwd()]);
    t.is(started.report.cwd, where);
  }
  const lost = [
    privateMounts,
    steps.mount({ source: 'none', target: where, type: 'tmpfs' }),
    steps.chdir(where),
    steps.umount(where, MNT_DETACH),
    steps.checkCwd(),
  ];
  const error = await t.throwsAsync(run(reportPlan(lost, { clone: ['mnt'] })), { code: 'ERR_CASEMATE_LAUNCH_STEP' });
  t.like(error, { step: 'checkCwd', errno: -2 });
});

test('mkdir and umask see to modes', async (t) => {
  const where = folder(t);
  await using started = await spawnReport([steps.umask(0o027), steps.mkdir(join(where, 'made'), 0o777)]);
  t.is(started.report.umask, 0o027);
  t.is(statSync(join(where, 'made')).mode & 0o7777, 0o750);
});

test('host name and domain name belong to the uts namespace', async (t) => {
  const list = [steps.hostname('inside'), steps.domainname('jail.example')];
  await using started = await spawnReport(list, { clone: ['uts'] });
  t.is(started.report.hostname, 'inside');
  t.is(started.report.domainname, 'jail.example');
  t.not(hostname(), 'inside');
});

test('every resource can be limited, soft and hard', async (t) => {
  const values = {
    cpu: 100,
    fsize: 1 << 20,
    data: 1 << 28,
    stack: 1 << 20,
    core: 0,
    rss: 1 << 28,
    nproc: 50,
    nofile: 40,
  };
  const others = { memlock: 4096, as: 1 << 28, locks: 5, sigpending: 6, msgqueue: 7, nice: 0, rtprio: 0, rttime: 1000 };
  const limits = Object.entries({ ...values, ...others }) as [keyof typeof values, number][];
  const list = limits.map(([resource, limit]) => steps.rlimit(resource, limit, Math.floor(limit / 2)));
  await using started = await spawnReport(list);
  for (const [index, [resource, limit]] of limits.entries()) {
    t.deepEqual(started.report.limits[index], [String(Math.floor(limit / 2)), String(limit)], resource);
  }
});

test('session makes it the leader of a session and a group', async (t) => {
  await using outside = await spawnReport([]);
  t.not(outside.report.session, outside.pid);
  await using started = await spawnReport([steps.session()]);
  t.is(started.report.session, started.pid);
  t.is(started.report.group, started.pid);
});

test('keyring gives it a session keyring that nobody else has', async (t) => {
  await using one = await spawnReport([steps.keyring()]);
  await using two = await spawnReport([steps.keyring()]);
  await using none = await spawnReport([]);
  const serials = [one, two, none].map(({ report }) => report.keyring);
  t.is(new Set(serials).size, 3, serials.join());
});

test('coreScheduling works, or says that this kernel has none', async (t) => {
  const started = await spawnReport([steps.coreScheduling()]).catch((error) => error);
  if (started instanceof Error) {
    t.like(started, { code: 'ERR_CASEMATE_LAYER_UNAVAILABLE', step: 'coreScheduling' });
    return;
  }
  t.deepEqual(await started.end(), { code: 7, signal: null });
});

test('descriptors arrive at their numbers, whatever numbers they had', async (t) => {
  const where = folder(t);
  const names = Array.from({ length: 18 }, (_, index) => `file${index}`);
  const fds = names.map((name) => {
    writeFileSync(join(where, name), name);
    return openSync(join(where, name), 'r');
  });
  t.teardown(() => {
    for (const fd of fds) closeSync(fd);
  });
  // The launcher's copies have the lowest free numbers. These very numbers are the targets, in reverse: each dup3(2)
  // would close a copy that is still to come. One goes to a second number, the last that there is.
  const open = descriptorsOf('self');
  const free = Array.from({ length: 1024 }, (_, number) => number).filter((number) => number > 3 && !open.has(number));
  const numbers = names.map((_, index) => free[names.length - 1 - index] ?? -1);
  const [first = ''] = names;
  const targets = Object.fromEntries(names.map((name, index) => [name, numbers[index] ?? -1]));
  const map = { null: [0, 1, 2], theirs: 3, ...targets, [first]: [targets[first] ?? -1, 1023] };
  const descriptors = Object.fromEntries(names.map((name, index) => [name, fds[index] ?? -1]));
  await using started = await spawnReport([steps.descriptors(map)], { descriptors });
  const found = new Map(started.report.descriptors.map(({ fd, inode }) => [fd, inode]));
  const inodes = fds.map((fd) => fstatSync(fd).ino);
  t.deepEqual(
    numbers.map((number) => found.get(number)),
    inodes,
  );
  t.is(found.get(1023), inodes[0]);
  t.is(found.size, 4 + names.length + 1, 'and no other');
  t.true(started.report.descriptors.every(({ closeOnExec }) => closeOnExec === 0));
  t.deepEqual(
    names.map((name) => statSync(join(where, name)).ino),
    inodes,
    'ours are what they were',
  );
});

test('a descriptor without close-on-exec does not get through', async (t) => {
  // Node marks what it inherits up to the first gap above 15: one behind that gap stays as it came.
  const script = `
    import { openSync, readFileSync } from 'node:fs';
    import { Socket } from 'node:net';
    import { spawn, steps } from 'casemate/jail';
    const flags = /^flags:\\s+(\\d+)$/m.exec(readFileSync('/proc/self/fdinfo/40', 'utf8'))[1];
    const list = [
      steps.socketPair('stream', 'theirs', 'ours'),
      steps.descriptors({ null: 0, theirs: 9 }),
      steps.exec(process.argv[1], ['report', '9']),
    ];
    const descriptors = { null: openSync('/dev/null', 'r+') };
    const child = await spawn({ clone: [], descriptors: ['null'], steps: list, check: [] }, { descriptors });
    const socket = new Socket({ fd: child.takeDescriptor('ours') });
    let text = '';
    socket.on('data', (chunk) => {
      text += chunk;
      if (!text.endsWith('\\n')) return;
      const closeOnExec = (parseInt(flags, 8) & 0o2000000) !== 0;
      tell({ closeOnExec, descriptors: JSON.parse(text).descriptors.map(({ fd }) => fd) });
      socket.end();
    });
  `;
  await withDescriptors({ inherited: '/dev/zero' }, async ({ inherited = -1 }) => {
    const gap = Array<'ignore'>(37).fill('ignore');
    const told = await tellsOf(script, { descriptors: [...gap, inherited], args: [program('report')] });
    t.deepEqual(told, { closeOnExec: false, descriptors: [0, 9] });
  });
});

test('ids are real, effective, saved and of the filesystem, without other groups', async (t) => {
  await using started = await spawnReport([steps.ids(1234, 4321)]);
  const status = statusOf(started.pid);
  t.is(status.Uid, Array(4).fill('1234').join('\t'));
  t.is(status.Gid, Array(4).fill('4321').join('\t'));
  t.is(status.Groups, '');
});

test('ids can leave the groups alone', async (t) => {
  const script = `
    import { readFileSync } from 'node:fs';
    import { spawn, steps } from 'casemate/jail';
    const groups = async (clear) => {
      const list = [steps.ids(0, 0, clear), steps.exec('/bin/sleep', ['sleep', '9'])];
      const child = await spawn({ clone: [], descriptors: [], steps: list, check: [] });
      const status = readFileSync('/proc/' + child.pid + '/status', 'utf8');
      child.kill();
      await child.exited;
      return /Groups:\\t(.*)/.exec(status)[1].trim();
    };
    tell([await groups(true), await groups(false)]);
  `;
  // Not process.setgroups(), which a Node with a libuv that is not its own refuses.
  t.deepEqual(await tellsOf(script, { through: ['setpriv', '--groups=50,60'] }), ['', '50 60']);
});

test('dropBounding empties the bounding set and no other', async (t) => {
  await using started = await spawnReport([steps.dropBounding()]);
  const status = statusOf(started.pid);
  t.is(status.CapBnd, '0'.repeat(16));
  t.is(status.CapEff, '0'.repeat(16), 'as execve gives root what is in the bounding set');
});

test('capabilities sets what is effective, permitted and inheritable', async (t) => {
  // CAP_NET_ADMIN is 12, CAP_SYS_TIME 25, CAP_BPF 39; SECBIT_NOROOT so that execve adds none.
  const [netAdmin, time, bpf] = [1n << 12n, 1n << 25n, 1n << 39n];
  const list = [steps.securebits(1), steps.capabilities(netAdmin, netAdmin | time, bpf)];
  await using started = await spawnReport(list);
  const status = statusOf(started.pid);
  t.is(status.CapInh, bpf.toString(16).padStart(16, '0'));
  t.is(status.CapPrm, '0'.repeat(16), 'a program without file capabilities gets none at execve');
  t.is(status.CapAmb, '0'.repeat(16));
  t.is(started.report.securebits, 1);
  const denied = await t.throwsAsync(
    run(reportPlan([steps.capabilities(time, time), steps.hostname('x')], { clone: ['uts'] })),
  );
  t.like(denied, { step: 'hostname', errno: -1 });
  const sysAdmin = 1n << 21n;
  await using allowed = await spawnReport([steps.capabilities(sysAdmin, sysAdmin), steps.hostname('x')], {
    clone: ['uts'],
  });
  t.is(allowed.report.hostname, 'x');
});

test('securebits lock', async (t) => {
  await using started = await spawnReport([steps.securebits(0b1110_1111)]);
  t.is(started.report.securebits, 0b1110_1111);
  const again = reportPlan([steps.securebits(0b1110_1111), steps.securebits(0)]);
  t.like(await t.throwsAsync(run(again)), { step: 'securebits', errno: -1 });
});

test('noNewPrivs is set, and off without it', async (t) => {
  await using without = await spawnReport([]);
  t.is(statusOf(without.pid).NoNewPrivs, '0');
  await using started = await spawnReport([steps.noNewPrivs()]);
  t.is(statusOf(started.pid).NoNewPrivs, '1');
});

test('landlock allows nothing, not even execve', async (t) => {
  const where = folder(t);
  const refused = reportPlan([steps.noNewPrivs(), steps.landlock(), steps.mkdir(join(where, 'made'))]);
  t.like(await t.throwsAsync(run(refused)), { step: 'mkdir', errno: -13 });
  t.like(await t.throwsAsync(run(reportPlan([steps.landlock()]))), { step: 'exec', errno: -13 });
});

/** BPF_LD | BPF_W | BPF_ABS of the system call's number, then what comes of the ones named; the rest is allowed. */
function refuse(numbers: readonly number[], errno: number): Uint8Array {
  const instruction = (code: number, yes: number, no: number, value: number) => {
    const bytes = Buffer.alloc(8);
    bytes.writeUInt16LE(code, 0);
    bytes.writeUInt8(yes, 2);
    bytes.writeUInt8(no, 3);
    bytes.writeUInt32LE(value, 4);
    return bytes;
  };
  return Buffer.concat([
    instruction(0x20, 0, 0, 0),
    ...numbers.map((number, index) => instruction(0x15, numbers.length - index, 0, number)),
    instruction(0x06, 0, 0, 0x7fff0000), // SECCOMP_RET_ALLOW
    instruction(0x06, 0, 0, 0x00050000 | errno), // SECCOMP_RET_ERRNO
  ]);
}

test('a seccomp filter is on', async (t) => {
  const uname = 63;
  await using started = await spawnReport([steps.seccomp(refuse([uname], 95))]);
  t.is(statusOf(started.pid).Seccomp, '2');
  t.is(statusOf(started.pid).Seccomp_filters, '1');
  t.is(started.report.hostname, 'EOPNOTSUPP');
});

test('a filter of seccompFilter refuses what it does not allow: by name, by argument, with an error or a signal', async (t) => {
  const [PR_GET_DUMPABLE, PR_GET_PDEATHSIG] = [3, 2];
  const names = Object.keys(syscalls) as SyscallName[];
  const allowed = names.filter((name) => name !== 'uname' && name !== 'prctl');
  const rules = [...allowed, { syscall: 'prctl', argument: 0, values: [PR_GET_DUMPABLE, PR_GET_PDEATHSIG] }] as const;
  await using started = await spawnReport([steps.seccomp(seccompFilter(rules, 'errno'))]);
  t.is(statusOf(started.pid).Seccomp, '2');
  t.is(started.report.hostname, 'EPERM');
  t.is(started.report.dumpable, 1);
  t.is(started.report.securebits, -1, 'PR_GET_SECUREBITS is not among the values');
  for (const action of ['killProcess', 'trap'] as const) {
    const killed = await run(reportPlan([steps.seccomp(seccompFilter(rules, action))]));
    t.deepEqual(await killed.exited, { code: null, signal: 31 }, action);
    // One that nobody takes is closed with the garbage: in the middle of a later test, which counts descriptors.
    close(killed.takeDescriptor('ours'));
  }
});

test('parentDeath names the signal, and changing ids clears it', async (t) => {
  await using started = await spawnReport([steps.parentDeath(15)]);
  t.is(started.report.parentDeath, 15);
  await using cleared = await spawnReport([steps.parentDeath(15), steps.ids(1234, 1234)]);
  t.is(cleared.report.parentDeath, 0);
});

testWithCgroup('a program can be born in a cgroup', async (t) => {
  const cgroup = `${ownCgroup()}/casemate-test-${process.pid}`;
  mkdirSync(cgroup);
  t.teardown(() => rmdirSync(cgroup));
  await withDescriptors({ cgroup }, async (descriptors) => {
    await using started = await spawnReport([], { cgroup: 'cgroup', descriptors });
    t.regex(readProc(started.pid, 'cgroup'), new RegExp(`^0::.*/casemate-test-${process.pid}$`, 'm'));
    t.notRegex(readProc('self', 'cgroup'), /casemate-test/);
    t.is(readFileSync(`${cgroup}/cgroup.procs`, 'utf8').trim(), String(started.pid));
  });
});

test('a program in the prepared mounts has an empty root', async (t) => {
  const plan = { clone: [], descriptors: [], steps: [steps.exec('/bin/true')], check: [] };
  t.like(await t.throwsAsync(spawn(plan, { mounts: 'prepared' })), { step: 'exec', errno: -2 });
  const monitor = await spawn({ ...plan, steps: [steps.exec('/casemate-vmm')] }, { mounts: 'prepared' });
  t.is((await monitor.exited).signal, null, 'the monitor is there, and ends where it has no control socket');
});

test('a signal ends it, and so do its disposal and an aborted signal', async (t) => {
  const started = await spawnReport([]);
  started.process.kill('SIGTERM');
  t.deepEqual(await started.process.exited, { code: null, signal: 15 });
  started.process.kill('SIGTERM');
  await started[Symbol.asyncDispose]();
  const controller = new AbortController();
  const plan = { clone: [], descriptors: [], steps: [steps.exec('/bin/sleep', ['sleep', '60'])], check: [] };
  const sleeping = await spawn(plan, { signal: controller.signal });
  controller.abort();
  t.deepEqual(await sleeping.exited, { code: null, signal: 9 });
  await t.throwsAsync(spawn(plan, { signal: AbortSignal.abort() }), { name: 'AbortError' });
});

test('a descriptor of a socket pair can be taken once', async (t) => {
  const pair = steps.socketPair('seqpacket', 'theirs', 'ours');
  const plan = { clone: [], descriptors: [], steps: [pair, steps.exec('/bin/true')], check: [] };
  const started = await spawn(plan);
  const fd = started.takeDescriptor('ours');
  t.regex(readlinkSync(`/proc/self/fd/${fd}`), /^socket:/);
  closeSync(fd);
  for (const name of ['ours', 'theirs', 'nobody']) {
    const error = t.throws<CasemateError>(() => started.takeDescriptor(name), undefined, name);
    t.like(error, { code: 'ERR_CASEMATE_INVALID_OPTION', step: name });
    t.truthy(error?.remedy, name);
  }
  await started.exited;
});

test('a plan that makes no sense starts nothing, and its error says what to do', async (t) => {
  const refuses = async (plan: Plan, step: string, what: string) => {
    const error = await t.throwsAsync<CasemateError>(spawn(plan), { name: 'CasemateError' }, what);
    t.like(error, { code: 'ERR_CASEMATE_INVALID_OPTION', step }, what);
    t.truthy(error?.remedy, what);
  };
  const left = await leaks(async () => {
    const plan = { clone: [], descriptors: ['given'], steps: [steps.exec('/bin/true')], check: [] };
    await refuses(plan, 'options.descriptors.given', 'a descriptor that is not given');
    const endless = { clone: [], descriptors: [], steps: [steps.session()], check: [] };
    await refuses(endless, 'plan', 'no exec');
    await refuses({ ...endless, steps: [] }, 'plan', 'no steps');
    await refuses({ ...plan, cgroup: 'nobody' }, 'plan', 'an unknown cgroup');
  });
  t.deepEqual(left, []);
});

/** Steps of the launcher's, which no filter reaches, and the one step that cannot fail. */
type Unfiltered = 'execLabel' | 'socketLabel' | 'socketPair' | 'pooled' | 'tap' | 'umask';

/** The system calls of each step (asm/unistd_64.h), to be refused by a filter before it. */
const callsOf: Record<
  Exclude<StepName, Unfiltered>,
  { step: Step; calls: readonly number[]; options?: ReportOptions }
> = {
  setns: { step: steps.setns('null', 'net'), calls: [308] },
  unshare: { step: steps.unshare('net'), calls: [272] },
  mount: { step: steps.mount({ target: '/' }), calls: [165] },
  umount: { step: steps.umount('/nowhere'), calls: [166] },
  pivotRoot: { step: steps.pivotRoot('/'), calls: [155], options: { clone: ['mnt'] } },
  mountSetattr: { step: steps.mountSetattr({ target: '/nowhere' }), calls: [442] },
  moveMount: { step: steps.moveMount('null', '/nowhere'), calls: [429] },
  mkdir: { step: steps.mkdir('/nowhere/made'), calls: [83] },
  chdir: { step: steps.chdir('/'), calls: [80] },
  checkCwd: { step: steps.checkCwd(), calls: [79] },
  hostname: { step: steps.hostname('x'), calls: [170] },
  domainname: { step: steps.domainname('x'), calls: [171] },
  rlimit: { step: steps.rlimit('core', 0), calls: [302] },
  session: { step: steps.session(), calls: [112] },
  keyring: { step: steps.keyring(), calls: [250] },
  coreScheduling: { step: steps.coreScheduling(), calls: [157] },
  descriptors: { step: steps.descriptors({ null: [0, 1, 2], theirs: 3 }), calls: [436] },
  ids: { step: steps.ids(1234, 1234), calls: [117] },
  dropBounding: { step: steps.dropBounding(), calls: [157] },
  capabilities: { step: steps.capabilities(), calls: [126] },
  securebits: { step: steps.securebits(0), calls: [157] },
  noNewPrivs: { step: steps.noNewPrivs(), calls: [157] },
  landlock: { step: steps.landlock(), calls: [446] },
  seccomp: { step: steps.seccomp(refuse([], 1)), calls: [317] },
  parentDeath: { step: steps.parentDeath(9), calls: [157] },
  exec: { step: steps.exec('/bin/true'), calls: [59] },
};

test('a step that the kernel refuses fails the launch with its name and errno, and nothing is left', async (t) => {
  const ENOTTY = 25; // one that none of these calls gives by itself
  const layers = ['keyring', 'coreScheduling'];
  const left = await leaks(async () => {
    for (const [name, { step, calls, options }] of Object.entries(callsOf)) {
      const before = childrenOf('self').length;
      const plan = reportPlan([steps.seccomp(refuse(calls, ENOTTY)), step], { clone: ['uts', 'pid'], ...options });
      const error = await t.throwsAsync(run(plan), { name: 'CasemateError' }, name);
      const code = layers.includes(name) ? 'ERR_CASEMATE_LAYER_UNAVAILABLE' : 'ERR_CASEMATE_LAUNCH_STEP';
      t.like(error, { code, step: name, errno: -ENOTTY }, name);
      t.truthy((error as { syscall?: string }).syscall, name);
      t.truthy((error as { remedy?: string }).remedy, name);
      t.is(childrenOf('self').length, before, `${name} left a process`);
    }
  });
  t.deepEqual(left, []);
});

testWithoutSelinux('labels are refused where there is no SELinux, and nothing is left', async (t) => {
  const left = await leaks(async () => {
    for (const step of [steps.execLabel('a:b:c:s0'), steps.socketLabel('a:b:c:s0')]) {
      const error = await t.throwsAsync(run(reportPlan([step])), { code: 'ERR_CASEMATE_SELINUX' });
      t.like(error, { step: step.op });
      t.truthy((error as { remedy?: string }).remedy, step.op);
    }
  });
  t.deepEqual(left, []);
});

test('a failure before the process exists is as well told, and leaves nothing', async (t) => {
  const left = await leaks(async () => {
    await withDescriptors({ cgroup: '/proc/self' }, async (descriptors) => {
      const plan = reportPlan([steps.pooled('net', 'net'), steps.pooled('user', 'user', 'lease')], {
        cgroup: 'cgroup',
        descriptors,
      });
      const error = await t.throwsAsync(run(plan, descriptors), { code: 'ERR_CASEMATE_LAUNCH_STEP' });
      t.like(error, { step: 'clone', syscall: 'clone3', errno: -9 });
    });
    const closed = 999_999;
    const plan = reportPlan([steps.setns('closed', 'net')], { descriptors: { closed } });
    t.like(await t.throwsAsync(run(plan, { closed })), { step: 'setns', errno: -9 });
  });
  t.deepEqual(left, []);
});

test('a filter that kills at execve is the end of a program that never ran', async (t) => {
  const kill = Buffer.from('0600000000000080', 'hex'); // SECCOMP_RET_KILL_PROCESS
  const left = await leaks(async () => {
    const started = await run(reportPlan([steps.seccomp(kill)]));
    t.deepEqual(await started.exited, { code: null, signal: 31 });
    close(started.takeDescriptor('ours'));
  });
  t.deepEqual(left, []);
});

test('pooled namespaces are fresh, and of no use to a second program', async (t) => {
  const list = [
    steps.pooled('net', 'net'),
    steps.pooled('user', 'user', 'lease'),
    steps.setns('net', 'net'),
    steps.descriptors({ null: [0, 1, 2], theirs: 3, lease: 4 }),
    steps.setns('user', 'user'),
    steps.ids(1000, 1000),
  ];
  await using one = await spawnReport(list);
  await using two = await spawnReport(list);
  const [first, second, host] = [one.pid, two.pid, 'self' as const].map(namespacesOf);
  for (const kind of ['net', 'user'] as const) {
    t.is(new Set([first?.[kind], second?.[kind], host?.[kind]]).size, 3, kind);
  }
  t.not(statusOf(one.pid).Uid, statusOf(two.pid).Uid);
  t.is(descriptorsOf(one.pid).get(4), '/run/casemate/user-ids');
});

test('runSteps makes a namespace that others can join', async (t) => {
  const before = namespacesOf('self');
  const { net, uts } = await runSteps([steps.unshare('net', 'uts'), steps.hostname('threaded')], {
    keep: ['net', 'uts'],
  });
  try {
    t.not(readlinkSync(`/proc/self/fd/${net}`), before.net);
    const descriptors = { net, uts };
    await using started = await spawnReport([steps.setns('net', 'net'), steps.setns('uts', 'uts')], { descriptors });
    t.is(namespacesOf(started.pid).net, readlinkSync(`/proc/self/fd/${net}`));
    t.is(started.report.hostname, 'threaded');
  } finally {
    closeSync(net);
    closeSync(uts);
  }
  t.deepEqual(namespacesOf('self'), before);
});

test('runSteps changes nothing of Node', async (t) => {
  const where = folder(t);
  const state = () => ({
    namespaces: namespacesOf('self'),
    cwd: process.cwd(),
    root: readlinkSync('/proc/self/root'),
    status: Object.entries(statusOf('self')).filter(([name]) =>
      /^(Uid|Gid|Groups|Cap|NoNew|Seccomp|SigBlk|SigCgt|Umask)/.test(name),
    ),
    mounts: mountsOf('self'),
    limits: readProc('self', 'limits'),
  });
  const before = state();
  const left = await leaks(async () => {
    await runSteps([
      steps.unshare('mnt', 'uts', 'ipc', 'net', 'cgroup'),
      privateMounts,
      steps.mount({ source: 'none', target: where, type: 'tmpfs' }),
      steps.chdir(where),
      steps.pivotRoot(where),
      steps.hostname('elsewhere'),
      steps.umask(0o777),
      steps.keyring(),
      steps.ids(1234, 1234),
      steps.dropBounding(),
      steps.capabilities(),
      steps.noNewPrivs(),
      steps.landlock(),
      steps.seccomp(refuse([63], 1)),
    ]).catch((error) => {
      // Without CAP_SETPCAP the bounding set stays: ids() came first, as a plan must not have it.
      t.like(error, { step: 'dropBounding' });
    });
    await runSteps([steps.dropBounding(), steps.capabilities(), steps.noNewPrivs(), steps.landlock()]);
  });
  t.deepEqual(left, []);
  t.deepEqual(state(), before);
});

test('runSteps refuses what would change the whole process', async (t) => {
  const forbidden: readonly Step[] = [
    steps.execLabel('label'),
    steps.socketLabel('label'),
    steps.socketPair('stream', 'a', 'b'),
    steps.pooled('net', 'net'),
    steps.rlimit('core', 0),
    steps.session(),
    steps.coreScheduling(),
    steps.descriptors({}),
    steps.parentDeath(9),
    steps.seccomp(refuse([], 1), 1), // SECCOMP_FILTER_FLAG_TSYNC
    steps.exec('/bin/true'),
  ];
  const before = { limits: readProc('self', 'limits'), filters: statusOf('self').Seccomp_filters };
  for (const step of forbidden) {
    const error = await t.throwsAsync(runSteps([step]), { code: 'ERR_CASEMATE_INVALID_OPTION' }, step.op);
    t.like(error, { step: step.op });
  }
  t.deepEqual({ limits: readProc('self', 'limits'), filters: statusOf('self').Seccomp_filters }, before);
});

test('a step of runSteps that fails says which and why, and nothing is left', async (t) => {
  const left = await leaks(async () => {
    const error = await t.throwsAsync(runSteps([steps.unshare('net'), steps.chdir('/nowhere')], { keep: ['net'] }), {
      code: 'ERR_CASEMATE_LAUNCH_STEP',
    });
    t.like(error, { step: 'chdir', errno: -2, syscall: 'chdir' });
    t.like(await t.throwsAsync(runSteps([steps.unshare('user')])), { step: 'unshare', errno: -22 });
  });
  t.deepEqual(left, []);
});

testAsUser('neither launches nor steps leave the memory of Node unreadable for its own user', async (t) => {
  // Files of /proc/self belong to root while the memory is not dumpable.
  const script = `
    import { statSync } from 'node:fs';
    import { runSteps, spawn, steps } from 'casemate/jail';
    const owners = () => statSync('/proc/self/stat').uid;
    const seen = [owners()];
    await runSteps([steps.noNewPrivs(), steps.landlock()]);
    seen.push(owners());
    const plan = {
      clone: ['uts'],
      descriptors: [],
      steps: [steps.pooled('user', 'user'), steps.setns('user', 'user'), steps.ids(1000, 1000, false), steps.exec('/bin/true')],
      check: [],
    };
    const started = await spawn(plan);
    await started.exited;
    seen.push(owners());
    await spawn({ ...plan, steps: [...plan.steps.slice(0, -1), steps.exec('/nowhere')] }).catch((error) => seen.push(error.step));
    seen.push(owners());
    tell(seen);
  `;
  t.deepEqual(await tellsOf(script, { uid: 1234 }), [1234, 1234, 1234, 'exec', 1234]);
});

test('a process ends with the Node that started it', async (t) => {
  const script = `
    import { spawn, steps } from 'casemate/jail';
    const child = await spawn({
      clone: ['pid'], descriptors: [], check: [],
      steps: [steps.parentDeath(9), steps.exec('/bin/sleep', ['sleep', '60'])],
    });
    tell(child.pid);
    process.exit(0);
  `;
  const pid = await tellsOf<number>(script);
  t.true(await within(10_000, () => !isAlive(pid)));
});
