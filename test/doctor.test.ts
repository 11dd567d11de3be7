import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { CasemateError } from 'casemate';
import { type Check, type CheckStatus, examine, renderDiagnosis } from '#lib/cli/doctor.js';
import type { LiveFacts } from '#lib/cli/probe.js';
import { type HostFacts, kernelAtLeast, readHost } from '#lib/host.js';
import { requires } from './helpers/index.js';

/** The files of a sound host: root on AMD hardware, cgroup v2 with all controllers. */
const SOUND: Readonly<Record<string, string>> = {
  'proc/sys/kernel/osrelease': '6.1.0-28-amd64\n',
  'proc/sys/kernel/seccomp/actions_avail': 'kill_process kill_thread trap errno user_notif trace log allow\n',
  'proc/sys/user/max_user_namespaces': '63000\n',
  'proc/sys/user/max_net_namespaces': '63000\n',
  'proc/self/status': [
    'Name:\tnode',
    'Uid:\t0\t0\t0\t0',
    'Gid:\t0\t0\t0\t0',
    'Groups:\t0 ',
    'CapEff:\t000001ffffffffff',
    '',
  ].join('\n'),
  'proc/self/uid_map': '         0          0 4294967295\n',
  'proc/self/cgroup': '0::/user.slice/session 1.scope\n',
  'proc/self/mountinfo': [
    '22 27 0:21 / /proc rw,relatime shared:12 - proc proc rw',
    '30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,favordynmods',
    '',
  ].join('\n'),
  ...Object.fromEntries(
    ['user', 'mnt', 'pid', 'net', 'ipc', 'uts', 'cgroup'].map((kind) => [`proc/self/ns/${kind}`, '']),
  ),
  'proc/cpuinfo': 'processor\t: 0\nflags\t\t: fpu vme svm sse2\n\nprocessor\t: 1\nflags\t\t: fpu vme svm sse2\n',
  'proc/meminfo': 'MemTotal:       16384000 kB\nMemFree:         1000000 kB\nMemAvailable:    8192000 kB\n',
  'sys/module/kvm/parameters/nx_huge_pages': 'N\n',
  'sys/module/kvm_amd/parameters/nested': '1\n',
  'sys/devices/system/cpu/vulnerabilities/itlb_multihit': 'Not affected\n',
  'sys/devices/system/cpu/smt/active': '1\n',
  'sys/kernel/mm/transparent_hugepage/enabled': 'always [madvise] never\n',
  'sys/kernel/security/lsm': 'capability,landlock,yama,apparmor\n',
  'sys/fs/cgroup/user.slice/session 1.scope/cgroup.controllers': 'cpuset cpu io memory pids\n',
  'etc/passwd': 'root:x:0:0:root:/root:/bin/bash\nana:x:1000:1000::/home/ana:/bin/bash\n',
  'etc/group': 'root:x:0:\nkvm:x:106:ana\n',
  'etc/subuid': 'ana:100000:65536\n',
  'dev/kvm': '',
};

const ROOTLESS: Readonly<Record<string, string>> = {
  'proc/self/status':
    'Uid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\t1000\t1000\nGroups:\t27 1000\nCapEff:\t0000000000000000\n',
};

/** Makes a tree of files, with `changes` laid over the sound host; null leaves a file out. */
function plant(t: ExecutionContext, changes: Readonly<Record<string, string | null>> = {}): string {
  const root = mkdtempSync(join(tmpdir(), 'casemate-host-'));
  t.teardown(() => rmSync(root, { recursive: true }));
  for (const [path, text] of Object.entries({ ...SOUND, ...changes })) {
    if (text === null) continue;
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  return root;
}

const LIVE: LiveFacts = {
  addon: undefined,
  monitor: undefined,
  kvm: { missing: [] },
  landlockAbi: 4,
  limits: '/sys/fs/cgroup/casemate',
};

/** A fixture has no device nodes: what stat would say of one is put in. */
function withDevice(host: HostFacts, device: Partial<NonNullable<HostFacts['kvmDevice']>> = {}): HostFacts {
  const kvmDevice = {
    isCharacterDevice: true,
    mode: 0o660,
    uid: 0,
    gid: 106,
    group: 'kvm',
    openError: undefined,
    ...device,
  };
  return { ...host, kvmDevice, libc: 'glibc' };
}

function examineTree(
  t: ExecutionContext,
  changes: Readonly<Record<string, string | null>> = {},
  device: Parameters<typeof withDevice>[1] = {},
  live: Partial<LiveFacts> = {},
): (name: string) => Check {
  const checks = examine(withDevice(readHost(plant(t, changes)), device), { ...LIVE, ...live });
  return (name) => {
    const check = checks.find((candidate) => candidate.name === name);
    if (!check) throw new Error(`no check named ${name}`);
    return check;
  };
}

function is(t: ExecutionContext, check: Check, status: CheckStatus, found: RegExp, remedy?: RegExp): void {
  t.is(check.status, status, JSON.stringify(check));
  t.regex(check.found, found);
  if (remedy) t.regex(check.remedy ?? '', remedy);
}

test('a sound host passes every check', (t) => {
  const checks = examine(withDevice(readHost(plant(t))), LIVE);
  const troubles = checks.filter((check) => check.status === 'warn' || check.status === 'fail');
  t.deepEqual(troubles, []);
});

test('every warning and failure says what it costs and what to do', (t) => {
  const empty = mkdtempSync(join(tmpdir(), 'casemate-host-'));
  t.teardown(() => rmSync(empty, { recursive: true }));
  const live: LiveFacts = {
    addon: new Error('not built'),
    monitor: new Error('not built'),
    kvm: new Error('no device'),
    landlockAbi: 0,
    limits: new Error('not mounted'),
  };
  const checks = examine(readHost(empty), live);
  for (const { name, status, effect, remedy } of checks) {
    if (status !== 'warn' && status !== 'fail') continue;
    t.truthy(effect, name);
    t.truthy(remedy, name);
  }
  t.true(checks.some((check) => check.status === 'fail'));
});

test('the facts of a tree are read as they stand there', (t) => {
  const host = readHost(plant(t));
  t.is(host.kernel, '6.1.0-28-amd64');
  t.deepEqual(host.caller, {
    uid: 0,
    groups: [0],
    admin: true,
    uidMap: [{ inside: 0, outside: 0, count: 4294967295 }],
    subordinateUids: [],
  });
  t.deepEqual(host.virtualization, { hypervisor: false, extensions: 'svm', modules: ['kvm', 'kvm_amd'] });
  t.deepEqual(host.namespaces, {
    missing: [],
    limits: { user: 63000, net: 63000 },
    unprivilegedClone: undefined,
    apparmorRestricted: undefined,
  });
  t.true(host.favorDynMods);
  t.deepEqual(host.memory, { totalMib: 16000, availableMib: 8000 });
  t.is(host.transparentHugePages, 'madvise');
  t.is(host.selinux, 'disabled');
  t.is(host.hidepid, 'off');
  t.true(host.smt);
  t.is(host.tun, undefined);
});

test('a rootless caller is seen with its groups and its ranges', (t) => {
  const host = readHost(plant(t, ROOTLESS));
  t.deepEqual(host.caller.groups, [1000, 27]);
  t.false(host.caller.admin);
  t.deepEqual(host.caller.subordinateUids, [{ first: 100000, count: 65536 }]);
  is(t, examineTree(t, ROOTLESS)('User ids'), 'info', /user 1000, not root.*100000-165535/);
});

test('kernel releases compare by their numbers', (t) => {
  t.true(kernelAtLeast('5.14.0-427.el9.x86_64', 5, 14));
  t.true(kernelAtLeast('6.1.0', 5, 14));
  t.false(kernelAtLeast('5.4.0-200-generic', 5, 14));
  t.false(kernelAtLeast('4.19.0', 5, 14));
  t.false(kernelAtLeast('unknown', 5, 14));
});

test('an old kernel, another system and an old Node fail', (t) => {
  is(t, examineTree(t, { 'proc/sys/kernel/osrelease': '5.10.0-30-amd64' })('Kernel'), 'fail', /5\.10/, /5\.14/);
  const host = withDevice(readHost(plant(t)));
  const find = (changes: Partial<HostFacts>, name: string) =>
    examine({ ...host, ...changes }, LIVE).find((check) => check.name === name) as Check;
  is(t, find({ arch: 'arm64' }, 'System'), 'fail', /arm64/);
  is(t, find({ node: 'v18.20.0' }, 'Node'), 'fail', /v18/, /Node 20/);
  is(t, find({ libc: 'static' }, 'Node'), 'fail', /static/);
  is(t, find({ libc: 'musl' }, 'Node'), 'warn', /musl/);
});

test('the C library is read from the program that Node is', (t) => {
  const elf = (interpreter: string) => {
    const image = Buffer.alloc(256);
    image.write('\x7fELF\x02\x01\x01', 'latin1');
    image.writeBigUInt64LE(64n, 32); // program headers at 64
    image.writeUInt16LE(1, 56); // one of them
    image.writeUInt32LE(interpreter ? 3 : 1, 64); // PT_INTERP or PT_LOAD
    image.writeBigUInt64LE(128n, 64 + 8);
    image.writeBigUInt64LE(BigInt(interpreter.length + 1), 64 + 32);
    image.write(interpreter, 128, 'latin1');
    return image;
  };
  const libc = (image: Buffer) => {
    const root = plant(t);
    writeFileSync(join(root, 'proc/self/exe'), image);
    return readHost(root).libc;
  };
  t.is(libc(elf('/lib64/ld-linux-x86-64.so.2')), 'glibc');
  t.is(libc(elf('/lib/ld-musl-x86_64.so.1')), 'musl');
  t.is(libc(elf('')), 'static');
  t.is(libc(Buffer.from('#!/bin/sh\n')), 'unknown');
  t.is(libc(elf('/lib64/ld-linux-x86-64.so.2').subarray(0, 100)), 'static');
  t.is(readHost(plant(t)).libc, 'unknown');
});

test('a missing /dev/kvm fails, with the remedy that fits', (t) => {
  const live = {
    ...LIVE,
    kvm: new CasemateError('ERR_CASEMATE_KVM_UNAVAILABLE', 'no /dev/kvm', { remedy: 'Load it.' }),
  };
  const examineWithout = (changes: Record<string, string | null>) => {
    const checks = examine(readHost(plant(t, { 'dev/kvm': null, ...changes })), live);
    return (name: string) => checks.find((check) => check.name === name) as Check;
  };
  is(t, examineWithout({})('/dev/kvm'), 'fail', /not there, though KVM is loaded/, /container/);
  is(
    t,
    examineWithout({ 'sys/module/kvm_amd/parameters/nested': null })('/dev/kvm'),
    'fail',
    /^not there$/,
    /modprobe/,
  );
  is(t, examineWithout({})('KVM'), 'info', /not asked/);
});

test('a forbidden /dev/kvm fails, and says which group to join', (t) => {
  const forbidden = { openError: 'EACCES' };
  is(t, examineTree(t, ROOTLESS, forbidden)('/dev/kvm'), 'fail', /EACCES.*0660.*group kvm/, /usermod -aG kvm/);
  is(t, examineTree(t, ROOTLESS, { ...forbidden, mode: 0o600 })('/dev/kvm'), 'fail', /0600/, /chmod 660/);
  is(t, examineTree(t, ROOTLESS, { ...forbidden, gid: 27 })('/dev/kvm'), 'fail', /EACCES/, /device rules/);
  is(t, examineTree(t, ROOTLESS, { openError: 'ENODEV' })('/dev/kvm'), 'fail', /ENODEV/, /modprobe/);
});

test('a file in the place of /dev/kvm fails', (t) => {
  const check = examine(readHost(plant(t)), LIVE).find((candidate) => candidate.name === '/dev/kvm') as Check;
  is(t, check, 'fail', /not a device/);
});

test('KVM itself decides whether KVM works', (t) => {
  // No vmx, no svm: a paravirtual KVM is as good as any.
  const paravirtual = { 'proc/cpuinfo': 'flags : fpu hypervisor\n', 'sys/module/kvm_amd/parameters/nested': null };
  is(t, examineTree(t, paravirtual)('KVM'), 'ok', /version 12/);
  is(t, examineTree(t, paravirtual)('Virtualization'), 'info', /paravirtual/);
  is(t, examineTree(t, {}, {}, { kvm: { missing: ['KVM_CAP_X'] } })('KVM'), 'fail', /KVM_CAP_X/);
  const kvm = new CasemateError('ERR_CASEMATE_KVM_UNAVAILABLE', 'version 11', { remedy: 'A newer kernel.' });
  is(t, examineTree(t, {}, {}, { kvm })('KVM'), 'fail', /version 11/, /newer kernel/);
});

test('hardware, nested and paravirtual KVM are told apart', (t) => {
  is(t, examineTree(t)('Virtualization'), 'ok', /hardware, svm.*kvm_amd/);
  const nested = { 'proc/cpuinfo': 'flags : fpu vmx hypervisor\n' };
  is(t, examineTree(t, nested)('Virtualization'), 'info', /nested KVM, vmx/);
  is(t, examineTree(t, { 'sys/module/kvm_pvm/parameters/x': '1' })('Virtualization'), 'info', /paravirtual.*kvm_pvm/);
});

test('the cost of nx_huge_pages depends on kernel, cgroups and CPU', (t) => {
  const plainCgroup = {
    'proc/self/mountinfo': '30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n',
  };
  const parameter = 'sys/module/kvm/parameters/nx_huge_pages';
  const flaw = 'sys/devices/system/cpu/vulnerabilities/itlb_multihit';
  is(t, examineTree(t)('nx_huge_pages'), 'ok', /with favordynmods/);
  is(t, examineTree(t, plainCgroup)('nx_huge_pages'), 'warn', /without favordynmods/, /nx_huge_pages=never/);
  is(
    t,
    examineTree(t, { ...plainCgroup, [flaw]: 'KVM: Mitigation: Split huge pages' })('nx_huge_pages'),
    'warn',
    /^N/,
    /remount,favordynmods/,
  );
  is(t, examineTree(t, { ...plainCgroup, [parameter]: 'never' })('nx_huge_pages'), 'ok', /never/);
  is(
    t,
    examineTree(t, { ...plainCgroup, 'proc/sys/kernel/osrelease': '6.18.0' })('nx_huge_pages'),
    'ok',
    /needs neither/,
  );
});

test('namespaces that the kernel lacks or forbids fail', (t) => {
  is(t, examineTree(t, { 'proc/self/ns/user': null })('Namespaces'), 'fail', /user/);
  is(
    t,
    examineTree(t, { 'proc/sys/user/max_user_namespaces': '0' })('Namespaces'),
    'fail',
    /max_user_namespaces/,
    /sysctl -w/,
  );
});

test('restrictions of user namespaces fail for users and not for root', (t) => {
  const apparmor = { 'proc/sys/kernel/apparmor_restrict_unprivileged_userns': '1' };
  const debian = { 'proc/sys/kernel/unprivileged_userns_clone': '0' };
  is(t, examineTree(t, apparmor)('User namespaces'), 'info', /apparmor/);
  is(t, examineTree(t, { ...ROOTLESS, ...apparmor })('User namespaces'), 'fail', /apparmor/, /userns,/);
  is(t, examineTree(t, { ...ROOTLESS, ...debian })('User namespaces'), 'fail', /unprivileged_userns_clone/, /sysctl/);
  is(t, examineTree(t, ROOTLESS)('User namespaces'), 'ok', /not restricted/);
});

test('limits are judged as a launch finds them', (t) => {
  is(t, examineTree(t)('Control groups'), 'ok', /\/sys\/fs\/cgroup\/casemate/);
  const error = new CasemateError('ERR_CASEMATE_LIMITS', 'Limits of cpu cannot be set here', {
    step: 'options.limits',
    remedy: 'Have them delegated',
  });
  is(t, examineTree(t, {}, {}, { limits: error })('Control groups'), 'warn', /Limits of cpu cannot/, /delegated/);
});

test('Landlock, seccomp and SELinux are judged', (t) => {
  is(t, examineTree(t)('Landlock'), 'ok', /ABI 4/);
  is(t, examineTree(t, {}, {}, { landlockAbi: 0 })('Landlock'), 'fail', /not among/, /lsm=/);
  is(t, examineTree(t, { 'proc/sys/kernel/seccomp/actions_avail': null })('seccomp'), 'fail', /not in this kernel/);
  is(t, examineTree(t, { 'proc/sys/kernel/seccomp/actions_avail': 'allow errno' })('seccomp'), 'fail', /trap/);
  is(t, examineTree(t, { 'sys/fs/selinux/enforce': '1' })('SELinux'), 'ok', /enforcing/);
  is(t, examineTree(t, { 'sys/fs/selinux/enforce': '0' })('SELinux'), 'info', /permissive/);
});

test('hidepid troubles users and not root', (t) => {
  const hidden = { 'proc/self/mountinfo': '22 27 0:21 / /proc rw,relatime - proc proc rw,hidepid=invisible\n' };
  is(t, examineTree(t, hidden)('hidepid'), 'info', /invisible/);
  is(t, examineTree(t, { ...ROOTLESS, ...hidden })('hidepid'), 'warn', /invisible/, /gid=/);
});

test('scarce memory warns', (t) => {
  const tree = { 'proc/meminfo': 'MemTotal: 512000 kB\nMemAvailable: 100000 kB\n' };
  is(t, examineTree(t, tree)('Memory'), 'warn', /97 of 500 MiB/);
});

test('what was not built fails with the remedy of its error', (t) => {
  const addon = new CasemateError('ERR_CASEMATE_NOT_BUILT', 'no addon', { remedy: 'npm run build' });
  is(t, examineTree(t, {}, {}, { addon })('Addon'), 'fail', /no addon/, /npm run build/);
  is(t, examineTree(t, {}, {}, { monitor: addon })('Monitor'), 'fail', /no addon/);
});

test('the table has a mark and a line for each check, remedies indented beneath', (t) => {
  const checks: Check[] = [
    { name: 'One', status: 'ok', found: 'fine' },
    { name: 'Number two', status: 'warn', found: 'so so', effect: 'It is slow.', remedy: 'Do that.' },
    { name: 'Three', status: 'fail', found: 'nothing', effect: 'It stops.', remedy: 'Do this.' },
  ];
  const lines = renderDiagnosis({ ok: false, checks }).split('\n');
  t.deepEqual(lines.slice(0, 7), [
    '✓ One         fine',
    '! Number two  so so',
    '              It is slow.',
    '              → Do that.',
    '✗ Three       nothing',
    '              It stops.',
    '              → Do this.',
  ]);
  t.regex(lines.at(-2) ?? '', /not ready.*Three/);
  t.regex(renderDiagnosis({ ok: true, checks: checks.slice(0, 2) }), /ready/);
});

test('a tree of nonsense is no reason to crash', (t) => {
  const nonsense = Object.fromEntries(Object.keys(SOUND).map((path) => [path, '\0\xff - : , = \n\n-1 -1\n']));
  t.notThrows(() => examine(readHost(plant(t, nonsense)), LIVE));
});

test('files that may not be read count as absent', (t) => {
  const root = plant(t);
  rmSync(join(root, 'sys/kernel/mm/transparent_hugepage/enabled'));
  mkdirSync(join(root, 'sys/kernel/mm/transparent_hugepage/enabled'));
  t.is(readHost(root).transparentHugePages, undefined);
});

test('this host is read as it is', (t) => {
  const host = readHost();
  t.is(host.kernel, readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim());
  t.is(host.caller.uid, process.geteuid?.() as number);
  t.true(host.memory.totalMib > 0);
  t.not(host.libc, 'unknown');
  t.deepEqual(host.namespaces.missing, []);
});

requires('kvm')('this host has a KVM device that opens', (t) => {
  const { kvmDevice } = readHost();
  t.true(kvmDevice?.isCharacterDevice);
  t.is(kvmDevice?.openError, undefined);
});
