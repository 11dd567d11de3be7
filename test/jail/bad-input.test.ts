/** What launch() refuses: each with its code, the step that says where, a remedy, and before anything is created. */
import { spawnSync } from 'node:child_process';
import { chmodSync, closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import ava from 'ava';
import { CasemateError, type ErrorCode, type LaunchOptions, launch, warmUp } from 'casemate';
import { layerNames } from '#lib/jail/profiles.js';
import { guest } from '../helpers/guests.js';
import { type ExecutionContext, requires } from '../helpers/index.js';
import { leaks } from '../helpers/leaks.js';
import { tellsOf } from '../helpers/node.js';
import { ownCgroup } from '../helpers/proc.js';
import { refused } from '../helpers/vm.js';

const { serial: test } = requires('kvm');
const { serial: testWithRoot } = requires('kvm', 'root');
const { serial: testWithCgroup } = requires('kvm', 'cgroup');
const { serial: testWithoutSelinux } = requires('kvm', 'noSelinux');
const { serial: testAsUser } = requires('setpriv');
const { serial: testAsUserWithKvm } = requires('kvm', 'setpriv');
const { serial: testAsRoot } = requires('root');

const unknown: Readonly<Record<string, object>> = {
  'options.memoryMiB': { memoryMiB: 16 },
  'options.toString': { toString: () => 'options' },
  'options.__proto__': JSON.parse('{ "__proto__": { "memoryMib": 8 } }'),
  'options.kvm.path': { kvm: { fd: 3, path: '/dev/kvm' } },
  'options.guest.path': { guest: { fd: 3, path: '/guest' } },
  'options.input.fds': { input: { fds: [3] } },
  'options.jail.rlimits': { jail: { rlimits: 'off' } },
  'options.jail.layers.rlimit': { jail: { profile: 'custom', layers: { rlimit: 'off' } } },
  'options.jail.networkNamespace.path': { jail: { networkNamespace: { path: '/proc/self/ns/net' } } },
  'options.jail.cgroup.path': { jail: { cgroup: { path: '/sys/fs/cgroup' } } },
  'options.jail.selinux.type': { jail: { selinux: { type: 'casemate_vmm_t' } } },
};

const notObjects = [
  null,
  1,
  'x',
  true,
  Symbol('x'),
  [],
  () => {},
  Promise.resolve({}),
  new Map(),
  new URL('file:///x'),
];
const notStrings = [null, 1, Number.NaN, true, 1n, Symbol('x'), [], {}, () => {}, Buffer.from('x'), 'a\0b'];
const notIntegers = [null, '16', true, 16n, [16], {}, Number.NaN, Number.POSITIVE_INFINITY, 16.5, -16, 2 ** 53, 1e300];
const notDescriptors = [...notIntegers, undefined, -1, 2 ** 31];
const notBooleans = [null, 0, 1, 'true', [], {}];
const notWords = [null, 1, true, '', 'Auto', 'strict ', ['auto'], {}];
const notFiles = [1, true, 1n, Symbol('x'), [], () => {}, null, '', 'a\0b', new Uint8Array(), new Map()];

/** By the option that is to blame: values that are not ones of it. */
const bad: Readonly<Record<string, readonly unknown[]>> = {
  guest: notFiles,
  input: notFiles,
  format: notWords,
  args: [null, 'x', 1, {}, new Map(), new Set(['x']), Buffer.from('x'), ['x'.repeat(1 << 20)], Array(1 << 17).fill('')],
  memoryMib: [...notIntegers, 0, 4, 7, 65537, 65538, 2 ** 32 + 16],
  cpl: [null, 1, 2, 4, -1, '3', 3n, Number.NaN, [3]],
  console: notWords,
  jail: notObjects,
  kvm: notObjects,
  startPaused: notBooleans,
  name: notStrings,
  timeoutMs: [...notIntegers, 0, 2 ** 31],
  startTimeoutMs: [...notIntegers, 0, 2 ** 31],
  signal: [null, 1, 'abort', {}, new EventTarget(), new AbortController(), () => {}],
};

const badJails: Readonly<Record<string, readonly unknown[]>> = {
  profile: [...notWords, 'none'],
  layers: notObjects,
  hostname: [...notStrings, '', 'x'.repeat(65), 'ü'.repeat(33), 'x'.repeat(1 << 20)],
  networkNamespace: notObjects,
  cgroup: notObjects,
  selinux: [...notObjects, 'on'],
};

/** By what of options.network is to blame. */
const badNetworks: readonly (readonly [step: string, network: unknown])[] = [
  ...notObjects.map((value) => ['', value] as const),
  ['', {}],
  ['', { mac: '02:00:00:00:00:01' }],
  ['', { tap: {}, stream: { fd: 3 } }],
  ['.bridge', { tap: {}, bridge: 'br0' }],
  ...[...notStrings, '', '02:00:00:00:00', '02:00:00:00:00:001', '03:00:00:00:00:01', '00:00:00:00:00:00'].map(
    (mac) => ['.mac', { tap: {}, mac }] as const,
  ),
  ...[...notIntegers, 0, 67, 65536].map((mtu) => ['.mtu', { tap: {}, mtu }] as const),
  ...notObjects.map((rateLimit) => ['.rateLimit', { tap: {}, rateLimit }] as const),
  ['.rateLimit.both', { tap: {}, rateLimit: { both: { bytesPerSecond: 1 } } }],
  ...notObjects.map((send) => ['.rateLimit.send', { tap: {}, rateLimit: { send } }] as const),
  ['.rateLimit.receive', { tap: {}, rateLimit: { receive: {} } }],
  ['.rateLimit.receive.burstBytes', { tap: {}, rateLimit: { receive: { operationsPerSecond: 1, burstBytes: 1 } } }],
  ...[...notIntegers, 0, -1].flatMap((value) => [
    ['.rateLimit.send.bytesPerSecond', { tap: {}, rateLimit: { send: { bytesPerSecond: value } } }] as const,
    ['.rateLimit.send.operationsPerSecond', { tap: {}, rateLimit: { send: { operationsPerSecond: value } } }] as const,
  ]),
  ...[...notIntegers, -1, 2 ** 32 + 1].map(
    (value) =>
      [
        '.rateLimit.send.burstBytes',
        { tap: {}, rateLimit: { send: { bytesPerSecond: 1, burstBytes: value } } },
      ] as const,
  ),
  ...notObjects.map((tap) => ['.tap', { tap }] as const),
  ['.tap.path', { tap: { path: '/dev/net/tun' } }],
  ...[...notStrings, '', '.', '..', 'a/b', 'a:b', 'a b', 'tap%d', 'sixteen-bytes-xx', 'ü'.repeat(8)].flatMap((name) => [
    ['.tap.name', { tap: { name } }] as const,
    ['.tap.bridge', { tap: { bridge: name } }] as const,
  ]),
  ...notBooleans.map((existing) => ['.tap.existing', { tap: { existing } }] as const),
  ...notWords.map((namespace) => ['.tap.namespace', { tap: { namespace } }] as const),
  ['.tap.namespace', { tap: { namespace: 'host' } }],
  ['.tap.addresses', { tap: { addresses: '10.0.0.1/24' } }],
  ['.tap.addresses', { tap: { addresses: Array(17).fill('10.0.0.1/24') } }],
  ['.tap.addresses', { tap: { existing: true, addresses: [] } }],
  ...[...notStrings, '10.0.0.1', '10.0.0.1/33', 'fd00::1/129', '10.0.0/8', 'fe80::1%eth0/64', '::1/64/64', '/8'].map(
    (address) => ['.tap.addresses[1]', { tap: { addresses: ['10.0.0.1/24', address] } }] as const,
  ),
  ['.tap.routes', { tap: { routes: { to: '10.0.0.0/8' } } }],
  ['.tap.routes[0]', { tap: { routes: ['10.0.0.0/8'] } }],
  ['.tap.routes[0].to', { tap: { routes: [{ via: '10.0.0.1' }] } }],
  ['.tap.routes[0].via', { tap: { routes: [{ to: '10.0.0.0/8', via: 'fd00::1' }] } }],
  ['.tap.routes[0].via', { tap: { routes: [{ to: '10.0.0.0/8', via: '10.0.0.1/24' }] } }],
  ...notObjects.map((stream) => ['.stream', { stream }] as const),
  ['.stream', { stream: {} }],
  ['.stream', { stream: { fd: 3, path: '/passt' } }],
  ...notDescriptors.filter((fd) => fd !== undefined).map((fd) => ['.stream.fd', { stream: { fd } }] as const),
  ...[...notStrings, '', 'x'.repeat(108)].map((path) => ['.stream.path', { stream: { path } }] as const),
];

/** Options to refuse, with the step that is to blame. */
function* refusals(): Generator<readonly [step: string, options: unknown]> {
  // Without options there are defaults; null is none.
  for (const options of notObjects) yield ['options', options];
  for (const [step, options] of Object.entries(unknown)) yield [step, options];
  for (const [name, values] of Object.entries(bad)) {
    for (const value of values) yield [`options.${name}`, { [name]: value }];
  }
  for (const [name, values] of Object.entries(badJails)) {
    for (const value of values) yield [`options.jail.${name}`, { jail: { [name]: value } }];
  }
  for (const fd of notDescriptors) {
    for (const name of ['guest', 'input', 'kvm']) yield [`options.${name}.fd`, { [name]: { fd } }];
    for (const name of ['networkNamespace', 'cgroup']) yield [`options.jail.${name}.fd`, { jail: { [name]: { fd } } }];
  }
  for (const [step, network] of badNetworks) yield [`options.network${step}`, { kernel: 'vmlinux', network }];
  yield ['options.network', { network: { tap: {} } }];
  for (const argument of [undefined, ...notStrings]) yield ['options.args[1]', { args: ['good', argument] }];
  yield ['options.args[1]', { args: Object.assign(Array(3), ['good']) }];
  yield ['options.args[0]', { args: Array(2 ** 32 - 1) }];
  yield ['options.args', { name: 'x'.repeat(65536) }];
  yield ['options.guest', { guest: new ArrayBuffer(8) }];
  for (const context of [...notStrings, '', 'no context at all', 'a:b:c:s0:c2000']) {
    yield ['options.jail.selinux.context', { jail: { selinux: { context } } }];
  }
  for (const categories of [...notStrings, '', 'c1', 'c1.c2000', 's0:c1.c2']) {
    yield ['options.jail.selinux.categories', { jail: { selinux: { categories } } }];
  }
  const both = { context: 'a:b:c:s0:c1,c2', categories: 'c1.c9' };
  yield ['options.jail.selinux.categories', { jail: { selinux: both } }];
  for (const mode of [...notWords, 'off']) yield ['options.jail.selinux.mode', { jail: { selinux: { mode } } }];
  for (const onModeChange of notWords)
    yield ['options.jail.selinux.onModeChange', { jail: { selinux: { onModeChange } } }];
  for (const layer of layerNames) {
    for (const state of [null, true, false, 'on', 'Off', 1, {}]) {
      yield [`options.jail.layers.${layer}`, { jail: { profile: 'custom', layers: { [layer]: state } } }];
    }
    if (layer === 'timeNamespace' || layer === 'coreScheduling') continue;
    yield [`options.jail.layers.${layer}`, { jail: { layers: { [layer]: 'off' } } }];
    yield [`options.jail.layers.${layer}`, { jail: { profile: 'strict', layers: { [layer]: 'off' } } }];
  }
  // Contradictions: a filter and a Landlock domain need no_new_privs; a namespace to join is not left out.
  yield ['options.jail.layers.landlock', { jail: { profile: 'custom', layers: { noNewPrivs: 'off' } } }];
  const without = { noNewPrivs: 'off', landlock: 'off' };
  yield ['options.jail.layers.seccomp', { jail: { profile: 'custom', layers: without } }];
  const joined = { profile: 'custom', layers: { networkNamespace: 'off' }, networkNamespace: { fd: 0 } };
  yield ['options.jail.networkNamespace', { jail: joined }];
}

/** What every refusal has: a code and a step to match on, and something to do about it. */
function complete(t: ExecutionContext, error: CasemateError | undefined, code: ErrorCode, step: string): void {
  t.is(error?.code, code, step);
  t.is(error?.step, step, error?.message);
  t.truthy(error?.remedy, step);
  t.truthy(error?.message, step);
}

ava('every option of a wrong type, range or name is refused by name', async (t) => {
  for (const call of [launch, warmUp]) {
    for (const [step, options] of refusals()) {
      const error = await t.throwsAsync<CasemateError>(
        call(options as LaunchOptions),
        { instanceOf: CasemateError },
        step,
      );
      complete(t, error, 'ERR_CASEMATE_INVALID_OPTION', step);
      // A person has to read it, whatever was passed.
      t.true((error?.message.length ?? 0) < 400, error?.message);
    }
  }
});

ava('a file of a wrong type is told what a file can be', async (t) => {
  for (const name of ['guest', 'input']) {
    for (const value of notFiles.filter((bad) => typeof bad !== 'string' && !(bad instanceof Uint8Array))) {
      const error = await t.throwsAsync<CasemateError>(launch({ [name]: value }), { instanceOf: CasemateError });
      t.regex(error?.message ?? '', /a path, a Uint8Array or \{ fd \}/);
      t.regex(error?.remedy ?? '', /a path, a Uint8Array or \{ fd \}/);
    }
  }
});

ava('a bad option is told even where the signal is aborted already', async (t) => {
  const options = { memoryMib: 7, signal: AbortSignal.abort() };
  await t.throwsAsync(launch(options), { code: 'ERR_CASEMATE_INVALID_OPTION' });
});

test('refused options leave nothing behind', async (t) => {
  const left = await leaks(async () => {
    for (const [, options] of refusals()) await launch(options as LaunchOptions).catch(() => {});
  });
  t.deepEqual(left, []);
});

/** Opens files for as long as the test takes. */
function opened(t: ExecutionContext, ...paths: string[]): number[] {
  const fds = paths.map((path) => openSync(path, 'r'));
  t.teardown(() => {
    for (const fd of fds) closeSync(fd);
  });
  return fds;
}

/** A folder of the test's own, removed after it. */
function folder(t: ExecutionContext): string {
  const made = mkdtempSync(join(tmpdir(), 'casemate-test-'));
  t.teardown(() => rmSync(made, { recursive: true }));
  return made;
}

/** Launches that are refused, each with code and step, and leave nothing behind. */
async function refusedCleanly(
  t: ExecutionContext,
  code: ErrorCode,
  cases: readonly (readonly [step: string, options: LaunchOptions])[],
): Promise<CasemateError[]> {
  const errors: CasemateError[] = [];
  const left = await leaks(async () => {
    for (const [step, options] of cases) {
      const error = await refused(t, options, code);
      complete(t, error, code, step);
      errors.push(error);
    }
  });
  t.deepEqual(left, []);
  return errors;
}

test('files that are none are refused, and a FIFO that nobody writes to does not make launch() wait', async (t) => {
  const where = folder(t);
  const [fifo, empty] = [join(where, 'fifo'), join(where, 'empty')];
  t.is(spawnSync('mkfifo', [fifo]).status, 0);
  writeFileSync(empty, '');
  const paths = [fifo, empty, where, join(where, 'missing'), join(empty, 'below'), '/dev/zero', `/${'x'.repeat(5000)}`];
  const fds = opened(t, '/dev/zero', where, empty);
  const sources = [...paths, ...fds.map((fd) => ({ fd })), { fd: 0x7fffffff }];
  const cases = sources.flatMap((source) => [
    ['options.guest', { guest: source }] as const,
    ['options.input', { guest: guest('sum'), input: source }] as const,
  ]);
  const errors = await refusedCleanly(t, 'ERR_CASEMATE_FILE', cases); // which a launch that waits would never see
  const messages = errors.map(({ message }) => message);
  t.regex(messages[0] ?? '', /options\.guest: .*fifo is not a regular file/);
  t.regex(messages[2] ?? '', /empty is empty/);
  t.deepEqual(
    [...new Set(errors.map(({ errno }) => errno))].sort(),
    [undefined, -2, -9, -20, -36].sort(),
    'ENOENT, EBADF, ENOTDIR and ENAMETOOLONG',
  );
});

test('a guest that was opened for writing only is refused', async (t) => {
  const where = folder(t);
  writeFileSync(join(where, 'guest'), 'x');
  const fd = openSync(join(where, 'guest'), 'a');
  t.teardown(() => closeSync(fd));
  await refusedCleanly(t, 'ERR_CASEMATE_FILE', [
    ['options.guest', { guest: { fd } }],
    ['options.input', { guest: guest('sum'), input: { fd } }],
  ]);
});

test('a descriptor that is not /dev/kvm, or not open, is refused', async (t) => {
  const fds = opened(t, '/dev/null', '/', '/proc/self/ns/net');
  const cases = [...fds, 0x7fffffff].map((fd) => ['options.kvm.fd', { kvm: { fd } }] as const);
  const errors = await refusedCleanly(t, 'ERR_CASEMATE_KVM_UNAVAILABLE', cases);
  t.is(errors.at(-1)?.errno, -9);
});

testWithRoot('a network namespace that is none, or not open, fails the launch in its step', async (t) => {
  const fds = opened(t, '/dev/null', '/proc/self/ns/uts');
  const cases = [...fds, 0x7fffffff].map((fd) => ['setns', { jail: { networkNamespace: { fd } } }] as const);
  const errors = await refusedCleanly(t, 'ERR_CASEMATE_LAUNCH_STEP', cases);
  t.deepEqual(
    errors.map(({ syscall, errno }) => [syscall, errno]),
    [
      ['setns', -22],
      ['setns', -22],
      ['setns', -9],
    ],
  );
});

testWithCgroup('a cgroup that is none, or not open, fails the launch before there is a process', async (t) => {
  const fds = opened(t, `${ownCgroup()}/cgroup.procs`);
  const cases = [...fds, 0x7fffffff].map((fd) => ['clone', { jail: { cgroup: { fd } } }] as const);
  for (const error of await refusedCleanly(t, 'ERR_CASEMATE_LAUNCH_STEP', cases)) t.is(error.syscall, 'clone3');
});

testWithoutSelinux('an SELinux label is refused where there is no SELinux', async (t) => {
  const wanted = ['enforcing', 'permissive-ok', {}, { context: 'system_u:system_r:casemate_vmm_t:s0:c1,c2' }] as const;
  const cases = wanted.map((selinux) => ['selinux', { jail: { selinux } }] as const);
  await refusedCleanly(t, 'ERR_CASEMATE_SELINUX', cases);
});

/** What a launch in another Node fails with, and what it created there. */
interface Elsewhere {
  error: CasemateError;
  created: string[];
}

/** A Node that launches nothing else: not even what the first launch sets up may be there after one that is refused. */
const elsewhere = (options: string) => `
  import { readdirSync, readFileSync } from 'node:fs';
  import { launch } from 'casemate';
  import { native } from '#lib/native.js';
  native.landlockAbi(); // The addon is loaded.
  const holdings = () => [
    ...readdirSync('/proc/self/fd').map((fd) => 'descriptor ' + fd),
    ...readdirSync('/proc/self/task').map((task) => 'thread ' + task),
    ...readFileSync('/proc/self/mountinfo', 'utf8').trim().split('\\n').map((mount) => 'mount ' + mount),
  ];
  const before = holdings();
  const error = await launch(${options}).then(() => ({ message: 'launched' }), failure);
  const created = holdings().filter((item) => !before.includes(item));
  tell({ error, created });
`;

testAsUser('a user who may not open /dev/kvm is told so', async (t) => {
  const { error, created } = await tellsOf<Elsewhere>(elsewhere(''), { uid: 1234 });
  complete(t, error, 'ERR_CASEMATE_KVM_FORBIDDEN', '/dev/kvm');
  t.is(error.errno, -13);
  t.regex(error.remedy ?? '', /group/);
  t.deepEqual(created, []);
});

/** Starts a program in a mount namespace in which a command has been run. */
const after = (command: string): string[] => ['unshare', '--mount', 'sh', '-c', `${command} && exec "$@"`, 'sh'];

testAsRoot('a host without /dev/kvm is told so', async (t) => {
  const { error, created } = await tellsOf<Elsewhere>(elsewhere(''), { through: after('mount -t tmpfs none /dev') });
  complete(t, error, 'ERR_CASEMATE_KVM_UNAVAILABLE', '/dev/kvm');
  t.is(error.errno, -2);
  t.regex(error.remedy ?? '', /firmware.*--device/);
  t.deepEqual(created, []);
});

testWithRoot('a /dev/kvm that is something else is told so', async (t) => {
  const through = after('mount --bind /dev/null /dev/kvm');
  const { error } = await tellsOf<Elsewhere>(elsewhere(''), { through });
  complete(t, error, 'ERR_CASEMATE_KVM_UNAVAILABLE', '/dev/kvm');
});

testAsUserWithKvm('a guest that this user may not read is refused', async (t) => {
  const where = folder(t);
  chmodSync(where, 0o755);
  const path = join(where, 'guest');
  writeFileSync(path, 'x', { mode: 0o600 });
  const kvm = openSync('/dev/kvm', 'r+');
  t.teardown(() => closeSync(kvm));
  const options = `{ kvm: { fd: 3 }, guest: ${JSON.stringify(path)} }`;
  const { error } = await tellsOf<Elsewhere>(elsewhere(options), { uid: 1234, descriptors: [kvm] });
  complete(t, error, 'ERR_CASEMATE_FILE', 'options.guest');
  t.is(error.errno, -13);
});
