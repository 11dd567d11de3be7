import test from 'ava';
import { CasemateError } from 'casemate';
import { parseCommand } from '#lib/cli/args.js';

const plain = { name: 'run', args: [], json: false, timeline: false, evidence: false };
const unusable = { instanceOf: CasemateError, code: 'ERR_CASEMATE_INVALID_OPTION' };

test('no arguments ask for help', (t) => {
  t.deepEqual(parseCommand([]), { name: 'help', topic: 'casemate' });
});

test('help and version are understood in all their spellings', (t) => {
  for (const argv of [['--help'], ['-h'], ['help']])
    t.deepEqual(parseCommand(argv), { name: 'help', topic: 'casemate' });
  for (const argv of [
    ['help', 'run'],
    ['run', '--help'],
    ['run', '-h'],
  ]) {
    t.deepEqual(parseCommand(argv), { name: 'help', topic: 'run' });
  }
  for (const argv of [
    ['help', 'doctor'],
    ['doctor', '--help'],
  ]) {
    t.deepEqual(parseCommand(argv), { name: 'help', topic: 'doctor' });
  }
  for (const argv of [['--version'], ['-v']]) t.deepEqual(parseCommand(argv), { name: 'version' });
});

test('doctor takes --json and nothing else', (t) => {
  t.deepEqual(parseCommand(['doctor']), { name: 'doctor', json: false });
  t.deepEqual(parseCommand(['doctor', '--json']), { name: 'doctor', json: true });
  t.throws(() => parseCommand(['doctor', 'kvm']), unusable);
  t.throws(() => parseCommand(['doctor', '--verbose']), unusable);
});

test('selinux takes an action, status by default, and --json before or behind it', (t) => {
  t.deepEqual(parseCommand(['selinux']), { name: 'selinux', action: 'status', json: false });
  for (const action of ['status', 'install', 'remove', 'check', 'restore', 'denials'] as const) {
    t.deepEqual(parseCommand(['selinux', action, '--json']), { name: 'selinux', action, json: true });
    t.deepEqual(parseCommand(['selinux', '--json', action]), { name: 'selinux', action, json: true });
  }
  t.deepEqual(parseCommand(['selinux', '--help']), { name: 'help', topic: 'selinux' });
  for (const bad of [['enforce'], ['check', 'more'], ['check', '--follow']]) {
    t.throws(() => parseCommand(['selinux', ...bad]), unusable);
  }
});

test('bench takes how many launches and of how much memory', (t) => {
  t.deepEqual(parseCommand(['bench']), { name: 'bench', launches: 100, json: false });
  const argv = ['bench', '-n', '20', '--memory', '64', '--json'];
  t.deepEqual(parseCommand(argv), { name: 'bench', launches: 20, memoryMib: 64, json: true });
  t.deepEqual(parseCommand(['bench', '--help']), { name: 'help', topic: 'bench' });
  for (const bad of [['0'], ['-1'], ['many'], ['100001']]) {
    t.throws(() => parseCommand(['bench', '--launches', ...bad]), unusable);
  }
  t.throws(() => parseCommand(['bench', '50']), unusable);
});

test('run connects a Linux guest by a tap of its own, by one that exists, or by a stream', (t) => {
  const run = (...argv: string[]) => parseCommand(['run', '--kernel', 'vmlinux', ...argv]);
  const linux = { ...plain, kernel: 'vmlinux' };
  t.deepEqual(run('--network', 'tap'), { ...linux, network: { tap: {} } });
  const addresses = ['10.0.0.1/24', 'fd00::1/64'];
  t.deepEqual(run('--network=tap', '--address', '10.0.0.1/24', '--address=fd00::1/64', '--mac', '02:00:00:00:00:01'), {
    ...linux,
    network: { tap: { addresses }, mac: '02:00:00:00:00:01' },
  });
  const existing = { name: 'vm=0', existing: true, namespace: 'host' };
  t.deepEqual(run('--network', 'tap=vm=0'), { ...linux, network: { tap: existing } });
  t.deepEqual(run('--network', 'stream=/run/a=b'), { ...linux, network: { stream: { path: '/run/a=b' } } });
  for (const bad of ['', 'tap=', 'stream', 'stream=', 'taps', 'bridge']) {
    t.throws(() => run('--network', bad), unusable, bad);
  }
  t.throws(() => run('--network', 'tap=vm0', '--address', '10.0.0.1/24'), unusable);
  t.throws(() => run('--address', '10.0.0.1/24'), unusable);
  t.throws(() => run('--mac', '02:00:00:00:00:01'), unusable);
});

test('run without a guest runs the built-in one', (t) => {
  t.deepEqual(parseCommand(['run']), plain);
  t.deepEqual(parseCommand(['run', '--']), plain);
  t.deepEqual(parseCommand(['run', '--timeline', '--evidence']), { ...plain, timeline: true, evidence: true });
});

test('limits of run are numbers', (t) => {
  t.deepEqual(parseCommand(['run', '--memory-limit', '64', '--cpus', '0.5', '--pids', '16']), {
    ...plain,
    limits: { memoryMib: 64, cpus: 0.5, pids: 16 },
  });
  t.deepEqual(parseCommand(['run', '--cpus=2']), { ...plain, limits: { cpus: 2 } });
  for (const bad of ['--cpus=half', '--cpus=-1', '--memory-limit=1.5', '--pids=']) {
    t.throws(() => parseCommand(['run', bad]), unusable);
  }
});

test('every option of run is understood', (t) => {
  const argv = ['run', '--memory', '32', '--cpl', '0', '--input', 'in', '--timeout', '500', '--json', 'guest.elf'];
  const expected = { ...plain, guest: 'guest.elf', memoryMib: 32, cpl: 0, input: 'in', timeoutMs: 500, json: true };
  t.deepEqual(parseCommand(argv), expected);
  t.deepEqual(parseCommand(['run', '-m', '32', '-i', 'in', '-t500', '--cpl=0', '--json', 'guest.elf']), expected);
});

test('run takes a kernel with its initrd and command line instead of a guest', (t) => {
  const argv = [
    'run',
    '--kernel',
    'vmlinux',
    '--initrd',
    'initrd.img',
    '--initrd',
    'more.img',
    '--disk',
    'root.img',
    '--disk',
    'data,1.img,ro',
    '--cmdline',
    'quiet ro',
    '-m',
    '512',
    '--vcpus',
    '4',
  ];
  const expected = {
    ...plain,
    kernel: 'vmlinux',
    initrd: ['initrd.img', 'more.img'],
    disks: [{ path: 'root.img' }, { path: 'data,1.img', readOnly: true as const }],
    cmdline: 'quiet ro',
    memoryMib: 512,
    vcpus: 4,
  };
  t.deepEqual(parseCommand(argv), expected);
  t.deepEqual(parseCommand(['run', '-k', 'vmlinux']), { ...plain, kernel: 'vmlinux' });
});

test('what stands behind the options of a kernel is a command in its guest', (t) => {
  const argv = ['run', '-k', 'auto', '-u', 'guest', '--modules', 'dir', '--', 'sh', '-c', 'uname -a'];
  t.deepEqual(parseCommand(argv), {
    ...plain,
    kernel: 'auto',
    command: ['sh', '-c', 'uname -a'],
    user: 'guest',
    modules: 'dir',
  });
  t.throws(() => parseCommand(['run', '-k', 'vmlinux', '--user', 'guest']), unusable);
  t.throws(() => parseCommand(['run', '--modules', 'dir', 'guest.elf']), unusable);
});

test('everything behind the guest is its own, dashes or not', (t) => {
  t.deepEqual(parseCommand(['run', '--json', 'guest', '--json', '-h', '--', '--memory', 'x']), {
    ...plain,
    guest: 'guest',
    json: true,
    args: ['--json', '-h', '--', '--memory', 'x'],
  });
});

test('two dashes end the options of casemate', (t) => {
  t.deepEqual(parseCommand(['run', '--', '--guest', '--json']), { ...plain, guest: '--guest', args: ['--json'] });
});

for (const argv of [
  ['fly'],
  ['--fly'],
  ['help', 'fly'],
  ['help', 'run', 'more'],
  ['run', '--fly', 'guest'],
  ['run', '--memory'],
  ['run', '--memory', 'much'],
  ['run', '--memory', '1.5'],
  ['run', '--memory', '0x10'],
  ['run', '--memory', '-2'],
  ['run', '--memory', '9'.repeat(40)],
  ['run', '--timeout', ''],
  ['run', '--cpl', '1'],
  ['run', '--json=yes'],
]) {
  test(`casemate ${argv.join(' ').slice(0, 40)} is refused with a hint`, (t) => {
    const error = t.throws(() => parseCommand(argv), unusable) as CasemateError | undefined;
    t.regex(error?.remedy ?? '', /^See casemate /);
  });
}
