/** The same launch for a user without any rights: one that was handed /dev/kvm and nothing else. */
import { closeSync, openSync, readdirSync, readlinkSync } from 'node:fs';
import type { Evidence } from 'casemate';
import { requires } from '../helpers/index.js';
import { type NodeOptions, OtherNode, tellsOf } from '../helpers/node.js';
import { descriptorsOf, isAlive, mountsOf, namespacesOf, readProc, statusOf, within } from '../helpers/proc.js';
import { asScript, waiting } from './guests.js';

const { serial: test } = requires('kvm', 'root', 'userns', 'setpriv');

const uid = 1234;

/** Starts a Node of that user's, that has /dev/kvm at descriptor 3. */
async function withKvm<T>(body: (options: NodeOptions) => Promise<T>): Promise<T> {
  const kvm = openSync('/dev/kvm', 'r+');
  try {
    return await body({ uid, descriptors: [kvm] });
  } finally {
    closeSync(kvm);
  }
}

const holding = `
  import { launch } from 'casemate';
  const vm = await launch({ guest: ${asScript(waiting)}, kvm: { fd: 3 } });
  const { ok, layers } = await vm.evidence();
  tell({ pid: vm.pid, ok, layers });
  process.stdin.once('data', async () => {
    vm.console.end('x');
    tell(await vm.exited);
    process.exit();
  });
`;

interface Told {
  pid: number;
  ok: boolean;
  layers: Evidence['layers'];
}

test("an ordinary user's monitor is jailed as any other, as that user and no more", async (t) => {
  await withKvm(async (options) => {
    const node = new OtherNode(holding, options);
    t.teardown(() => node.kill());
    const { pid, ok, layers } = await node.told<Told>();
    t.is(statusOf(node.pid).CapBnd === '0'.repeat(16), false, 'a user may have a bounding set');
    t.deepEqual(
      layers.filter((layer) => !layer.ok),
      [],
    );
    t.true(ok);

    const status = statusOf(pid);
    t.is(status.Uid, Array(4).fill(String(uid)).join('\t'));
    t.is(status.Gid, Array(4).fill(String(uid)).join('\t'));
    for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb']) t.is(status[set], '0'.repeat(16), set);
    t.is(status.NoNewPrivs, '1');
    t.is(status.Seccomp, '2');

    const [own, launchers, host] = [namespacesOf(pid), namespacesOf(node.pid), namespacesOf('self')];
    t.deepEqual(launchers, host, 'Node itself stays where it was');
    for (const kind of ['mnt', 'cgroup', 'uts', 'ipc', 'user', 'pid', 'net'] as const)
      t.not(own[kind], host[kind], kind);
    t.regex(readProc(pid, 'uid_map').trim(), /^\d+\s+1234\s+1$/);
    t.is(readProc(pid, 'setgroups').trim(), 'deny');

    t.deepEqual(
      mountsOf(pid)
        .map(({ path }) => path)
        .sort(),
      ['/', '/casemate-vmm'],
    );
    t.true(mountsOf(pid).every(({ options: attributes }) => attributes.includes('ro')));
    t.deepEqual(readdirSync(`/proc/${pid}/root/`), ['casemate-vmm']);
    t.is(readlinkSync(`/proc/${pid}/exe`), '/casemate-vmm');
    t.is(readProc(pid, 'environ'), '');
    const given = [...descriptorsOf(pid)].filter(([, target]) => !target.startsWith('anon_inode:')).map(([fd]) => fd);
    t.deepEqual(
      given.sort((left, right) => left - right),
      [0, 1, 2, 3, 4, 5, 6, 7],
    );

    node.process.stdin?.write('go on\n');
    t.deepEqual(await node.told(), { reason: 'exit', code: 0 });
    t.false(isAlive(pid));
  });
});

test("an ordinary user's monitor dies with its Node, and so do the tasks of its launcher", async (t) => {
  await withKvm(async (options) => {
    const node = new OtherNode(holding, options);
    const { pid } = await node.told<Told>();
    const family = readdirSync('/proc')
      .map(Number)
      .filter((each) => each > 0 && statusPpid(each) === node.pid);
    t.true(family.includes(pid) && family.length > 1, family.join());
    await node.kill();
    t.true(await within(10_000, () => !family.some(isAlive)));
  });
});

function statusPpid(pid: number): number {
  try {
    return Number(statusOf(pid).PPid);
  } catch {
    return 0; // gone meanwhile
  }
}

test('two VMs of an ordinary user share no namespace', async (t) => {
  const script = `
    import { launch } from 'casemate';
    const options = { guest: ${asScript(waiting)}, kvm: { fd: 3 } };
    const vms = await Promise.all([launch(options), launch(options)]);
    tell(vms.map(({ pid }) => pid));
    setInterval(() => {}, 1000);
  `;
  await withKvm(async (options) => {
    const node = new OtherNode(script, options);
    t.teardown(() => node.kill());
    const [first = 0, second = 0] = await node.told<number[]>();
    const [one, two] = [namespacesOf(first), namespacesOf(second)];
    for (const kind of ['mnt', 'cgroup', 'uts', 'ipc', 'user', 'pid', 'net'] as const)
      t.not(one[kind], two[kind], kind);
  });
});

test('launches of an ordinary user leave nothing behind', async (t) => {
  const script = `
    import { readdirSync, readFileSync } from 'node:fs';
    import { setTimeout as delay } from 'node:timers/promises';
    import { launch, warmUp } from 'casemate';
    const options = { guest: ${asScript(waiting)}, kvm: { fd: 3 }, console: 'ignore' };
    const count = () => ({
      children: readFileSync('/proc/self/task/' + process.pid + '/children', 'utf8').trim().split(' ').length,
      descriptors: readdirSync('/proc/self/fd').length,
      mounts: readFileSync('/proc/self/mountinfo', 'utf8'),
    });
    const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
    await (await launch(options)).exited;
    await warmUp(options);
    let before = count();
    for (let quiet = 0; quiet < 5; ) {
      await delay(10);
      const now = count();
      quiet = same(now, before) ? quiet + 1 : 0;
      before = now;
    }
    for (let i = 0; i < 10; i++) await (await launch(options)).kill();
    await Promise.all(Array.from({ length: 10 }, async () => (await launch(options)).exited));
    await launch({ ...options, guest: Buffer.from([0x0f, 0x0b]) }).catch(() => {});
    await warmUp(options);
    let after = count();
    // What is closed by way of the event loop or the kernel has a moment for that.
    for (let tries = 0; tries < 1000 && !same(after, before); tries++) {
      await delay(10);
      after = count();
    }
    tell({ before, after });
    process.exit();
  `;
  await withKvm(async (options) => {
    const { before, after } = await tellsOf<{ before: unknown; after: unknown }>(script, options);
    t.deepEqual(after, before);
  });
});

const failing = `
  import { readFileSync } from 'node:fs';
  import { launch } from 'casemate';
  const children = () => readFileSync('/proc/self/task/' + process.pid + '/children', 'utf8');
  const attempt = () => launch({ kvm: { fd: 3 } }).then(() => ({ message: 'it was launched' }), failure);
  await attempt(); // the launcher, where there can be one, is here to stay
  const before = children();
  const error = await attempt();
  tell({ ...error, left: children().length - before.length });
  process.exit();
`;

/** A user namespace of the test's own, with none of one kind of namespace to give. */
const without = (kind: 'user' | 'net', ...then: string[]) => [
  'unshare',
  '--user',
  '--map-root-user',
  'sh',
  '-c',
  `echo 0 > /proc/sys/user/max_${kind}_namespaces && exec "$@"`,
  'sh',
  ...then,
];

const told = [
  ['a user without rights', 'user', 'user', ['setpriv', '--bounding-set=-all', '--inh-caps=-all']],
  ['the root of a container', 'user', 'user', []],
  ['the root of a container', 'network', 'net', []],
] as const;

for (const [who, name, kind, then] of told) {
  test(`${who}, where ${name} namespaces cannot be made, is told so`, async (t) => {
    await withKvm(async ({ descriptors }) => {
      const through = without(kind, ...then);
      const error = await tellsOf<Record<string, string>>(failing, { through, descriptors: descriptors ?? [] });
      const ENOSPC = 28;
      const expected = { code: 'ERR_CASEMATE_NAMESPACES', errno: -ENOSPC, left: 0 };
      t.like(error, expected, JSON.stringify(error));
      t.regex(error.message ?? '', new RegExp(`^A ${name} namespace of the jail cannot be made: `));
      t.deepEqual(error.remedy?.match(/max_\w+_namespaces/g), [`max_${kind}_namespaces`]);
      t.truthy(error.step);
    });
  });
}

test('root of a user namespace that has no other user launches as any user does', async (t) => {
  const kvm = openSync('/dev/kvm', 'r+');
  t.teardown(() => closeSync(kvm));
  const node = new OtherNode(holding, { through: ['unshare', '--user', '--map-root-user'], descriptors: [kvm] });
  t.teardown(() => node.kill());
  const { pid, ok } = await node.told<Told>();
  t.true(ok);
  t.not(namespacesOf(pid).user, namespacesOf(node.pid).user);
  t.is(statusOf(pid).CapBnd, '0'.repeat(16));
});
