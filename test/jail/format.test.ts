import test from 'ava';
import { CasemateError } from 'casemate';
import { steps } from 'casemate/jail';
import { encodePlan, planFormat } from '#lib/jail/encode.js';
import {
  type Check,
  type NamespaceKind,
  namespaceFlags,
  type Plan,
  rlimitResources,
  type Step,
} from '#lib/jail/steps.js';
import { unpackFormat } from '#lib/vm/unpack.js';
import {
  balloonCommand,
  bare,
  decodeEvent,
  deviceOperations,
  encodeConfiguration,
  encodeDevices,
  encodeStreamCommand,
  type MonitorEvent,
  type SetupStep,
  stampNames,
  streamBreaks,
  wire,
} from '#lib/vm/wire.js';
import { requires } from '../helpers/index.js';
import { tellsOf } from '../helpers/node.js';
import { printed } from '../helpers/programs.js';

const withCompiler = requires('gcc');

let numbers: Readonly<Record<string, number>> | undefined;

/** A constant, size or offset as the compiler has it. */
function c(name: string): number {
  numbers ??= JSON.parse(printed('format')) as Record<string, number>;
  const value = numbers[name];
  if (value === undefined) throw new Error(`test/programs/format.cpp does not print ${name}`);
  return value;
}

const constants = (names: Readonly<Record<string, string>>, prefix = 'CASEMATE_') =>
  Object.fromEntries(Object.entries(names).map(([name, constant]) => [name, c(prefix + constant)]));

const operations: Record<Step['op'], string> = {
  execLabel: 'EXEC_LABEL',
  socketLabel: 'SOCKET_LABEL',
  socketPair: 'SOCKET_PAIR',
  pooled: 'POOLED',
  tap: 'TAP',
  setns: 'SETNS',
  unshare: 'UNSHARE',
  mount: 'MOUNT',
  umount: 'UMOUNT',
  pivotRoot: 'PIVOT_ROOT',
  mountSetattr: 'MOUNT_SETATTR',
  moveMount: 'MOVE_MOUNT',
  mkdir: 'MKDIR',
  chdir: 'CHDIR',
  checkCwd: 'CHECK_CWD',
  hostname: 'HOSTNAME',
  domainname: 'DOMAINNAME',
  rlimit: 'RLIMIT',
  session: 'SESSION',
  keyring: 'KEYRING',
  coreScheduling: 'CORE_SCHED',
  descriptors: 'DESCRIPTORS',
  ids: 'IDS',
  dropBounding: 'BOUNDING',
  capabilities: 'CAPABILITIES',
  securebits: 'SECUREBITS',
  noNewPrivs: 'NO_NEW_PRIVS',
  landlock: 'LANDLOCK',
  seccomp: 'SECCOMP',
  parentDeath: 'PARENT_DEATH',
  umask: 'UMASK',
  exec: 'EXEC',
};

const namespaceConstants: Record<NamespaceKind, string> = {
  mnt: 'NEWNS',
  cgroup: 'NEWCGROUP',
  uts: 'NEWUTS',
  ipc: 'NEWIPC',
  user: 'NEWUSER',
  pid: 'NEWPID',
  net: 'NEWNET',
  time: 'NEWTIME',
};

const checks: Record<Check, string> = {
  ids: 'IDS',
  capabilities: 'CAPABILITIES',
  noNewPrivs: 'NO_NEW_PRIVS',
  seccomp: 'SECCOMP',
  label: 'LABEL',
};

withCompiler('the numbers of a launch plan are those of native/jail/plan.h and of the kernel', (t) => {
  t.is<number, number>(planFormat.magic, c('CASEMATE_PLAN_MAGIC'));
  t.is<number, number>(planFormat.version, c('CASEMATE_PLAN_VERSION'));
  t.is<number, number>(planFormat.headerSize, c('sizeof casemate_plan'));
  t.is<number, number>(planFormat.slots, c('CASEMATE_SLOTS'));
  t.is<number, number>(planFormat.noSlot, c('CASEMATE_NO_SLOT'));
  t.is<number, number>(planFormat.maxSteps, c('CASEMATE_PLAN_MAX_STEPS'));
  t.is<number, number>(planFormat.maxSize, c('CASEMATE_PLAN_MAX_SIZE'));
  t.deepEqual<object, object>(planFormat.operations, constants(operations, 'CASEMATE_OP_'));
  t.deepEqual<object, object>(planFormat.checks, constants(checks, 'CASEMATE_CHECK_'));
  t.deepEqual<object, object>(planFormat.pools, constants({ net: 'NET', user: 'USER' }, 'CASEMATE_POOL_'));
  t.deepEqual<object, object>(
    planFormat.tapFlags,
    constants({ existing: 'EXISTING', persistent: 'PERSISTENT' }, 'CASEMATE_TAP_'),
  );
  t.is<number, number>(planFormat.tapName, c('CASEMATE_TAP_NAME'));
  t.is<number, number>(planFormat.maxTapAddresses, c('CASEMATE_TAP_MAX_ADDRESSES'));
  t.is<number, number>(planFormat.maxTapRoutes, c('CASEMATE_TAP_MAX_ROUTES'));
  t.deepEqual<object, object>(planFormat.families, constants({ 4: 'INET', 6: 'INET6' }, 'AF_'));
  t.deepEqual<object, object>(planFormat.socketTypes, constants({ stream: 'STREAM', seqpacket: 'SEQPACKET' }, 'SOCK_'));
  t.deepEqual<object, object>(namespaceFlags, constants(namespaceConstants, 'CLONE_'));
  const limits = Object.fromEntries(
    Object.keys(rlimitResources).map((name) => [name, c(`RLIMIT_${name.toUpperCase()}`)]),
  );
  t.deepEqual<object, object>(rlimitResources, limits);
});

/** A plan of one child step, and what stands in it at the places of plan.h. */
function encodedStep(step: Step, descriptors: readonly string[] = []) {
  const bytes = Buffer.from(encodePlan({ clone: [], descriptors, steps: [step], check: [] }).bytes);
  const at = c('sizeof casemate_plan');
  return {
    size: bytes.readUInt32LE(at + c('casemate_step.size')),
    u32: (field: string) => bytes.readUInt32LE(at + c(field)),
    u64: (field: string) => bytes.readBigUInt64LE(at + c(field)),
    text: (field: string, size: number) => bytes.toString('latin1', at + c(field), at + c(field) + size),
    after: (struct: string) => bytes.subarray(at + c(`sizeof ${struct}`)),
  };
}

const padded = (size: number) => Math.ceil(size / 8) * 8;

withCompiler('the head of a plan is struct casemate_plan', (t) => {
  const plan = encodePlan({
    clone: ['net', 'time'],
    descriptors: ['one', 'two'],
    cgroup: 'two',
    steps: [steps.socketPair('stream', 'theirs', 'ours'), steps.session(), steps.exec('/program')],
    check: ['ids', 'label'],
  });
  const bytes = Buffer.from(plan.bytes);
  const u32 = (field: string) => bytes.readUInt32LE(c(`casemate_plan.${field}`));
  t.is(u32('magic'), c('CASEMATE_PLAN_MAGIC'));
  t.is(u32('version'), c('CASEMATE_PLAN_VERSION'));
  t.is(u32('size'), bytes.length);
  t.is(u32('launcher_steps'), 1);
  t.is(u32('child_steps'), 2);
  t.is(u32('cgroup_slot'), 1);
  t.is(bytes.readBigUInt64LE(c('casemate_plan.clone_flags')), BigInt(c('CLONE_NEWNET') + c('CLONE_NEWTIME')));
  t.is(u32('check'), c('CASEMATE_CHECK_IDS') + c('CASEMATE_CHECK_LABEL'));
  t.is(u32('reserved'), 0);
  t.deepEqual(
    [...plan.slots],
    [
      ['one', 0],
      ['two', 1],
      ['theirs', 2],
      ['ours', 3],
    ],
  );
  t.is(
    Buffer.from(encodePlan({ clone: [], descriptors: [], steps: [], check: [] }).bytes).readUInt32LE(
      c('casemate_plan.cgroup_slot'),
    ),
    c('CASEMATE_NO_SLOT'),
  );
});

withCompiler('every step is laid out as its struct in plan.h', (t) => {
  const text = encodedStep(steps.hostname('höst'));
  t.is(text.u32('casemate_step.op'), c('CASEMATE_OP_HOSTNAME'));
  t.is(text.u32('casemate_text.length'), 5, 'in bytes');
  t.is(text.after('casemate_text').toString('utf8', 0, 6), 'höst\0');
  t.is(text.size, padded(c('sizeof casemate_text') + 6));

  const pair = encodedStep(steps.socketPair('seqpacket', 'theirs', 'ours'), ['first']);
  t.is(pair.u32('casemate_socket_pair.type'), c('SOCK_SEQPACKET'));
  t.is(pair.u32('casemate_socket_pair.child_slot'), 1);
  t.is(pair.u32('casemate_socket_pair.parent_slot'), 2);
  t.is(pair.size, c('sizeof casemate_socket_pair'));

  const user = encodedStep(steps.pooled('user', 'space', 'lease'), ['first']);
  t.is(user.u32('casemate_pooled.pool'), c('CASEMATE_POOL_USER'));
  t.is(user.u32('casemate_pooled.slot'), 1);
  t.is(user.u32('casemate_pooled.lease_slot'), 2);
  t.is(user.size, c('sizeof casemate_pooled'));
  t.is(encodedStep(steps.pooled('net', 'space')).u32('casemate_pooled.lease_slot'), c('CASEMATE_NO_SLOT'));

  const plain = encodedStep(steps.tap({ as: 'tap' }), ['first']);
  t.is(plain.u32('casemate_tap.network_slot'), c('CASEMATE_NO_SLOT'));
  t.is(plain.u32('casemate_tap.slot'), 1);
  t.is(plain.u32('casemate_tap.flags'), 0);
  t.is(plain.size, c('sizeof casemate_tap'));
  const tap = encodedStep(
    steps.tap({
      as: 'tap',
      namespace: 'network',
      name: 'a',
      existing: true,
      persistent: true,
      mtu: 9000,
      bridge: 'b',
      addresses: ['10.0.0.1/24', 'fd00::1:2/64'],
      routes: [{ to: '0.0.0.0/0', via: '10.0.0.2' }, { to: '::ffff:1.2.3.4/128' }],
    }),
    ['network'],
  );
  t.is(tap.u32('casemate_tap.network_slot'), 0);
  t.is(tap.u32('casemate_tap.flags'), c('CASEMATE_TAP_EXISTING') + c('CASEMATE_TAP_PERSISTENT'));
  t.is(tap.u32('casemate_tap.mtu'), 9000);
  t.is(tap.u32('casemate_tap.address_count'), 2);
  t.is(tap.u32('casemate_tap.route_count'), 2);
  t.is(tap.text('casemate_tap.name', c('CASEMATE_TAP_NAME')), 'a'.padEnd(16, '\0'));
  t.is(tap.text('casemate_tap.bridge', c('CASEMATE_TAP_NAME')), 'b'.padEnd(16, '\0'));
  t.is(tap.size, c('sizeof casemate_tap') + 2 * c('sizeof casemate_address') + 2 * c('sizeof casemate_route'));
  const network = (bytes: Buffer) => ({
    family: bytes.readUInt32LE(c('casemate_address.family')),
    prefix: bytes.readUInt32LE(c('casemate_address.prefix')),
    bytes: bytes.toString('hex', c('casemate_address.bytes'), c('casemate_address.bytes') + 16),
  });
  const addresses = tap.after('casemate_tap');
  const padding = '0'.repeat(24);
  t.deepEqual(network(addresses), { family: c('AF_INET'), prefix: 24, bytes: `0a000001${padding}` });
  t.deepEqual(network(addresses.subarray(c('sizeof casemate_address'))), {
    family: c('AF_INET6'),
    prefix: 64,
    bytes: 'fd000000000000000000000000010002',
  });
  const routes = addresses.subarray(2 * c('sizeof casemate_address'));
  t.is(c('casemate_route.to'), 0);
  t.deepEqual(network(routes), { family: c('AF_INET'), prefix: 0, bytes: '0'.repeat(32) });
  const gateway = routes.subarray(c('casemate_route.gateway'));
  t.is(gateway.toString('hex', 0, 16), `0a000002${padding}`);
  t.is(routes.readUInt32LE(c('casemate_route.has_gateway')), 1);
  const direct = routes.subarray(c('sizeof casemate_route'));
  t.deepEqual(network(direct), { family: c('AF_INET6'), prefix: 128, bytes: '00000000000000000000ffff01020304' });
  t.is(direct.readUInt32LE(c('casemate_route.has_gateway')), 0);

  const setns = encodedStep(steps.setns('b', 'ipc'), ['a', 'b']);
  t.is(setns.u32('casemate_setns.slot'), 1);
  t.is(setns.u32('casemate_setns.type'), c('CLONE_NEWIPC'));
  t.is(setns.size, c('sizeof casemate_setns'));

  const unshare = encodedStep(steps.unshare('uts', 'mnt'));
  t.is(unshare.u64('casemate_flags.flags'), BigInt(c('CLONE_NEWUTS') + c('CLONE_NEWNS')));
  t.is(encodedStep(steps.securebits(0xef)).u64('casemate_flags.flags'), 0xefn);
  t.is(encodedStep(steps.parentDeath(9)).u64('casemate_flags.flags'), 9n);
  const umount = encodedStep(steps.umount('/x', 2));
  t.is(umount.u64('casemate_flags.flags'), 2n);
  t.is(umount.after('casemate_flags').toString('latin1', 0, 3), '/x\0');

  const mount = encodedStep(steps.mount({ source: 's', target: 't', type: 'y', flags: 0x1234, data: 'd' }));
  t.is(mount.u64('casemate_mount.flags'), 0x1234n);
  t.is(mount.after('casemate_mount').toString('latin1', 0, 8), 's\0t\0y\0d\0');

  for (const step of [steps.pivotRoot('/p'), steps.chdir('/p')]) {
    t.is(encodedStep(step).after('casemate_none').toString('latin1', 0, 3), '/p\0');
  }

  const setattr = encodedStep(steps.mountSetattr({ target: '/m', set: 1, clear: 2, propagation: 3, recursive: true }));
  t.is(setattr.u64('casemate_mount_setattr.set'), 1n);
  t.is(setattr.u64('casemate_mount_setattr.clear'), 2n);
  t.is(setattr.u64('casemate_mount_setattr.propagation'), 3n);
  t.is(setattr.u32('casemate_mount_setattr.recursive'), 1);
  t.is(setattr.after('casemate_mount_setattr').toString('latin1', 0, 3), '/m\0');

  const move = encodedStep(steps.moveMount('b', '/m'), ['a', 'b']);
  t.is(move.u32('casemate_move_mount.slot'), 1);
  t.is(move.after('casemate_move_mount').toString('latin1', 0, 3), '/m\0');

  const mkdir = encodedStep(steps.mkdir('/d', 0o710));
  t.is(mkdir.u32('casemate_mode.mode'), 0o710);
  t.is(mkdir.after('casemate_mode').toString('latin1', 0, 3), '/d\0');
  t.is(encodedStep(steps.umask(0o27)).u32('casemate_mode.mode'), 0o27);

  const rlimit = encodedStep(steps.rlimit('memlock', 7n, 5n));
  t.is(rlimit.u32('casemate_rlimit.resource'), c('RLIMIT_MEMLOCK'));
  t.is(rlimit.u64('casemate_rlimit.soft'), 5n);
  t.is(rlimit.u64('casemate_rlimit.hard'), 7n);
  t.is(rlimit.size, c('sizeof casemate_rlimit'));

  const list = encodedStep(steps.descriptors({ a: [9, 3], b: 5 }), ['a', 'b']);
  t.is(list.u32('casemate_descriptors.count'), 3);
  const entry = c('sizeof casemate_descriptor');
  const pairs = [0, 1, 2].map((index) => {
    const bytes = list.after('casemate_descriptors').subarray(index * entry);
    return [bytes.readUInt32LE(c('casemate_descriptor.slot')), bytes.readUInt32LE(c('casemate_descriptor.number'))];
  });
  t.deepEqual(
    pairs,
    [
      [0, 3],
      [1, 5],
      [0, 9],
    ],
    'ascending by number',
  );

  const ids = encodedStep(steps.ids(1, 2, false));
  t.is(ids.u32('casemate_ids.uid'), 1);
  t.is(ids.u32('casemate_ids.gid'), 2);
  t.is(ids.u32('casemate_ids.clear_groups'), 0);
  t.is(encodedStep(steps.ids(1, 2)).u32('casemate_ids.clear_groups'), 1);

  const sets = encodedStep(steps.capabilities(1n << 40n, (1n << 40n) | 2n, 4n));
  t.is(sets.u64('casemate_capabilities.effective'), 1n << 40n);
  t.is(sets.u64('casemate_capabilities.permitted'), (1n << 40n) | 2n);
  t.is(sets.u64('casemate_capabilities.inheritable'), 4n);

  const filter = encodedStep(
    steps.seccomp(
      Uint8Array.from({ length: 16 }, (_, i) => i),
      4,
    ),
  );
  t.is(filter.u32('casemate_seccomp.flags'), 4);
  t.is(filter.u32('casemate_seccomp.count'), 2);
  t.deepEqual(
    [...filter.after('casemate_seccomp').subarray(0, 16)],
    Array.from({ length: 16 }, (_, i) => i),
  );

  const exec = encodedStep(steps.exec('/e', ['a', 'b'], ['K=v']));
  t.is(exec.u32('casemate_exec.argument_count'), 2);
  t.is(exec.u32('casemate_exec.environment_count'), 1);
  t.is(exec.after('casemate_exec').toString('latin1', 0, 11), '/e\0a\0b\0K=v\0');

  const bareSteps = [steps.checkCwd(), steps.session(), steps.keyring(), steps.coreScheduling(), steps.dropBounding()];
  for (const step of [...bareSteps, steps.noNewPrivs(), steps.landlock()]) {
    t.is(encodedStep(step).size, c('sizeof casemate_none'), step.op);
  }
});

const setupSteps: Record<SetupStep, string> = {
  configure: 'CONFIGURE',
  descriptors: 'DESCRIPTORS',
  jail: 'JAIL',
  createVm: 'VM',
  memory: 'MEMORY',
  irqchip: 'IRQCHIP',
  vcpu: 'VCPU',
  guest: 'GUEST',
  devices: 'DEVICES',
};

withCompiler('the numbers of the control protocol are those of native/vmm/wire.h', (t) => {
  t.is<number, number>(wire.magic, c('CASEMATE_WIRE_MAGIC'));
  t.is<number, number>(wire.version, c('CASEMATE_WIRE_VERSION'));
  const fds = { control: 'CONTROL', kvm: 'KVM', guest: 'GUEST', lease: 'LEASE', devices: 'DEVICES' };
  const consoles = { consoleOut: 'CONSOLE_OUT', consoleIn: 'CONSOLE_IN', categories: 'CATEGORIES' };
  const { inputs, ...descriptors } = wire.descriptors;
  t.deepEqual<object, object>(descriptors, constants({ ...fds, ...consoles }, 'CASEMATE_FD_'));
  const [first, second, last] = ['INPUT', 'INITRDS', 'INITRDS_LAST'].map((name) => c(`CASEMATE_FD_${name}`)) as [
    number,
    number,
    number,
  ];
  t.deepEqual<readonly number[], readonly number[]>(inputs, [
    first,
    ...Array.from({ length: last - second + 1 }, (_, i) => second + i),
  ]);
  t.is<number, number>(inputs.length, c('CASEMATE_MAX_INITRDS'));
  t.is<number, number>(wire.maxInitrds, inputs.length);
  t.is(descriptors.categories + 1, descriptors.devices, 'nothing lies above where those of devices begin');
  const commands = { configure: 'CONFIGURE', run: 'RUN', pause: 'PAUSE', resume: 'RESUME' };
  const streamCommands = { streamConnect: 'CONNECT', streamAccept: 'ACCEPT', streamRefuse: 'REFUSE' };
  t.deepEqual<object, object>(wire.commands, {
    ...constants(commands, 'CASEMATE_COMMAND_'),
    ...constants({ balloon: 'BALLOON', memory: 'MEMORY' }, 'CASEMATE_COMMAND_'),
    ...constants(streamCommands, 'CASEMATE_COMMAND_STREAM_'),
  });
  t.is<number, number>(wire.maxStreams, c('CASEMATE_MAX_STREAMS'));
  t.is<number, number>(wire.ampleStreams, c('CASEMATE_AMPLE_STREAMS'));
  t.is<number, number>(wire.firstGuestStream, c('CASEMATE_FIRST_GUEST_STREAM'));
  const formats = { auto: 'AUTO', elf: 'ELF', flat: 'FLAT', linux: 'LINUX', pvh: 'PVH' };
  t.deepEqual<object, object>(wire.formats, constants(formats, 'CASEMATE_IMAGE_'));
  const flags = { console: 'CONSOLE', lease: 'LEASE', landlock: 'LANDLOCK', seccomp: 'SECCOMP' };
  const others = {
    noNewPrivs: 'NO_NEW_PRIVS',
    parentDeath: 'PARENT_DEATH',
    paused: 'PAUSED',
    categories: 'CATEGORIES',
  };
  t.deepEqual<object, object>(wire.flags, constants({ ...flags, ...others }, 'CASEMATE_CONFIGURE_'));
  const events = { jailed: 'JAILED', doorbell: 'DOORBELL', paused: 'PAUSED', resumed: 'RESUMED', exited: 'EXITED' };
  const streamEvents = {
    streamRequested: 'REQUESTED',
    streamConnected: 'CONNECTED',
    streamRefused: 'REFUSED',
    streamEnded: 'ENDED',
    streamClosed: 'CLOSED',
  };
  t.deepEqual<object, object>(wire.events, {
    ...constants(
      { ...events, failed: 'FAILED', blocked: 'BLOCKED', deviceError: 'DEVICE_ERROR', memory: 'MEMORY' },
      'CASEMATE_EVENT_',
    ),
    ...constants(streamEvents, 'CASEMATE_EVENT_STREAM_'),
  });
  const exits = { guest: 'GUEST', fault: 'FAULT', shutdown: 'SHUTDOWN', internal: 'INTERNAL', protocol: 'PROTOCOL' };
  const linuxExits = { poweroff: 'POWEROFF', reboot: 'REBOOT', panic: 'PANIC' };
  t.deepEqual<object, object>(wire.exits, constants({ ...exits, host: 'HOST', ...linuxExits }, 'CASEMATE_EXIT_'));
  const structs: Record<string, string> = { deviceError: 'device_error', stream: 'stream_event' };
  const sizes = Object.keys(wire.sizes).map((name) => [name, c(`sizeof casemate_${structs[name] ?? name}`)]);
  t.deepEqual<object, object>(wire.sizes, Object.fromEntries(sizes));
  const types = { net: 'NET', block: 'BLOCK', console: 'CONSOLE', rng: 'RNG', balloon: 'BALLOON', vsock: 'VSOCK' };
  t.deepEqual<object, object>(wire.deviceTypes, constants(types, 'CASEMATE_DEVICE_'));
  t.deepEqual<object, object>(wire.netFlags, constants({ stream: 'STREAM' }, 'CASEMATE_NET_'));
  t.deepEqual<object, object>(
    wire.netParameters,
    constants({ mac: 'MAC', mtu: 'MTU', receiveLimit: 'RECEIVE_LIMIT', sendLimit: 'SEND_LIMIT' }, 'CASEMATE_NET_'),
  );
  t.deepEqual<object, object>(wire.blockFlags, constants({ readOnly: 'READ_ONLY' }, 'CASEMATE_BLOCK_'));
  const balloonFlags = { deflateOnOom: 'DEFLATE_ON_OOM', reporting: 'REPORTING' };
  t.deepEqual<object, object>(wire.balloonFlags, constants(balloonFlags, 'CASEMATE_BALLOON_'));
  t.is<number, number>(wire.deviceSize, c('sizeof casemate_device'));
  t.is<number, number>(wire.deviceSize, c('casemate_device.parameters') + 8 * wire.deviceParameters);
  t.is<number, number>(wire.maxDevices, c('CASEMATE_MAX_DEVICES'));
  t.is<number, number>(wire.maxDeviceDescriptors, c('CASEMATE_MAX_DEVICE_DESCRIPTORS'));
  t.deepEqual(
    deviceOperations.map((name) => c(`CASEMATE_OPERATION_${name.toUpperCase().replace(' ', '_')}`)),
    [...deviceOperations.keys()].map((index) => index + 1),
  );
  t.is<number, number>(wire.configureSize, c('sizeof casemate_configure'));
  t.is<number, number>(wire.maxVcpus, c('CASEMATE_MAX_VCPUS'));
  t.is<number, number>(wire.maxCpuid, c('CASEMATE_MAX_CPUID'));
  t.is<number, number>(wire.maxArgumentsSize, c('CASEMATE_MAX_ARGUMENTS_SIZE'));
  t.is<number, number>(wire.maxCommandLine, c('CASEMATE_MAX_COMMAND_LINE'));
  t.is<number, number>(wire.cpuidEntrySize, c('sizeof kvm_cpuid_entry2'));
  const tables = wire.maxCpuid * wire.cpuidEntrySize + wire.maxDevices * wire.deviceSize;
  const largest = wire.configureSize + tables + wire.maxArgumentsSize;
  t.true(largest <= c('CASEMATE_MAX_MESSAGE'));
  const stamps = [
    'MAIN',
    'CONFIGURED',
    'JAILED',
    'VM',
    'MEMORY',
    'IRQCHIP',
    'VCPU',
    'CONFINED',
    'LOADED',
    'RUN',
    'DOORBELL',
  ];
  t.deepEqual(
    stamps.map((name) => c(`CASEMATE_STAMP_${name}`)),
    [...stampNames.keys()],
  );
  t.is<number, number>(stampNames.length, c('CASEMATE_STAMP_COUNT'));
});

withCompiler('a configuration is struct casemate_configure', (t) => {
  const cpuid = Uint8Array.from({ length: 80 }, (_, i) => i);
  const args = ['guest', 'ü'];
  const numbers = {
    memorySize: 0x1_0020_0000,
    flags: 21,
    vcpus: 5,
    cpl: 3,
    runSize: 12288,
    inputs: 3,
    pageShift: 30,
  } as const;
  const disk = { type: 'block', flags: 1, descriptors: 3, parameters: [7n, 8n] } as const;
  const devices = encodeDevices([{ type: 'rng', flags: 0, descriptors: 0, parameters: [] }, disk]);
  const encoded = encodeConfiguration({ ...numbers, format: 'flat', cpuid, devices, args });
  const bytes = Buffer.from(encoded);
  const u32 = (field: string) => bytes.readUInt32LE(c(field));
  t.is(u32('casemate_command.type'), c('CASEMATE_COMMAND_CONFIGURE'));
  t.is(u32('casemate_command.size'), bytes.length);
  t.is(u32('casemate_configure.magic'), c('CASEMATE_WIRE_MAGIC'));
  t.is(u32('casemate_configure.version'), c('CASEMATE_WIRE_VERSION'));
  t.is(bytes.readBigUInt64LE(c('casemate_configure.memory_size')), 0x1_0020_0000n);
  t.is(u32('casemate_configure.flags'), 21);
  t.is(u32('casemate_configure.format'), c('CASEMATE_IMAGE_FLAT'));
  t.is(u32('casemate_configure.vcpu_count'), 5);
  t.is(u32('casemate_configure.cpl'), 3);
  t.is(u32('casemate_configure.cpuid_count'), 2);
  t.is(u32('casemate_configure.argument_count'), 2);
  t.is(u32('casemate_configure.arguments_size'), 9);
  t.is(u32('casemate_configure.run_size'), 12288);
  t.is(u32('casemate_configure.input_count'), 3);
  t.is(u32('casemate_configure.page_shift'), 30);
  t.is(u32('casemate_configure.device_count'), 2);
  const size = c('sizeof casemate_configure');
  t.deepEqual(bytes.subarray(size, size + 80), Buffer.from(cpuid));
  const table = bytes.subarray(size + 80, size + 80 + devices.length);
  t.is(table.length, 2 * c('sizeof casemate_device'));
  const second = table.subarray(c('sizeof casemate_device'));
  t.is(table.readUInt32LE(c('casemate_device.type')), c('CASEMATE_DEVICE_RNG'));
  t.is(second.readUInt32LE(c('casemate_device.type')), c('CASEMATE_DEVICE_BLOCK'));
  t.is(second.readUInt32LE(c('casemate_device.flags')), 1);
  t.is(second.readUInt32LE(c('casemate_device.descriptors')), 3);
  t.is(second.readBigUInt64LE(c('casemate_device.parameters') + 8), 8n);
  t.is(bytes.toString('utf8', size + 80 + devices.length), 'guest\0ü\0');
  const command = Buffer.from(bare(wire.commands.pause));
  t.is(command.length, c('sizeof casemate_command'));
  t.is(command.readUInt32LE(c('casemate_command.type')), c('CASEMATE_COMMAND_PAUSE'));
  t.is(command.readUInt32LE(c('casemate_command.size')), 8);
});

/** A monitor's message, with values at the places of wire.h. */
function message(struct: string, type: string, fields: Readonly<Record<string, number | bigint>> = {}): Buffer {
  const bytes = Buffer.alloc(c(`sizeof casemate_${struct}`));
  bytes.writeUInt32LE(c(`CASEMATE_EVENT_${type}`), c('casemate_event.type'));
  bytes.writeUInt32LE(bytes.length, c('casemate_event.size'));
  for (const [name, value] of Object.entries(fields)) {
    const at = c(`casemate_${struct}.${name}`);
    if (typeof value === 'bigint') bytes.writeBigUInt64LE(value, at);
    else bytes.writeUInt32LE(value, at);
  }
  return bytes;
}

const decoded = (bytes: Buffer): MonitorEvent | undefined => decodeEvent(bytes, bytes.length);

withCompiler("a monitor's messages are read as the structs of wire.h", (t) => {
  for (const type of ['JAILED', 'PAUSED', 'RESUMED']) {
    t.deepEqual<unknown, unknown>(decoded(message('event', type)), { type: type.toLowerCase() });
  }
  const doorbell = message('doorbell', 'DOORBELL');
  const stamps = stampNames.map((_, index) => BigInt(1000 + index));
  for (const [index, stamp] of stamps.entries()) {
    doorbell.writeBigUInt64LE(stamp, c('casemate_doorbell.stamps') + 8 * index);
  }
  const event = decoded(doorbell);
  t.deepEqual(event?.type === 'doorbell' && event.stamps(), stamps);

  const fields = { vector: 14, error_code: 6, address: 0xdead0000n, at: 99n, has_registers: 1 };
  const fault = message('exited', 'EXITED', { reason: c('CASEMATE_EXIT_FAULT'), code: 1, ...fields });
  const names = [
    'rax',
    'rbx',
    'rcx',
    'rdx',
    'rsi',
    'rdi',
    'rsp',
    'rbp',
    'r8',
    'r9',
    'r10',
    'r11',
    'r12',
    'r13',
    'r14',
    'r15',
  ];
  names.push('rip', 'rflags', 'cr0', 'cr2', 'cr3', 'cr4', 'efer');
  t.is(c('sizeof casemate_registers'), names.length * 8);
  for (const [index, name] of names.entries()) {
    const at = c('casemate_exited.registers') + c(`casemate_registers.${name}`);
    fault.writeBigUInt64LE(BigInt(index + 7), at);
  }
  t.deepEqual<unknown, unknown>(decoded(fault), {
    type: 'exited',
    reason: 'fault',
    code: 1,
    vector: 14,
    errorCode: 6,
    address: 0xdead0000n,
    at: 99n,
    registers: Object.fromEntries(names.map((name, index) => [name, BigInt(index + 7)])),
  });

  for (const [step, constant] of Object.entries(setupSteps)) {
    const failed = message('failed', 'FAILED', { step: c(`CASEMATE_SETUP_${constant}`), error: 22, detail: 0 });
    failed.write('ioctl(KVM_RUN)\0', c('casemate_failed.call'));
    t.deepEqual<unknown, unknown>(decoded(failed), {
      type: 'failed',
      step,
      errno: 22,
      call: 'ioctl(KVM_RUN)',
      detail: 0,
      image: undefined,
    });
  }
  const images: Record<string, RegExp> = {
    TRUNCATED: /shorter/,
    NOT_X86_64: /x86-64/,
    NOT_STATIC: /static/,
    BAD_HEADER: /headers/,
    BAD_SEGMENT: /segment.*overlaps/,
    OUTSIDE_RAM: /segment.*outside/,
    BAD_ENTRY: /entry/,
    EMPTY: /empty/,
    INPUT_TOO_BIG: /input.*do not fit/,
    COMPRESSED: /bzImage/,
    KERNEL_OUTSIDE_RAM: /segment.*below 1 MiB/,
    INITRD_TOO_BIG: /initrd do not fit/,
    NOT_PVH: /PVH/,
  };
  for (const [constant, words] of Object.entries(images)) {
    const detail = c(`CASEMATE_IMAGE_${constant}`);
    const event = decoded(message('failed', 'FAILED', { step: c('CASEMATE_SETUP_GUEST'), detail }));
    t.regex(event?.type === 'failed' ? String(event.image) : '', words);
  }

  const blocked = message('blocked', 'BLOCKED', { number: 41, arch: 0xc000003e, argument: 1n << 40n });
  t.deepEqual(decoded(blocked), { type: 'blocked', syscall: 41, arch: 0xc000003e, argument: 1n << 40n });
  const broken = message('device_error', 'DEVICE_ERROR', { device: 2, operation: 3, error: 28 });
  t.deepEqual(decoded(broken), { type: 'deviceError', device: 2, operation: 'write', errno: 28 });
  const stream = message('stream_event', 'STREAM_REQUESTED', { id: 0x8000_0001, detail: 0xffff_fffe });
  t.deepEqual(decoded(stream), { type: 'streamRequested', id: 0x8000_0001, port: 0xffff_fffe });
  for (const [number, broken] of streamBreaks.entries()) {
    t.is(c(`CASEMATE_BREAK_${broken.toUpperCase()}`), number);
    const closed = message('stream_event', 'STREAM_CLOSED', { id: 7, detail: number });
    t.deepEqual(decoded(closed), { type: 'streamClosed', id: 7, broken });
  }
  t.is(decoded(message('stream_event', 'STREAM_CLOSED', { id: 7, detail: streamBreaks.length })), undefined);
  const command = Buffer.from(encodeStreamCommand(wire.commands.streamConnect, 7, 1003));
  t.is(command.length, c('sizeof casemate_stream_command'));
  t.is(command.readUInt32LE(0), c('CASEMATE_COMMAND_STREAM_CONNECT'));
  t.is(command.readUInt32LE(4), command.length);
  t.is(command.readUInt32LE(c('casemate_stream_command.id')), 7);
  t.is(command.readUInt32LE(c('casemate_stream_command.port')), 1003);

  const memory = message('memory', 'MEMORY', { target: 512, actual: 256, known: 0b11_0000 });
  memory.writeBigUInt64LE(4096n, c('casemate_memory.statistics') + 4 * 8);
  memory.writeBigUInt64LE(2n ** 64n - 1n, c('casemate_memory.statistics') + 5 * 8);
  t.deepEqual(decoded(memory), {
    type: 'memory',
    memory: {
      balloonTargetBytes: 2 ** 21,
      balloonBytes: 2 ** 20,
      statistics: { freeBytes: 4096, totalBytes: 2 ** 64 },
    },
  });
  t.like(decoded(message('memory', 'MEMORY')), { memory: { balloonBytes: 0, statistics: undefined } });
  const ofBalloon = Buffer.from(balloonCommand(7));
  t.is(ofBalloon.length, c('sizeof casemate_balloon_command'));
  t.deepEqual([ofBalloon.readUInt32LE(0), ofBalloon.readUInt32LE(4)], [wire.commands.balloon, ofBalloon.length]);
  t.is(ofBalloon.readUInt32LE(c('casemate_balloon_command.pages')), 7);
});

withCompiler('a message that is not one of the protocol is none at all', (t) => {
  const good = {
    doorbell: message('doorbell', 'DOORBELL'),
    exited: message('exited', 'EXITED', { reason: c('CASEMATE_EXIT_GUEST') }),
    failed: message('failed', 'FAILED', { step: c('CASEMATE_SETUP_VM') }),
    blocked: message('blocked', 'BLOCKED'),
    device: message('device_error', 'DEVICE_ERROR', { operation: 1, error: 5 }),
    stream: message('stream_event', 'STREAM_CLOSED'),
    memory: message('memory', 'MEMORY'),
    paused: message('event', 'PAUSED'),
  };
  for (const [name, bytes] of Object.entries(good)) {
    t.truthy(decoded(bytes), name);
    t.is(decodeEvent(bytes, bytes.length + 8), undefined, `${name}, cut short by the buffer`);
    for (let size = 0; size < bytes.length; size += 4) {
      const short = Buffer.from(bytes.subarray(0, size));
      t.is(decoded(short), undefined, `${name} of ${size} bytes`);
      if (size >= 8) short.writeUInt32LE(size, 4);
      t.is(decoded(short), undefined, `${name} of ${size} bytes that admits it`);
    }
    const unknown = Buffer.from(bytes);
    unknown.writeUInt32LE(99, 0);
    t.is(decoded(unknown), undefined, `${name} of no type`);
  }
  const reasons = [0, Math.max(...Object.values(wire.exits)) + 1, 0xffffffff];
  for (const reason of reasons) t.is(decoded(message('exited', 'EXITED', { reason })), undefined);
  t.is(decoded(message('exited', 'EXITED', { reason: c('CASEMATE_EXIT_GUEST'), code: 256 })), undefined);
  t.is(decoded(message('exited', 'EXITED', { reason: c('CASEMATE_EXIT_FAULT'), vector: 32 })), undefined);
  for (const step of [0, Object.keys(setupSteps).length + 1, 0xffffffff])
    t.is(decoded(message('failed', 'FAILED', { step })), undefined);
  t.is(decoded(message('failed', 'FAILED', { step: 1, error: 4096 })), undefined);
  t.is(decoded(message('failed', 'FAILED', { step: 1 }).fill(0x41, c('casemate_failed.call'))), undefined, 'no NUL');
});

test('encodePlan refuses a plan that makes no sense', (t) => {
  const plan = (list: readonly Step[], more: Partial<Plan> = {}): Plan => ({
    clone: [],
    descriptors: [],
    steps: list,
    check: [],
    ...more,
  });
  const end = steps.exec('/program');
  const senseless: Record<string, Plan> = {
    'a step after exec': plan([end, steps.session()]),
    'two execs': plan([end, end]),
    'a launcher step after a child step': plan([steps.session(), steps.socketPair('stream', 'a', 'b'), end]),
    'an unknown descriptor in setns': plan([steps.setns('nobody', 'net'), end]),
    'an unknown descriptor in moveMount': plan([steps.moveMount('nobody', '/'), end]),
    'an unknown descriptor in descriptors': plan([steps.descriptors({ nobody: 1 }), end]),
    'an unknown cgroup': plan([end], { cgroup: 'nobody' }),
    'a name given twice': plan([end], { descriptors: ['a', 'a'] }),
    'a name taken by a socket pair': plan([steps.socketPair('stream', 'a', 'a'), end]),
    'a name taken by a pooled namespace': plan([steps.pooled('net', 'a'), end], { descriptors: ['a'] }),
    'too many descriptors': plan([end], { descriptors: Array.from({ length: 25 }, (_, i) => `${i}`) }),
    'too many steps': plan([...Array.from({ length: 96 }, steps.session), end]),
    'an empty seccomp program': plan([steps.seccomp(new Uint8Array()), end]),
    'half a seccomp instruction': plan([steps.seccomp(new Uint8Array(12)), end]),
    'a NUL in a path': plan([steps.chdir('/a\0b'), end]),
    'a NUL in an argument': plan([steps.exec('/program', ['a\0b'])]),
    'a NUL in a host name': plan([steps.hostname('a\0b'), end]),
    'a descriptor number above 1023': plan([steps.descriptors({ a: 1024 }), end], { descriptors: ['a'] }),
    'a negative descriptor number': plan([steps.descriptors({ a: -1 }), end], { descriptors: ['a'] }),
    'one number for two descriptors': plan([steps.descriptors({ a: 3, b: 3 }), end], { descriptors: ['a', 'b'] }),
    'no arguments': plan([steps.exec('/program', [])]),
    'too many arguments': plan([steps.exec('/program', Array(513).fill('a'))]),
    'too long a seccomp program': plan([steps.seccomp(new Uint8Array(4097 * 8)), end]),
    'an unknown kind of namespace': plan([steps.unshare('disk' as NamespaceKind), end]),
    'an unknown namespace to be born into': plan([end], { clone: ['disk' as NamespaceKind] }),
    'an unknown resource': plan([steps.rlimit('luck' as 'core', 1), end]),
    'an unknown step': plan([{ op: 'dance' } as unknown as Step, end]),
    'a user id that means none': plan([steps.ids(0xffffffff, 1), end]),
    'a group id that means none': plan([steps.ids(1, 0xffffffff), end]),
    'a negative user id': plan([steps.ids(-1, 1), end]),
    'a user id of more than 32 bits': plan([steps.ids(2 ** 32, 1), end]),
    'a user id that is no number': plan([steps.ids(Number.NaN, 1), end]),
    'a negative limit': plan([steps.rlimit('core', -1), end]),
    'a limit of more than 64 bits': plan([steps.rlimit('core', 1n << 64n), end]),
    'more than a plan may hold': plan([steps.exec('/program', ['a'.repeat(1 << 20)])]),
    'more descriptors than slots': plan([steps.descriptors({ a: Array.from({ length: 25 }, (_, i) => i) }), end], {
      descriptors: ['a'],
    }),
  };
  for (const [what, senselessPlan] of Object.entries(senseless)) {
    const error = t.throws<CasemateError>(() => encodePlan(senselessPlan), { instanceOf: CasemateError }, what);
    t.like(error, { code: 'ERR_CASEMATE_INVALID_OPTION', step: 'plan' }, what);
    t.truthy(error?.remedy, what);
  }
  t.notThrows(() => encodePlan(plan([...Array.from({ length: 95 }, steps.session), end])));
  t.notThrows(() => encodePlan(plan([end], { descriptors: Array.from({ length: 24 }, (_, i) => `${i}`) })));
});

/**
 * Plans handed to the launcher of a Node of their own. Whatever they do, they do to namespaces of that Node, and what
 * they start is the monitor, which ends at once where it has no control socket.
 */
const attempting = `
  import { openSync } from 'node:fs';
  import { encodePlan, steps } from 'casemate/jail';
  import { launcher, reaped } from '#lib/jail/launcher.js';
  import { stages } from '#lib/jail/native.js';
  import { native } from '#lib/native.js';
  const allow = Buffer.from('060000000000ff7f', 'hex');
  const given = [openSync('/dev/null', 'r+'), openSync('/proc/self/ns/ipc', 'r')];
  const clone = ['mnt', 'uts', 'ipc', 'pid'];
  const encode = (list, check = []) =>
    Buffer.from(encodePlan({ clone, descriptors: ['null', 'namespace'], steps: list, check }).bytes);
  const monitor = steps.exec('/casemate-vmm', ['a', 'b'], ['c=d']);
  const count = { plans: 0, refused: 0, none: 0, failed: 0, untyped: 0 };
  /** Whether the launcher takes it. */
  async function attempt(plan, descriptors = given) {
    count.plans += 1;
    let child;
    const outcome = await new Promise((resolve) => {
      try {
        const checked = new native.Plan(plan, descriptors.length, { inHostMounts: false });
        child = launcher().launch(checked, descriptors, undefined, 10_000, resolve);
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        resolve(undefined);
      }
    });
    if (outcome === undefined) {
      count.refused += 1;
      return false;
    }
    await reaped(child);
    const stage = stages[outcome.stage];
    if (stage === 'none') count.none += 1;
    else if (stage !== undefined && outcome.error !== undefined) count.failed += 1;
    else count.untyped += 1;
    return true;
  }
  /** Replaces each 32-bit word between two places by others. */
  async function corrupt(good, from, to) {
    for (let at = from; at < to; at += 4) {
      for (const value of [0, 1, 0x7fffffff, 0x80000000, 0xffffffff, good.readUInt32LE(at) ^ 8]) {
        const bad = Buffer.from(good);
        bad.writeUInt32LE(value >>> 0, at);
        await attempt(bad);
      }
    }
  }
`;

/** Every beginning of a good plan, and every plan that differs from it in one 32-bit word. */
const hostile = `
  ${attempting}
  const good = encode([
    steps.socketPair('seqpacket', 'theirs', 'ours'),
    steps.pooled('user', 'user', 'lease'),
    steps.setns('namespace', 'ipc'),
    steps.hostname('jail'),
    steps.rlimit('core', 0),
    steps.session(),
    steps.umask(0o77),
    steps.descriptors({ null: [0, 1, 2], lease: 9 }),
    steps.chdir('/'),
    steps.setns('user', 'user'),
    steps.ids(1000, 1000),
    steps.dropBounding(),
    steps.capabilities(),
    steps.noNewPrivs(),
    steps.seccomp(allow),
    monitor,
  ], ['ids']);
  const launchedWhole = await attempt(good);
  let launchedShort = 0;
  for (let size = 0; size < good.length; size += 1) {
    const short = Buffer.from(good.subarray(0, size));
    if (await attempt(short)) launchedShort += 1;
    if (size < 12) continue;
    short.writeUInt32LE(size, 8); // and lying about it
    if (await attempt(short)) launchedShort += 1;
  }
  await corrupt(good, 0, good.length);
  tell({ launchedWhole, launchedShort, ...count });
`;

/** The steps that are not in that plan, each in one of its own whose head is good. */
const others = `
  ${attempting}
  const tap = steps.tap({ as: 'tap', addresses: ['10.0.0.1/8'] });
  const launcherSteps = [steps.execLabel('a:b:c:s0'), steps.socketLabel('a:b:c:s0'), steps.pooled('net', 'net'), tap];
  const childSteps = [
    steps.unshare('net', 'time'),
    steps.mount({ source: 'none', target: '/', type: 'tmpfs', flags: 2, data: 'size=4k' }),
    steps.umount('/', 2),
    steps.pivotRoot('/'),
    steps.mountSetattr({ target: '/', set: 1, propagation: 0x40000, recursive: true }),
    steps.moveMount('null', '/'),
    steps.mkdir('/made'),
    steps.checkCwd(),
    steps.domainname('jail'),
    steps.keyring(),
    steps.coreScheduling(),
    steps.securebits(1),
    steps.landlock(),
    steps.parentDeath(9),
  ];
  const lists = [...launcherSteps, ...childSteps];
  let taken = 0;
  for (const step of lists) {
    const good = encode([step, monitor]);
    if (await attempt(good)) taken += 1;
    await corrupt(good, 40, 40 + good.readUInt32LE(44));
  }
  tell({ ops: lists.map(({ op }) => op), taken, ...count });
`;

/** The largest plans that encodePlan makes, and what is larger by one. */
const bounds = `
  ${attempting}
  const patched = (plan, at, value) => {
    const bytes = Buffer.from(plan);
    bytes.writeUInt32LE(value, at);
    return bytes;
  };
  const session = encode([steps.session()]).subarray(40);
  const full = (before) => [...before, ...Array.from({ length: 95 - before.length }, steps.session), monitor];
  const list = encode(full([]));
  const longer = patched(patched(Buffer.concat([list.subarray(0, 40), session, list.subarray(40)]), 8, list.length + 8), 16, 97);
  const strings = encode([steps.exec('/casemate-vmm', Array(512).fill('a'), Array(512).fill('b=c'))]);
  const numbers = encode([steps.descriptors({ null: [0, 1, 1023] }), monitor]);
  const filter = encode([steps.noNewPrivs(), steps.seccomp(Buffer.concat(Array(4096).fill(allow))), monitor]);
  const taken = [];
  for (const plan of [list, strings, numbers, filter]) taken.push(await attempt(plan));
  taken.push(await attempt(list, Array(24).fill(given[0])));
  const larger = [
    longer,
    patched(patched(strings, 48, 513), 52, 511),
    patched(patched(strings, 48, 511), 52, 513),
    patched(numbers, 56 + 2 * 8 + 4, 1024),
    patched(filter, 48 + 12, 4097),
  ];
  for (const plan of larger) await attempt(plan);
  await attempt(list, Array(25).fill(given[0]));
  tell({ taken, larger: larger.length + 1, ...count });
`;

/** Plans that must be refused for what they say: strings without an end, and slots that hold nothing or something. */
const lying = `
  ${attempting}
  const taken = [];
  const offer = async (what, plan) => {
    if (await attempt(plan)) taken.push(what);
  };
  const withStrings = [
    steps.execLabel('STRING'),
    steps.socketLabel('STRING'),
    steps.hostname('STRING'),
    steps.domainname('STRING'),
    steps.mount({ source: 'STRING', target: '/', type: 'tmpfs', data: 'size=4k' }),
    steps.umount('STRING'),
    steps.pivotRoot('STRING'),
    steps.mountSetattr({ target: 'STRING' }),
    steps.moveMount('null', 'STRING'),
    steps.mkdir('STRING'),
    steps.chdir('STRING'),
    steps.exec('STRING', ['a'], ['b=c']),
  ];
  for (const step of withStrings) {
    const endless = encode(step.op === 'exec' ? [step] : [step, monitor]);
    const end = 40 + endless.readUInt32LE(44);
    for (let at = endless.indexOf('STRING'); at < end; at += 1) if (endless[at] === 0) endless[at] = 0x78;
    await offer(step.op + ' without an end', endless);
  }
  const slots = [
    [steps.setns('namespace', 'ipc'), 48, [2, 23, 24, 0xffffffff]],
    [steps.moveMount('null', '/'), 48, [2, 23, 24, 0xffffffff]],
    [steps.descriptors({ null: 0 }), 56, [2, 23, 24, 0xffffffff]],
    [steps.socketPair('stream', 'a', 'b'), 52, [0, 1, 3, 24, 0xffffffff]],
    [steps.socketPair('stream', 'a', 'b'), 56, [0, 1, 2, 24, 0xffffffff]],
    [steps.pooled('net', 'a'), 52, [0, 1, 24, 0xffffffff]],
    [steps.pooled('user', 'a', 'b'), 56, [0, 1, 2, 24]],
    [steps.pooled('net', 'a'), 56, [3]],
    [steps.tap({ as: 'a', namespace: 'null' }), 48, [2, 23, 24]],
    [steps.tap({ as: 'a', namespace: 'null' }), 52, [0, 1, 24, 0xffffffff]],
    [steps.tap({ as: 'a', namespace: 'null' }), 56, [4, 0xffffffff]],
    [steps.tap({ as: 'a', namespace: 'null' }), 64, [1, 17, 0xffffffff]],
    [steps.tap({ as: 'a', namespace: 'null' }), 68, [1, 17, 0xffffffff]],
    [steps.tap({ as: 'a', namespace: 'null' }), 72, [0]],
    [steps.tap({ as: 'a', namespace: 'null', name: 'x'.repeat(15) }), 84, [0x78787878]],
    [steps.tap({ as: 'a', namespace: 'null', bridge: 'x'.repeat(15) }), 100, [0x78787878]],
    [steps.tap({ as: 'a', namespace: 'null', addresses: ['10.0.0.1/8'] }), 104, [0, 3, 10 << 8]],
    [steps.tap({ as: 'a', namespace: 'null', addresses: ['10.0.0.1/8'] }), 108, [33, 0xffffffff]],
    [steps.tap({ as: 'a', namespace: 'null', routes: [{ to: 'fd00::/8' }] }), 108, [129, 0xffffffff]],
    [steps.session(), 20, [2, 23, 24, 0xfffffffe]],
  ];
  for (const [step, at, values] of slots) {
    for (const value of values) {
      const plan = encode([step, monitor]);
      plan.writeUInt32LE(value, at);
      await offer(step.op + ' with ' + value + ' at ' + at, plan);
    }
  }
  tell({ taken, ...count });
`;

const withLauncher = requires('root');

type Told = Readonly<Record<'plans' | 'refused' | 'none' | 'failed' | 'untyped', number>>;

const inNamespaces = <T>(script: string): Promise<T & Told> =>
  tellsOf(script, { through: ['unshare', '--mount', '--uts', '--ipc', '--net', '--cgroup'] });

withLauncher('a truncated or corrupted plan is refused, or fails as any launch does', async (t) => {
  const told = await inNamespaces<{ launchedWhole: boolean; launchedShort: number }>(hostile);
  t.true(told.launchedWhole, 'the plan that it started from');
  t.is(told.launchedShort, 0);
  t.is(told.untyped, 0);
  t.is(told.refused + told.none + told.failed, told.plans);
  t.true(told.none > 1 && told.failed > 1, 'some of them are plans too');
});

withLauncher('a corrupted step of any kind is refused, or fails as any launch does', async (t) => {
  const told = await inNamespaces<{ ops: string[]; taken: number }>(others);
  const ops = new Set([...told.ops, ...[...hostile.matchAll(/\bsteps\.(\w+)\(/g)].map(([, op]) => op)]);
  t.deepEqual([...ops].sort(), Object.keys(planFormat.operations).sort(), 'here or in the plan above');
  t.is(told.taken, told.ops.length);
  t.is(told.untyped, 0);
  t.is(told.refused + told.none + told.failed, told.plans);
  t.true(told.none > 1 && told.failed > 1, 'some of them are plans too');
});

withLauncher('the launcher takes the largest plans that encodePlan makes, and none larger', async (t) => {
  const told = await inNamespaces<{ taken: boolean[]; larger: number }>(bounds);
  t.deepEqual(told.taken, Array(5).fill(true));
  t.is(told.refused, told.larger);
  t.is(told.untyped, 0);
});

withLauncher('a plan with an endless string, or a slot that is not what the step needs, is refused', async (t) => {
  const told = await inNamespaces<{ taken: string[] }>(lying);
  t.deepEqual(told.taken, []);
  t.true(told.refused > 40);
  t.is(told.refused, told.plans);
});

withCompiler('what casemate-unpack finds and says is what native/unpack/abi.h has', (t) => {
  const { descriptors, statuses, maxSize } = unpackFormat;
  t.deepEqual<object, object>(descriptors, constants({ image: 'IMAGE', output: 'OUTPUT' }, 'CASEMATE_UNPACK_FD_'));
  const names = {
    done: 'DONE',
    system: 'SYSTEM',
    noMemory: 'NO_MEMORY',
    notBzImage: 'NOT_BZIMAGE',
    truncated: 'TRUNCATED',
    unknown: 'UNKNOWN',
    damaged: 'DAMAGED',
    tooBig: 'TOO_BIG',
    notElf: 'NOT_ELF',
  };
  t.deepEqual<object, object>(statuses, constants(names, 'CASEMATE_UNPACK_'));
  t.is<number, number>(maxSize, c('CASEMATE_UNPACK_MAX_SIZE'));
});
