/** The guest's console as a stream. */
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { Readable, Writable } from 'node:stream';
import { buffer, text } from 'node:stream/consumers';
import { finished, pipeline } from 'node:stream/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { CasemateError, launch, type Vm } from 'casemate';
import { guest } from '../helpers/guests.js';
import { requires } from '../helpers/index.js';
import { readProc, within } from '../helpers/proc.js';

const test = requires('kvm');

const mebibyte = 2 ** 20;

/** What the guest 'flood' writes: bytes that count up. */
const flooded = (mebibytes: number) =>
  Buffer.alloc(mebibytes * mebibyte, Buffer.from(Uint8Array.from({ length: 256 }, (_, i) => i)));

/** Waits until the monitor, and with it the guest, waits for somebody. */
const waits = (vm: Vm) => within(10_000, () => / S /.test(readProc(vm.pid, 'stat')));

test('100 MB each way arrive whole, and neither side runs ahead of the other', async (t) => {
  await using vm = await launch({ guest: guest('echo') });
  const { console } = vm;
  const sent = createHash('sha256');
  const received = createHash('sha256');
  const most = { written: 0, read: 0, refusals: 0, received: 0 };

  const ended = new Promise<void>((resolve) => {
    let pauses = 0;
    console.on('data', (chunk: Buffer) => {
      received.update(chunk);
      most.read = Math.max(most.read, console.readableLength);
      most.received += chunk.length;
      // A reader that takes a rest from time to time.
      if (most.received > pauses * 5_000_000) {
        pauses += 1;
        console.pause();
        setTimeout(() => console.resume(), 5);
      }
    });
    console.once('end', resolve);
  });

  const noise = randomBytes(250_000);
  for (let i = 0; i < 400; i += 1) {
    const chunk = Buffer.from(noise);
    chunk.writeUInt32LE(i);
    sent.update(chunk);
    const more = console.write(chunk);
    most.written = Math.max(most.written, console.writableLength);
    if (!more) {
      most.refusals += 1;
      await once(console, 'drain');
    }
  }
  console.end();
  await ended;
  t.is(most.received, 100_000_000);
  t.is(received.digest('hex'), sent.digest('hex'));
  t.true(most.refusals > 0);
  t.true(most.written <= noise.length + console.writableHighWaterMark, `${most.written} bytes waited to be written`);
  t.true(most.read <= 2 * console.readableHighWaterMark + 65_536, `${most.read} bytes waited to be read`);
  t.deepEqual(await vm.exited, { reason: 'exit', code: 0 });
});

test('a guest that reads nothing stops its writer', async (t) => {
  await using vm = await launch({ guest: guest('spin') });
  const chunk = Buffer.alloc(65_536);
  let written = 0;
  for (let drained = true; drained && written < 64 * mebibyte; ) {
    written += chunk.length;
    if (vm.console.write(chunk)) continue;
    drained = await Promise.race([once(vm.console, 'drain').then(() => true), delay(200).then(() => false)]);
  }
  t.true(written < 2 * mebibyte, `${written} bytes`);
  t.true(vm.console.writableNeedDrain);
  t.deepEqual(await vm.kill(), { reason: 'killed' });
});

test('a guest whose output nobody reads is stopped, holds up nothing else, and can be killed', async (t) => {
  await using vm = await launch({ guest: guest('flood'), args: ['64'] });
  t.true(await waits(vm));
  t.is(vm.console.readableLength, 0);
  await once(vm.console, 'readable');
  t.true(await waits(vm));
  t.true(vm.console.readableLength <= 2 * vm.console.readableHighWaterMark + 65_536);
  t.is(vm.state, 'running');
  t.deepEqual(await vm.kill(), { reason: 'killed' });
});

test('what a guest wrote just before its end is read whole though the VM is gone', async (t) => {
  await using vm = await launch({ guest: guest('flood'), args: ['1'] });
  // So much that the rest fits into the socket between guest and reader: then the guest can end.
  const first: Buffer[] = [];
  for (let size = 0; size < mebibyte - 100_000; ) {
    const chunk = vm.console.read() as Buffer | null;
    if (chunk === null) {
      await once(vm.console, 'readable');
      continue;
    }
    first.push(chunk);
    size += chunk.length;
  }
  t.deepEqual(await vm.exited, { reason: 'exit', code: 0 });
  await delay(10);
  const output = Buffer.concat([...first, await buffer(vm.console)]);
  t.true(output.equals(flooded(1)), `${output.length} bytes`);
});

test('a console that is looked at only after the end has all that was written', async (t) => {
  const vm = await launch({ guest: guest('info'), args: ['late'] });
  t.deepEqual(await vm.exited, { reason: 'exit', code: 0 });
  await delay(10);
  t.regex(await text(vm.console), /^memory 16777216\n.*^argument late\n.*^random [0-9a-f]{64}\n$/ms);
  t.true(vm.console.readableEnded);
});

test("end() is the guest's end of input", async (t) => {
  await using vm = await launch({ guest: guest('echo') });
  vm.console.end('last words');
  t.is(await text(vm.console), 'last words');
  t.deepEqual(await vm.exited, { reason: 'exit', code: 0 });
});

test('what is written to a guest that ends is dropped, without an error', async (t) => {
  await using vm = await launch({ guest: guest('exit'), args: ['5'], startPaused: true });
  const { console } = vm;
  console.on('error', (error) => t.fail(`an error event: ${error.message}`));
  const write = () =>
    new Promise<Error | null | undefined>((resolve) => console.write(Buffer.alloc(mebibyte), resolve));
  // More than the socket takes: some of it waits while the guest ends.
  const before = Promise.all([write(), write(), write()]);
  await vm.resume();
  const during = Promise.all([write(), write()]);
  t.deepEqual(await vm.exited, { reason: 'exit', code: 5 });
  const after = Promise.all([write(), write()]);
  for (const error of [...(await before), ...(await during), ...(await after)]) t.falsy(error);
  console.end();
  await once(console, 'finish');
  t.is(await text(console), '');
});

test("with console: 'ignore' there is none: output goes nowhere and input is at its end", async (t) => {
  await using writer = await launch({ guest: guest('flood'), args: ['4'], console: 'ignore' });
  t.throws(() => writer.console, { instanceOf: CasemateError, code: 'ERR_CASEMATE_STATE' });
  t.deepEqual(await writer.exited, { reason: 'exit', code: 0 });
  t.throws(() => writer.console, { instanceOf: CasemateError, code: 'ERR_CASEMATE_STATE' });
  await using reader = await launch({ guest: guest('echo'), console: 'ignore' });
  t.deepEqual(await reader.exited, { reason: 'exit', code: 0 });
});

test('a console works in a pipeline, on either end and in its middle', async (t) => {
  const words = ['one ', 'two ', 'three'];
  await using middle = await launch({ guest: guest('upper') });
  let output = '';
  const collect = () =>
    new Writable({
      write(chunk, _encoding, done) {
        output += chunk;
        done();
      },
    });
  await pipeline(Readable.from(words), middle.console, collect());
  t.is(output, 'ONE TWO THREE');

  await using ends = await launch({ guest: guest('upper') });
  output = '';
  await Promise.all([pipeline(Readable.from(words), ends.console), pipeline(ends.console, collect())]);
  t.is(output, 'ONE TWO THREE');
});

test('pipe(), for await and finished() see the end of a console', async (t) => {
  await using piped = await launch({ guest: guest('flood'), args: ['1'] });
  let size = 0;
  const sink = new Writable({
    write(chunk: Buffer, _encoding, done) {
      size += chunk.length;
      done();
    },
  });
  piped.console.pipe(sink);
  await finished(sink);
  t.is(size, mebibyte);

  await using iterated = await launch({ guest: guest('flood'), args: ['1'] });
  const chunks: Buffer[] = [];
  for await (const chunk of iterated.console) chunks.push(chunk);
  t.true(Buffer.concat(chunks).equals(flooded(1)));

  await using read = await launch({ guest: guest('exit') });
  read.console.resume();
  await finished(read.console, { writable: false });
  read.console.end();
  await finished(read.console);
  t.true(read.console.destroyed);
});

test('a console destroyed early is closed to the guest, and breaks nothing', async (t) => {
  await using reader = await launch({ guest: guest('echo') });
  reader.console.destroy();
  t.deepEqual(await reader.exited, { reason: 'exit', code: 0 });

  // Its guest hears that nobody will ever read what it writes.
  await using writer = await launch({ guest: guest('flood'), args: ['64'] });
  await once(writer.console, 'readable');
  writer.console.destroy();
  t.deepEqual(await writer.exited, { reason: 'exit', code: 1 });

  await using spinner = await launch({ guest: guest('spin') });
  spinner.console.destroy();
  await spinner.pause();
  t.is(spinner.state, 'paused');
  await spinner.resume();
  t.deepEqual(await spinner.kill(), { reason: 'killed' });
});

test('a console is the same object whenever it is asked for, and never another one after its end', async (t) => {
  await using vm = await launch({ guest: guest('exit') });
  const { console } = vm;
  console.destroy();
  await vm.exited;
  t.is(vm.console, console);
});
