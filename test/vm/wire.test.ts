/** A monitor that its guest has taken over may send anything: what decodeEvent() makes of it. */
import { randomBytes, randomInt } from 'node:crypto';
import test from 'ava';
import { decodeEvent, wire } from '#lib/vm/wire.js';

const { events, sizes } = wire;
const sizeOf: Readonly<Record<number, number>> = {
  [events.jailed]: 8,
  [events.paused]: 8,
  [events.resumed]: 8,
  [events.doorbell]: sizes.doorbell,
  [events.exited]: sizes.exited,
  [events.failed]: sizes.failed,
  [events.blocked]: sizes.blocked,
  [events.deviceError]: sizes.deviceError,
  [events.streamRequested]: sizes.stream,
  [events.streamConnected]: sizes.stream,
  [events.streamRefused]: sizes.stream,
  [events.streamEnded]: sizes.stream,
  [events.streamClosed]: sizes.stream,
  [events.memory]: sizes.memory,
};
/** Some are of no message. */
const types = Math.max(...Object.values(events)) + 3;

/** Random bytes, of small numbers more often than not: those come closer to what is allowed. */
function noise(size: number): Buffer {
  const bytes = randomBytes(size);
  for (let at = 0; at + 4 <= size; at += 4)
    if (randomInt(3) > 0) bytes.writeUInt32LE(randomInt(randomInt(2) > 0 ? 12 : 300), at);
  return bytes;
}

test('of a hundred thousand random messages none throws, and none is taken that breaks the protocol', (t) => {
  const taken = new Set<string>();
  for (let round = 0; round < 100_000; round += 1) {
    const type = randomInt(types);
    const size = randomInt(4) > 0 ? (sizeOf[type] ?? 8) : randomInt(300);
    const bytes = noise(size);
    if (size >= 4) bytes.writeUInt32LE(type, 0);
    if (size >= 8 && randomInt(8) > 0) bytes.writeUInt32LE(size, 4);
    const received = randomInt(8) > 0 ? size : randomInt(2 ** 31);
    const event = decodeEvent(bytes, received);
    if (event === undefined) continue;
    taken.add(event.type);
    const sane =
      received === size &&
      bytes.readUInt32LE(4) === size &&
      sizeOf[type] === size &&
      events[event.type] === type &&
      (event.type !== 'exited' || (event.vector < 32 && (event.reason !== 'guest' || event.code < 256))) &&
      (event.type !== 'failed' || (event.errno < 4096 && /^[\x20-\x7e]{0,39}$/.test(event.call)));
    if (!sane) t.fail(`${bytes.toString('hex')}, ${received} bytes received`);
  }
  t.deepEqual([...taken].sort(), Object.keys(events).sort(), 'messages of every type came through');
});
