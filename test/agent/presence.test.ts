/** Whether the agent of a guest is there, by what comes to its port of the host. */
import { PassThrough } from 'node:stream';
import test from 'ava';
import { CasemateError } from 'casemate';
import { Presence } from '#lib/agent/presence.js';
import { agentAbi } from '#lib/agent/protocol.js';

function hello(version: number = agentAbi.version): Buffer {
  const bytes = Buffer.alloc(20);
  bytes.writeUInt16LE(agentAbi.types.hello, 0);
  bytes.writeUInt32LE(12, 4);
  bytes.writeUInt32LE(agentAbi.magic, 8);
  bytes.writeUInt32LE(version, 12);
  bytes.writeUInt32LE(agentAbi.roles.init, 16);
  return bytes;
}

const gone = { instanceOf: CasemateError, code: 'ERR_CASEMATE_AGENT' } as const;

test('an agent that says hello is there until its stream ends; that its VM has ended is said instead', async (t) => {
  const presence = new Presence(60_000);
  const stream = new PassThrough();
  presence.accept(stream);
  stream.write(hello());
  t.is(await presence.ready, 'init');
  const closed = new Promise((resolve) => stream.once('close', resolve));
  stream.destroy();
  await closed;
  await t.throwsAsync(presence.ready, gone);
  presence.gone(new Error('ended'));
  await t.throwsAsync(presence.ready, { message: 'ended' });
});

test('an agent of another version, nonsense, and silence are errors', async (t) => {
  for (const bytes of [hello(agentAbi.version + 1), Buffer.alloc(64, 0xff), Buffer.concat([hello(), hello()])]) {
    const presence = new Presence(60_000);
    const stream = new PassThrough();
    presence.accept(stream);
    stream.write(bytes);
    await new Promise((resolve) => stream.once('close', resolve));
    await t.throwsAsync(presence.ready, gone);
  }
  const alone = setTimeout(() => {}, 10_000); // the limit itself keeps no process waiting
  await t.throwsAsync(new Presence(20).ready, gone);
  clearTimeout(alone);
});

test('a stream that breaks off before it said hello leaves room for the next; a second one at a time is refused', async (t) => {
  const presence = new Presence(60_000);
  const first = new PassThrough();
  presence.accept(first);
  const second = new PassThrough();
  presence.accept(second);
  t.true(second.destroyed);
  const closed = new Promise((resolve) => first.once('close', resolve));
  first.destroy();
  await closed;
  const third = new PassThrough();
  presence.accept(third);
  third.write(hello());
  t.is(await presence.ready, 'init');
  presence.gone(new Error('done'));
});
