/** The tap step: devices as the kernel shows them in their namespace, and what keeps them from being had. */
import { spawn as spawnChild, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, openSync } from 'node:fs';
import { type Step, steps } from 'casemate/jail';
import { requires } from '../helpers/index.js';
import { leaks } from '../helpers/leaks.js';
import { tellsOf } from '../helpers/node.js';
import { readProc, within } from '../helpers/proc.js';
import { reportPlan, run, spawnReport } from './spawned.js';

const { serial: test } = requires('root', 'programs', 'tun');
const { serial: testAsUser } = requires('root', 'setpriv', 'userns', 'programs', 'tun');

/** A program in a network namespace of the pool, with a tap at descriptor 4. */
const withTap = (tap: Partial<Parameters<typeof steps.tap>[0]>): Step[] => [
  steps.pooled('net', 'network'),
  steps.tap({ as: 'tap', namespace: 'network', ...tap }),
  steps.setns('network', 'net'),
  steps.descriptors({ null: [0, 1, 2], theirs: 3, tap: 4 }),
];

/** Names of the network devices that a process sees. */
const devicesOf = (pid: number) =>
  [...readProc(pid, 'net/dev').matchAll(/^ *([^\s:]+):/gm)].map(([, name]) => name).sort();

/** What a command says in the network namespace of a process. */
const inside = (pid: number, ...command: string[]) =>
  spawnSync('nsenter', ['-t', String(pid), '-n', '--', ...command], { encoding: 'utf8' }).stdout;

test('a tap is made in a namespace of the pool, up, with its addresses and routes', async (t) => {
  await using spawned = await spawnReport(
    withTap({
      persistent: true,
      mtu: 1400,
      addresses: ['10.11.12.1/24', 'fd11::1/64'],
      routes: [{ to: '10.99.0.0/16', via: '10.11.12.2' }, { to: '172.20.0.0/14' }, { to: 'fd99::/32', via: 'fd11::2' }],
    }),
  );
  const { pid } = spawned;
  t.deepEqual(devicesOf(pid), ['lo', 'tap0']);
  t.regex(readProc(pid, 'fdinfo/4'), /^iff:\ttap0$/m);
  const attribute = (name: string) => inside(pid, 'cat', `/proc/sys/net/ipv6/conf/tap0/${name}`).trim();
  t.is(attribute('mtu'), '1400');
  t.is(attribute('accept_ra'), '0', 'what a guest advertises is no route');
  // Destination, gateway, flags (up, gateway), ..., mask: as the kernel prints numbers of the network's byte order.
  const routes = readProc(pid, 'net/route')
    .trim()
    .split('\n')
    .slice(1)
    .map((line) => line.split(/\s+/))
    .map(([device, to, gateway, flags, , , , mask]) => [device, to, gateway, flags, mask].join(' '));
  t.deepEqual(routes.sort(), [
    'tap0 000014AC 00000000 0001 0000FCFF',
    'tap0 0000630A 020C0B0A 0003 0000FFFF',
    'tap0 000C0B0A 00000000 0001 00FFFFFF',
  ]);
  t.regex(readProc(pid, 'net/if_inet6'), /^fd110000000000000000000000000001 \w+ 40 00 \w+ +tap0$/m);
  t.regex(
    readProc(pid, 'net/ipv6_route'),
    /^fd990000000000000000000000000000 20 0+ 00 fd110000000000000000000000000002 /m,
  );
});

test('a tap that is not persistent is gone with the last of its descriptors, and the namespace stays', async (t) => {
  const holder = spawnChild('unshare', ['--net', 'sleep', '1000'], { stdio: 'ignore' });
  try {
    const pid = holder.pid as number;
    const own = readProc('self', 'net/dev');
    await within(5000, () => existsSync(`/proc/${pid}/ns/net`) && readProc(pid, 'comm') === 'sleep\n');
    const network = openSync(`/proc/${pid}/ns/net`, 'r');
    try {
      const list = [
        steps.tap({ as: 'tap', namespace: 'network', name: 'given0' }),
        steps.descriptors({ null: [0, 1, 2], theirs: 3, tap: 4 }),
      ];
      await using spawned = await spawnReport(list, { descriptors: { network } });
      t.deepEqual(devicesOf(pid), ['given0', 'lo']);
      t.regex(readProc(spawned.pid, 'fdinfo/4'), /^iff:\tgiven0$/m);
      t.is(devicesOf(spawned.pid).includes('given0'), false, 'it is not where the process is');
      t.deepEqual(Object.keys(own), Object.keys(readProc('self', 'net/dev')));

      const twice = await t.throwsAsync(run(reportPlan(list, { descriptors: { network } }), { network }));
      t.like(twice, { code: 'ERR_CASEMATE_NETWORK', step: 'tap', syscall: 'ioctl(TUNSETIFF)', errno: -16 });
      const missing = [
        steps.tap({ as: 'tap', namespace: 'network', name: 'none0', existing: true }),
        steps.tap({ as: 'tap', namespace: 'network', name: 'port0', bridge: 'none0' }),
        steps.tap({ as: 'tap', namespace: 'network', name: 'lo', existing: true }),
      ];
      for (const step of missing) {
        const error = await t.throwsAsync(run(reportPlan([step], { descriptors: { network } }), { network }));
        t.like(error, { code: 'ERR_CASEMATE_NETWORK', step: 'tap' });
      }
      t.deepEqual(devicesOf(pid), ['given0', 'lo'], 'what could not be set up is gone');
    } finally {
      closeSync(network);
    }
    t.true(await within(5000, () => devicesOf(pid).join() === 'lo'));
  } finally {
    holder.kill('SIGKILL');
    await once(holder, 'exit');
  }
});

test('one end of a tap that is there is had by its name, and nothing of it changes', async (t) => {
  const holder = await spawnReport(withTap({ persistent: true, addresses: ['10.11.12.1/24'] }));
  const network = openSync(`/proc/${holder.pid}/ns/net`, 'r');
  const list = [
    steps.tap({ as: 'tap', namespace: 'network', existing: true }),
    steps.descriptors({ null: [0, 1, 2], theirs: 3, tap: 4 }),
  ];
  try {
    const busy = await t.throwsAsync(run(reportPlan(list, { descriptors: { network } }), { network }));
    t.like(busy, { code: 'ERR_CASEMATE_NETWORK', syscall: 'ioctl(TUNSETIFF)', errno: -16 });
    await holder[Symbol.asyncDispose]();
    for (let times = 0; times < 2; times += 1) {
      await using spawned = await spawnReport([...list, steps.setns('network', 'net')], { descriptors: { network } });
      t.regex(readProc(spawned.pid, 'fdinfo/4'), /^iff:\ttap0$/m);
      t.deepEqual(devicesOf(spawned.pid), ['lo', 'tap0']);
      t.regex(readProc(spawned.pid, 'net/route'), /^tap0\t000C0B0A/m);
    }
  } finally {
    closeSync(network);
  }
});

test('a tap that cannot be had fails the launch, and leaves nothing', async (t) => {
  const left = await leaks(async () => {
    const nothing = openSync('/dev/null', 'r');
    try {
      const bad: [Partial<Parameters<typeof steps.tap>[0]>, object][] = [
        [{ mtu: 1 }, { syscall: 'netlink(RTM_NEWLINK)', errno: -22 }],
        [{ bridge: 'none0' }, { syscall: 'ioctl(SIOCGIFINDEX of the bridge)', errno: -19 }],
        [{ addresses: ['10.0.0.1/8', '10.0.0.1/8'] }, { syscall: 'netlink(RTM_NEWADDR)', errno: -17 }],
        [{ routes: [{ to: '10.0.0.0/8', via: '192.0.2.1' }] }, { syscall: 'netlink(RTM_NEWROUTE)' }],
        [
          { name: 'none0', existing: true },
          { syscall: 'ioctl(SIOCGIFINDEX)', errno: -19 },
        ],
        [{ name: 'lo' }, { syscall: 'ioctl(TUNSETIFF)' }],
      ];
      for (const [tap, expected] of bad) {
        const error = await t.throwsAsync(run(reportPlan(withTap(tap))), undefined, JSON.stringify(tap));
        t.like(error, { code: 'ERR_CASEMATE_NETWORK', step: 'tap', ...expected }, JSON.stringify(tap));
        t.truthy((error as { remedy?: string }).remedy);
      }
      const noNamespace = [steps.tap({ as: 'tap', namespace: 'given' })];
      const error = await t.throwsAsync(
        run(reportPlan(noNamespace, { descriptors: { given: nothing } }), { given: nothing }),
      );
      t.like(error, { code: 'ERR_CASEMATE_NETWORK', step: 'tap', syscall: 'setns(net)', errno: -22 });
    } finally {
      closeSync(nothing);
    }
  });
  t.deepEqual(left, []);
});

test('taps, addresses and routes that make no sense are refused with the plan', async (t) => {
  const bad: [Partial<Parameters<typeof steps.tap>[0]>, string][] = [
    [{ name: '' }, 'tap.name'],
    [{ name: 'sixteen-bytes-xx' }, 'tap.name'],
    [{ name: 'tap%d' }, 'tap.name'],
    [{ name: 'a/b' }, 'tap.name'],
    [{ name: '..' }, 'tap.name'],
    [{ name: 'a b' }, 'tap.name'],
    [{ bridge: 'a:b' }, 'tap.bridge'],
    [{ addresses: ['10.0.0.1'] }, 'tap.addresses[0]'],
    [{ addresses: ['10.0.0.1/33'] }, 'tap.addresses[0]'],
    [{ addresses: ['fe80::1%eth0/64'] }, 'tap.addresses[0]'],
    [{ addresses: ['10.0.0.1/24', 'x/24'] }, 'tap.addresses[1]'],
    [{ routes: [{ to: '10.0.0.0/8', via: 'x' }] }, 'tap.routes[0].via'],
    [{ routes: [{ to: '10.0.0.0/8', via: 'fd00::1' }] }, 'plan'],
    [{ addresses: Array(17).fill('10.0.0.1/24') }, 'plan'],
    [{ routes: Array(17).fill({ to: '10.0.0.0/8' }) }, 'plan'],
    [{ mtu: -1 }, 'plan'],
    [{ namespace: 'nobody' }, 'plan'],
  ];
  for (const [tap, step] of bad) {
    const error = await t.throwsAsync(run(reportPlan(withTap(tap))), undefined, JSON.stringify(tap));
    t.like(error, { code: 'ERR_CASEMATE_INVALID_OPTION', step }, JSON.stringify(tap));
  }
});

testAsUser('an ordinary user has taps in namespaces of the pool, and none in those of others', async (t) => {
  const script = `
    import { openSync, readFileSync } from 'node:fs';
    import { spawn, steps } from 'casemate/jail';
    const network = openSync('/proc/self/ns/net');
    const start = (...list) => spawn({
      clone: [],
      descriptors: ['network'],
      steps: [...list, steps.descriptors({ tap: 4 }), steps.exec('/bin/sleep', ['sleep', '100'])],
      check: [],
    }, { descriptors: { network } });
    const seen = [];
    const made = await start(
      steps.pooled('net', 'own'),
      steps.tap({ as: 'tap', namespace: 'own', addresses: ['10.11.12.1/24', 'fd00::1/64'] }),
    );
    seen.push(/^iff:.*/m.exec(readFileSync('/proc/' + made.pid + '/fdinfo/4', 'utf8'))[0]);
    made.kill();
    await made.exited;
    for (const tap of [{ as: 'tap' }, { as: 'tap', namespace: 'network' }]) {
      await start(steps.tap(tap)).catch(({ code, step, syscall, errno }) => seen.push({ code, step, syscall, errno }));
    }
    tell(seen);
  `;
  const refused = { code: 'ERR_CASEMATE_NETWORK', step: 'tap', errno: -1 };
  t.deepEqual(await tellsOf(script, { uid: 1234 }), [
    'iff:\ttap0',
    { ...refused, syscall: 'ioctl(TUNSETIFF)' },
    { ...refused, syscall: 'setns(net)' },
  ]);
});
