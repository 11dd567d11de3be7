/** What is said to a guest's agent, held against its header; and what a guest that says anything at all can do with it. */
import { randomBytes, randomInt } from 'node:crypto';
import test from 'ava';
import { type AgentFrame, agentAbi, encode, FrameDecoder } from '#lib/agent/protocol.js';
import { requires } from '../helpers/index.js';
import { printed } from '../helpers/programs.js';

const { types, sizes, streams, roles } = agentAbi;

let numbers: Readonly<Record<string, number>> | undefined;

/** A constant, size or offset as the compiler has it. */
function c(name: string): number {
  numbers ??= JSON.parse(printed('agent-format')) as Record<string, number>;
  const value = numbers[name];
  if (value === undefined) throw new Error(`test/programs/agent-format.cpp does not print ${name}`);
  return value;
}

const upper = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase();
const constants = (names: object, prefix = '') =>
  Object.fromEntries(Object.keys(names).map((name) => [name, c(prefix + upper(name))]));

requires('gcc')('numbers and sizes are those of native/guest/agent-abi.h', (t) => {
  const { magic, version, port, window, maxPayload, maxStrings } = agentAbi;
  const plain = { magic, version, port, window, maxPayload, maxStrings };
  t.deepEqual(constants(plain), plain);
  t.deepEqual(constants(types), { ...types });
  t.deepEqual(constants(streams), { ...streams });
  t.deepEqual(constants(roles), { ...roles });
  t.deepEqual(constants(agentAbi.execFlags, 'EXEC_'), { ...agentAbi.execFlags });
  t.deepEqual(Object.fromEntries(Object.keys(sizes).map((name) => [name, c(`sizeof ${name}`)])), { ...sizes });
});

requires('gcc')('requests are laid out as the header has them', (t) => {
  const at = (bytes: Buffer, member: string) => bytes.readUInt32LE(c('sizeof frame') + c(member));
  const exec = encode.exec({
    argv: ['a', 'bc'],
    cwd: '/d',
    env: ['E=f'],
    user: { uid: 11, gid: 12 },
    tty: { columns: 80, rows: 24 },
  });
  t.is(exec.readUInt16LE(c('frame.type')), c('EXEC'));
  t.is(exec.readUInt32LE(c('frame.size')), exec.length - c('sizeof frame'));
  t.is(at(exec, 'exec.flags'), c('EXEC_TTY') | c('EXEC_USER_IDS'));
  t.is(at(exec, 'exec.uid'), 11);
  t.is(at(exec, 'exec.gid'), 12);
  const size = c('sizeof frame') + c('exec.size');
  t.is(exec.readUInt16LE(size + c('size.columns')), 80);
  t.is(exec.readUInt16LE(size + c('size.rows')), 24);
  t.is(at(exec, 'exec.argument_count'), 2);
  t.is(at(exec, 'exec.variable_count'), 1);
  t.is(exec.toString('latin1', c('sizeof frame') + c('sizeof exec')), '/d\0\0a\0bc\0E=f\0');

  const write = encode.write('/f', 0o640);
  t.is(at(write, 'write.set_mode'), 1);
  t.is(at(write, 'write.mode'), 0o640);
  t.is(write.toString('latin1', c('sizeof frame') + c('sizeof write')), '/f\0');

  const credit = encode.credit(2, 77);
  t.is(credit.readUInt16LE(c('frame.stream')), 2);
  t.is(credit.readUInt32LE(c('sizeof frame')), 77);
});

/** A frame as an agent sends it, right or wrong. */
function frame(type: number, stream: number, payload: Buffer, size = payload.length): Buffer {
  const head = Buffer.alloc(sizes.frame);
  head.writeUInt16LE(type, 0);
  head.writeUInt16LE(stream, 2);
  head.writeUInt32LE(size, 4);
  return Buffer.concat([head, payload]);
}

function words(...values: number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length);
  for (const [index, value] of values.entries()) bytes.writeUInt32LE(value, 4 * index);
  return bytes;
}

const failed = Buffer.alloc(sizes.failed);
failed.writeUInt32LE(2, 0);
failed.write('execve', 4);

const right: readonly Buffer[] = [
  frame(types.hello, 0, words(agentAbi.magic, 1, roles.init)),
  frame(types.started, 0, words(4711)),
  frame(types.data, streams.stdout, Buffer.from('some bytes')),
  frame(types.data, streams.stderr, randomBytes(100_000)),
  frame(types.credit, streams.stdin, words(4096)),
  frame(types.close, streams.stdout, Buffer.alloc(0)),
  frame(types.exited, 0, words(0, 15)),
  frame(types.failed, 0, failed),
];

test('frames come out as they went in, however they are cut', (t) => {
  const all = Buffer.concat(right);
  for (const most of [1, 7, 1000, all.length]) {
    const seen: AgentFrame[] = [];
    const decoder = new FrameDecoder((one) => seen.push(one));
    for (let at = 0; at < all.length; ) {
      const size = most === 1 && at > 200 && at < 90_000 ? 50_000 : most;
      t.true(decoder.write(all.subarray(at, at + size)));
      at += size;
    }
    t.deepEqual(
      seen.map(({ type }) => type),
      ['hello', 'started', 'data', 'data', 'credit', 'close', 'exited', 'failed'],
    );
    t.like(seen[0], { version: 1, role: 'init' });
    t.like(seen[6], { code: 0, signal: 15 });
    t.like(seen[7], { errno: 2, call: 'execve' });
    t.true(seen[3]?.type === 'data' && seen[3].bytes.equals((right[3] as Buffer).subarray(sizes.frame)));
  }
});

const wrong: Readonly<Record<string, Buffer>> = {
  'a request': frame(types.exec, 0, Buffer.alloc(sizes.exec)),
  'an unknown type': frame(99, 0, Buffer.alloc(4)),
  'more data than a frame holds': frame(types.data, 1, Buffer.alloc(0), agentAbi.maxPayload + 1),
  'a size near 2^32': frame(types.data, 1, Buffer.alloc(0), 0xffffffff),
  'data of no bytes': frame(types.data, 1, Buffer.alloc(0)),
  'data of stdin': frame(types.data, streams.stdin, Buffer.alloc(1)),
  'data of an unknown stream': frame(types.data, 3, Buffer.alloc(1)),
  'credit for an output': frame(types.credit, streams.stdout, words(1)),
  'credit of nothing': frame(types.credit, streams.stdin, words(0)),
  'credit of more than a window': frame(types.credit, streams.stdin, words(agentAbi.window + 1)),
  'a process id of 0': frame(types.started, 0, words(0)),
  'an exit code that cannot be': frame(types.exited, 0, words(256, 0)),
  'a signal that cannot be': frame(types.exited, 0, words(0, 65)),
  'a code and a signal': frame(types.exited, 0, words(1, 9)),
  'an end of another size': frame(types.exited, 0, words(1)),
  'an errno of 0': frame(types.failed, 0, Buffer.concat([words(0), failed.subarray(4)])),
  'an errno that cannot be': frame(types.failed, 0, Buffer.concat([words(4096), failed.subarray(4)])),
  'a name without an end': frame(types.failed, 0, Buffer.concat([words(2), Buffer.alloc(28, 'x')])),
  'a name that is none': frame(types.failed, 0, Buffer.concat([words(2), Buffer.alloc(27, 7), Buffer.alloc(1)])),
  'a foreign magic': frame(types.hello, 0, words(1, 1, roles.init)),
  'a role that there is not': frame(types.hello, 0, words(agentAbi.magic, 1, 3)),
};

for (const [what, bytes] of Object.entries(wrong)) {
  test(`${what} breaks the protocol`, (t) => {
    const decoder = new FrameDecoder(() => t.fail('it was taken'));
    t.false(decoder.write(bytes));
    t.false(decoder.write(right[0] as Buffer), 'nothing is taken behind it');
  });
}

test('of a hundred thousand random pieces none throws, and none is taken that breaks the protocol', (t) => {
  const known = [...Object.values(types), 0, 99];
  const taken = new Set<string>();
  for (let round = 0; round < 20_000; round += 1) {
    const decoder = new FrameDecoder((one) => {
      taken.add(one.type);
      const sane =
        (one.type !== 'data' || (one.bytes.length > 0 && one.bytes.length <= agentAbi.maxPayload && one.stream < 3)) &&
        (one.type !== 'credit' || one.bytes <= agentAbi.window) &&
        (one.type !== 'exited' || (one.code < 256 && one.signal <= 64)) &&
        (one.type !== 'failed' || /^[\x20-\x7e]{1,27}$/.test(one.call));
      if (!sane) t.fail(JSON.stringify(one));
    });
    for (let piece = 0; piece < 5; piece += 1) {
      const sample = Buffer.from(right[randomInt(right.length)] as Buffer);
      const bytes =
        randomInt(3) === 0
          ? frame(known[randomInt(known.length)] as number, randomInt(5), randomBytes(randomInt(64)))
          : sample.subarray(0, 600);
      if (randomInt(4) === 0) bytes[randomInt(bytes.length)] = randomInt(256);
      if (!decoder.write(bytes.subarray(0, randomInt(8) === 0 ? randomInt(bytes.length) : undefined))) break;
    }
  }
  t.deepEqual([...taken].sort(), ['close', 'credit', 'data', 'exited', 'failed', 'hello', 'started']);
});
