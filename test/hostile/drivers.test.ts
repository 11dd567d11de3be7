/**
 * Drivers that mean harm, against every device that a guest can have: their monitor gives them what they deserve, which
 * is a device that needs a reset. It does not crash, it does not grow, and other VMs hear nothing of it.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { inspect } from 'node:util';
import { type LaunchOptions, launch, type Vm, type VmExit } from 'casemate';
import {
  await16,
  Device,
  data,
  descriptor,
  indirect,
  mapDevices,
  next,
  offer,
  read8,
  read16,
  read32,
  read64,
  register,
  repeat,
  ringsOf,
  scratch,
  writable,
  write8,
  write16,
  write32,
  write64,
} from '../helpers/drivers.js';
import { requires } from '../helpers/index.js';
import { echo, kernel, powerOff, print } from '../helpers/kernels.js';
import { leaks } from '../helpers/leaks.js';
import { descriptorsOf, patience } from '../helpers/proc.js';
import { waiting } from '../jail/guests.js';

const { serial: testAny } = requires('kvm');
const { serial: testWithTap } = requires('kvm', 'tun');

const memoryMib = 64;
const endOfMemory = memoryMib * 2 ** 20;

/** A device, as an attack needs to know it. */
interface Subject {
  /** Its place in the guest. */
  readonly index: number;
  readonly queues: number;
  /** What of its own features a driver accepts. */
  readonly features: number;
  readonly options: LaunchOptions;
  /** Says some words to Node, and goes on when Node has answered with a full stop. By default on the serial port. */
  readonly say?: (device: Device, words: string) => string;
}

type Attack = (device: Device, subject: Subject) => string;

const numbers = (count: number) => Array.from({ length: count }, (_, i) => i);
const times = (count: number, code: (i: number) => string) => numbers(count).map(code).join('');

/** `code` for each queue of a device that has been brought up, and a kick of it. */
const inEachQueue =
  (code: (queue: number, table: number) => string): Attack =>
  (device, { queues, features }) =>
    device.start(queues, features) +
    times(queues, (queue) => code(queue, ringsOf(queue).descriptors) + device.kick(queue));

/** Each of these chains, which begin with the first descriptor of a table, in each queue. */
const withEachChain =
  (chains: readonly ((table: number) => string)[]): Attack =>
  (device, subject) =>
    chains.map((chain) => inEachQueue((queue, table) => chain(table) + offer(queue, [0]))(device, subject)).join('');

const wrongAddresses = [
  0xc000_0000n, // the hole
  0xd000_0000n, // registers
  0xfee0_0000n,
  BigInt(endOfMemory),
  BigInt(endOfMemory) - 1n, // the rest of it is none
  0x1_0000_0000n,
  2n ** 63n,
  2n ** 64n - 4096n,
  2n ** 64n - 1n,
];

const wrongLengths = [0xffff_ffff, 0xffff_f000, 0x8000_0000, endOfMemory, 0];

/** Numbers on which arithmetic goes wrong. */
const edges = [0n, 1n, 0x7fn, 0xffn, 0xffffn, 0x7fff_ffffn, 0x8000_0000n, 0xffff_ffffn, 2n ** 63n, 2n ** 64n - 1n];

/** The same numbers each time; mulberry32. */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

/** One of the things that a driver can do at all. */
function anything(device: Device, { queues, features }: Subject, pick: (below: number) => number): string {
  const edge = (): bigint => (pick(3) === 0 ? BigInt(data + pick(0x1000)) : (edges[pick(edges.length)] as bigint));
  const word = (): number => Number(edge() & 0xffff_ffffn);
  const queue = pick(queues);
  const { descriptors, available, used } = ringsOf(queue);
  const offsets = Object.values(register);
  switch (pick(12)) {
    case 0:
      return device.start(queues, features);
    case 1:
      return device.kick(pick(queues + 2));
    case 2:
      return device.set((offsets[pick(offsets.length)] as number) + 4 * pick(2), word());
    case 3:
      return write64(data + 8 * pick(64), edge());
    case 4:
      return device.setQueue(queue, { size: word(), descriptors: edge(), available, used });
    case 5:
      return write16(available + 2, pick(0x1_0000));
    case 6:
      return write32(scratch + 4 * pick(0x4_0000), word());
    case 7:
      return device.set(register.status, [0, 1, 3, 11, 15, 0x80, 0xff][pick(7)] as number);
    default:
      return (
        descriptor(descriptors, pick(16), {
          address: pick(4) === 0 ? edge() : data + 64 * pick(256),
          length: pick(4) === 0 ? word() : pick(0x2000),
          flags: pick(8),
          next: pick(17),
        }) +
        write16(available + 4 + 2 * pick(16), pick(17)) +
        write16(available + 2, pick(32)) +
        device.kick(queue)
      );
  }
}

const attacks: Readonly<Record<string, Attack>> = {
  'descriptors that lead back to themselves': withEachChain([
    (table) => descriptor(table, 0, { flags: next, next: 0 }),
    (table) => descriptor(table, 0, { flags: next, next: 1 }) + descriptor(table, 1, { flags: next, next: 0 }),
    (table) => times(16, (i) => descriptor(table, i, { flags: next | writable, next: (i + 1) % 16 })),
    (table) => descriptor(table, 0, { flags: next, next: 0xffff }),
  ]),

  'memory to write to before memory to read': withEachChain([
    (table) => descriptor(table, 0, { flags: writable | next, next: 1 }) + descriptor(table, 1, {}),
  ]),

  'addresses that are no memory': withEachChain(
    wrongAddresses.flatMap((address) => [
      (table: number) => descriptor(table, 0, { address }),
      (table: number) => descriptor(table, 0, { address, flags: writable }),
    ]),
  ),

  'lengths near 2^32, and none': withEachChain([
    ...wrongLengths.flatMap((length) => [
      (table: number) => descriptor(table, 0, { length }),
      (table: number) => descriptor(table, 0, { length, flags: writable }),
    ]),
    // Each of them is in memory, and together they are more than there is.
    ...[0, writable].map(
      (flags) => (table: number) =>
        times(16, (i) =>
          descriptor(table, i, {
            address: data,
            length: 0x100_0000,
            flags: i < 15 ? flags | next : flags,
            next: i + 1,
          }),
        ),
    ),
  ]),

  'indirect tables that make no sense': withEachChain([
    // In itself, in another one, or one that goes round or out of itself.
    (table) => descriptor(table, 0, { address: table, length: 16, flags: indirect }),
    (table) =>
      descriptor(table, 0, { address: data, length: 32, flags: indirect }) +
      descriptor(data, 0, { address: data, length: 32, flags: indirect }),
    (table) =>
      descriptor(table, 0, { address: data, length: 32, flags: indirect }) +
      descriptor(data, 0, { flags: next, next: 1 }) +
      descriptor(data, 1, { flags: next, next: 0 }),
    (table) =>
      descriptor(table, 0, { address: data, length: 16, flags: indirect }) +
      descriptor(data, 0, { flags: next, next: 1 }),
    (table) => descriptor(table, 0, { address: data, length: 32, flags: indirect | next, next: 1 }),
    ...[0, 8, 17, 0x1_0000, 0xffff_fff0].map(
      (length) => (table: number) => descriptor(table, 0, { address: data, length, flags: indirect }),
    ),
    ...wrongAddresses.map(
      (address) => (table: number) => descriptor(table, 0, { address, length: 32, flags: indirect | writable }),
    ),
  ]),

  'indices that run ahead, and heads that are none': (device, subject) =>
    [0x8000, 17, 0xffff]
      .map((index) => inEachQueue((queue) => write16(ringsOf(queue).available + 2, index))(device, subject))
      .join('') + inEachQueue((queue) => offer(queue, [16, 0xffff]))(device, subject),

  'rings of no size, or where no memory is': (device, { queues, features }) => {
    const good = ringsOf(0);
    const wrong = [
      ...[0, 3, 257, 512, 0x1_0000, 0xffff_ffff].map((size) => ({ ...good, size })),
      ...wrongAddresses.flatMap((address) => [
        { ...good, descriptors: address },
        { ...good, available: address },
        { ...good, used: address },
      ]),
      { ...good, descriptors: good.descriptors + 1, available: good.available + 1, used: good.used + 2 },
    ];
    return wrong
      .map(
        (rings) =>
          device.negotiate(features) +
          times(queues, (queue) => device.setQueue(queue, rings)) +
          device.set(register.status, 15) +
          times(queues, (queue) => device.kick(queue)),
      )
      .join('');
  },

  'rings on top of each other, and buffers on top of rings': (device, subject) => {
    const { queues, features } = subject;
    const start = ringsOf(0).descriptors;
    const onTop = inEachQueue((queue, table) => {
      const { available, used } = ringsOf(queue);
      const parts = [table, available, used].map((address, i) =>
        descriptor(table, i, { address, length: 64, flags: i < 2 ? next | writable : writable, next: i + 1 }),
      );
      return parts.join('') + offer(queue, [0]);
    });
    return (
      device.negotiate(features) +
      times(queues, (queue) =>
        device.setQueue(queue, { size: 256, descriptors: start, available: start, used: start }),
      ) +
      device.set(register.status, 15) +
      times(queues, (queue) => device.kick(queue)) +
      onTop(device, subject)
    );
  },

  'a queue that moves, shrinks and ends while its device runs': (device, { queues, features }) =>
    device.start(queues, features) +
    times(
      queues,
      (queue) =>
        descriptor(ringsOf(queue).descriptors, 0, { flags: writable }) +
        device.setQueue(queue, { size: 256, descriptors: 2n ** 63n, available: 0xd000_0000, used: endOfMemory - 8 }) +
        offer(queue, [0]) +
        device.kick(queue) +
        device.set(register.queueReady, 0) +
        device.kick(queue),
    ),

  'a reset in the middle of everything': (device, subject) =>
    repeat(
      20,
      inEachQueue(
        (queue, table) =>
          times(16, (i) => descriptor(table, i, { length: 0x1_0000, flags: (i % 2) * writable })) +
          offer(queue, numbers(16)),
      )(device, subject) + device.reset(),
    ),

  'kicks without end, of queues that are there and of others, of every size': (device, { queues, features }) => {
    const kicks = [...numbers(queues + 2), 8, 31, 32, 0xffff, 0xffff_ffff].map((queue) => device.kick(queue)).join('');
    const at = device.window + register.notify;
    const odd = write8(at, 0) + write16(at, 1) + write64(at, 0n) + write32(at + 1, 0) + write8(at + 3, 0);
    return device.reset() + kicks + odd + device.start(queues, features) + repeat(50, kicks + odd);
  },

  'features that are not offered, or none': (device, { queues }) =>
    [0xffff_ffff, 0]
      .map(
        (features) =>
          device.negotiate(features) +
          device.set(register.status, 3) +
          // Not even version 1.
          device.set(register.driverFeaturesSelect, 1) +
          device.set(register.driverFeatures, features) +
          device.set(register.driverFeaturesSelect, 7) +
          device.set(register.driverFeatures, features) +
          device.set(register.status, 11) +
          times(queues, (queue) => device.setQueue(queue, ringsOf(queue))) +
          device.set(register.status, 15) +
          times(queues, (queue) => device.kick(queue)),
      )
      .join(''),

  'every status there is, one after the other': (device, { queues, features }) =>
    device.start(queues, features) +
    times(256, (status) => device.set(register.status, status) + device.kick(0)) +
    device.set(register.status, 0xffff_ff00),

  'every register, in every size, and between registers': (device, { queues, features }) =>
    device.start(queues, features) +
    times(0x140 / 4, (i) => {
      const at = device.window + 4 * i;
      const between = at + 1 + (i % 3);
      return (
        [read8, read16, read32, read64].map((read) => read(at) + read(between)).join('') +
        write8(at, 0xff) +
        write16(at, 0xffff) +
        write32(at, 0xffff_ffff) +
        write64(at, 2n ** 64n - 1n) +
        write32(between, 0xffff_ffff)
      );
    }) +
    read64(device.window + 0xffc) +
    write64(device.window + 0xffc, 0),

  'nonsense in every buffer': (device, subject) =>
    edges
      .map((value) =>
        inEachQueue((queue, table) => {
          const words = times(16, (i) => write64(data + 8 * i, i % 3 === 0 ? i : value));
          const request =
            descriptor(table, 0, { length: 16, flags: next, next: 1 }) +
            descriptor(table, 1, { address: data + 16, length: 0x2000, flags: next, next: 2 }) +
            descriptor(table, 2, { address: data + 0x4000, length: 1, flags: writable }) +
            descriptor(table, 3, { length: 128 }) +
            descriptor(table, 4, { length: 128, flags: writable });
          return words + request + offer(queue, [0, 3, 4]);
        })(device, subject),
      )
      .join(''),

  'anything, in any order': (device, subject) =>
    times(2, (seed) => {
      const pick = random(seed);
      return times(250, () => anything(device, subject, pick));
    }),
};

/** Brought up once more, as a driver should: its status before and behind that. */
const revive = (device: Device, { queues, features }: Subject): string =>
  device.reset() + device.show(register.status) + device.start(queues, features) + device.show(register.status);

const revived = Buffer.from([0, 0, 0, 0, 15, 0, 0, 0]);

/** Kilobytes of the monitor's memory that is not its guest's. */
function ownMemory(vm: Vm): number {
  const mappings = readFileSync(`/proc/${vm.pid}/smaps`, 'utf8').split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m);
  const sizeOf = (mapping: string, field: string) =>
    Number(new RegExp(`^${field}: +(\\d+) kB`, 'm').exec(mapping)?.[1] ?? 0);
  return mappings
    .filter((mapping) => sizeOf(mapping, 'Size') < endOfMemory / 1024)
    .reduce((sum, mapping) => sum + sizeOf(mapping, 'Rss'), 0);
}

/** What reads its console up to some words, and gives what comes before them. */
function reader(vm: Vm): (words: string) => Promise<Buffer> {
  const chunks = vm.console[Symbol.asyncIterator]();
  let rest = Buffer.alloc(0);
  return async (words) => {
    while (!rest.includes(words)) {
      const { value, done } = await chunks.next();
      if (done) throw new Error(`It ended: ${inspect(await vm.exited)}`);
      rest = Buffer.concat([rest, value]);
    }
    const taken = rest.subarray(0, rest.indexOf(words));
    rest = rest.subarray(taken.length + words.length);
    return taken;
  };
}

/** By the console that is attacked: it has just been brought up once more. */
function sayByConsole(device: Device, words: string): string {
  const [receive, transmit] = [ringsOf(0), ringsOf(1)];
  return (
    [...Buffer.from(words)].map((byte, i) => write8(data + i, byte)).join('') +
    descriptor(transmit.descriptors, 0, { length: words.length }) +
    offer(1, [0]) +
    device.kick(1) +
    await16(transmit.used + 2, 1) +
    descriptor(receive.descriptors, 0, { length: 1, flags: writable }) +
    offer(0, [0]) +
    device.kick(0) +
    await16(receive.used + 2, 1)
  );
}

const diskPath = join(mkdtempSync(join(tmpdir(), 'casemate-hostile-')), 'disk');
writeFileSync(diskPath, new Uint8Array(1 << 20));
process.on('exit', () => rmSync(dirname(diskPath), { recursive: true }));

const subjects: Readonly<Record<string, Subject>> = {
  rng: { index: 0, queues: 1, features: 0, options: {} },
  disk: { index: 1, queues: 1, features: 1 << 9 /* flush */, options: { disks: [{ path: diskPath }] } },
  vsock: { index: 1, queues: 3, features: 0, options: { vsock: true } },
  balloon: { index: 1, queues: 5, features: 0b11_0110, options: { balloon: true } },
  net: {
    index: 1,
    queues: 2,
    features: 0x9883, // checksums and TSO both ways, buffers that are merged
    options: { network: { tap: { addresses: ['10.11.12.1/24'] } } },
  },
  console: { index: 1, queues: 2, features: 0, options: { console: 'virtio' }, say: sayByConsole },
};

for (const [name, subject] of Object.entries(subjects)) {
  const test = subject.options.network === undefined ? testAny : testWithTap;
  test(`drivers of ${name} that mean harm get nowhere, and their monitors neither end nor grow`, async (t) => {
    const device = new Device(subject.index);
    const say = subject.say ?? ((_, words) => print(words) + echo);
    const attackedWith = async (title: string, code: string) => {
      // Twice: what the first time takes for good is no growth.
      const phases = ['one', 'two', 'three'].map((words) => revive(device, subject) + say(device, words));
      await using vm = await launch({
        ...subject.options,
        kernel: kernel(mapDevices, phases.join(code), powerOff),
        memoryMib,
        timeoutMs: 60_000 * patience,
      });
      const read = reader(vm);
      const seen: { descriptors: number; memory: number }[] = [];
      for (const words of ['one', 'two', 'three']) {
        const before = await read(words);
        if (subject.say === undefined) t.deepEqual(before.subarray(-8), revived, title);
        seen.push({ descriptors: descriptorsOf(vm.pid).size, memory: ownMemory(vm) });
        vm.console.write('.');
      }
      vm.console.resume();
      t.deepEqual(await vm.exited, { reason: 'poweroff' }, title);
      const [, once, twice] = seen;
      t.is(twice?.descriptors, once?.descriptors, title);
      t.true((twice?.memory ?? 0) <= (once?.memory ?? 0) + 64, `${title}: ${JSON.stringify(seen)}`);
    };

    const left = await leaks(async () => {
      // One that takes no processor from them.
      await using bystander = await launch({ guest: waiting });
      let early: VmExit | undefined;
      bystander.exited.then((exit) => {
        early = exit;
      });
      for (const [title, attack] of Object.entries(attacks)) await attackedWith(title, attack(device, subject));
      t.is(early, undefined);
      bystander.console.end('x');
      t.deepEqual(await bystander.exited, { reason: 'exit', code: 0 });
    });
    t.deepEqual(left, []);
  });
}
