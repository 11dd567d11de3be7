/** Streams to and from a real kernel; what its end does is in test/programs/vsock-guest.c. */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import type { Duplex } from 'node:stream';
import { buffer, text } from 'node:stream/consumers';
import { launch, type Vm } from 'casemate';
import { type ExecutionContext, requires } from '../helpers/index.js';
import { linux, program, says } from '../helpers/linux.js';
import { program as compiled } from '../helpers/programs.js';

const test = requires('kvm', 'kernels', 'programs').serial;

/** A guest that listens. Of one in a test that fails, it is told what it has said and how it ended. */
async function boot(t: ExecutionContext): Promise<Vm> {
  const vm = await launch(
    linux('/bin/vsock-guest', {
      modules: ['virtio_mmio', 'vmw_vsock_virtio_transport'],
      files: [program('bin/vsock-guest', readFileSync(compiled('vsock-guest')))],
      vsock: true,
    }),
  );
  let said = await says(vm, 'guest listens');
  vm.console.on('data', (chunk) => {
    said += chunk;
  });
  t.teardown(async () => {
    if (!t.passed) t.log(said, await vm.exited);
  });
  return vm;
}

/** Bytes that tell where they are. */
const pattern = (size: number, seed: number) => Buffer.alloc(size).map((_, i) => (i * 31 + seed * 7) >> 2);
const hash = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

/** What comes back of what is sent, whole. */
async function echoed(stream: Duplex, bytes: Uint8Array): Promise<Buffer> {
  stream.end(bytes);
  return buffer(stream);
}

test('a hundred streams at once echo what they are sent, each its own', async (t) => {
  await using vm = await boot(t);
  const streams = await Promise.all(Array.from({ length: 100 }, () => vm.connect(1)));
  const sent = streams.map((_, i) => pattern(20_000 + i * 1000, i));
  const back = await Promise.all(streams.map((stream, i) => echoed(stream, sent[i] as Buffer)));
  t.deepEqual(back.map(hash), sent.map(hash));
});

test('megabytes come and go, with one end closed and the other open', async (t) => {
  await using vm = await boot(t);
  const poured = await buffer(await vm.connect(6));
  t.is(poured.length, 8 << 20);
  t.true(poured.every((byte, i) => byte === i % 251));
  const counter = await vm.connect(7);
  const megabyte = Buffer.alloc(1 << 20);
  for (let i = 0; i < 8; i += 1) counter.write(megabyte);
  counter.end();
  t.is(await text(counter), String(8 << 20));
});

test('one that never reads, on either side, leaves the others alone', async (t) => {
  await using vm = await boot(t);
  const stuck = await vm.connect(4);
  stuck.on('error', () => {});
  stuck.write(Buffer.alloc(4 << 20));
  const unread = await vm.connect(6); // which nobody reads here
  unread.on('error', () => {});
  for (let i = 0; i < 5; i += 1)
    t.is(hash(await echoed(await vm.connect(1), pattern(50_000, i))), hash(pattern(50_000, i)));
  t.true(stuck.writableNeedDrain);
  stuck.destroy();
  unread.destroy();
  t.is(await text(await vm.connect(2000)), 'refused');
});

test('a port that nobody listens on is refused, in both directions; one that somebody does is not', async (t) => {
  await using vm = await boot(t);
  await t.throwsAsync(vm.connect(5), { code: 'ERR_CASEMATE_CONNECTION_REFUSED' });
  t.is(await text(await vm.connect(2000)), 'refused');
  const server = vm.listen(2000);
  const connected = once(server, 'connection') as Promise<[Duplex]>;
  t.is(await text(await vm.connect(2000)), 'accepted');
  const [stream] = await connected;
  t.is(hash(await echoed(stream, pattern(300_000, 3))), hash(pattern(300_000, 3)));
  server.close();
});

test('a driver that begins anew has ended all streams, and takes others', async (t) => {
  await using vm = await boot(t);
  const open = await vm.connect(1);
  const broken = once(open, 'error');
  const resetting = await vm.connect(9);
  resetting.on('error', () => {});
  t.like((await broken)[0], { code: 'ECONNRESET', reason: 'driver' });
  let again: Duplex | undefined;
  // Between the two drivers nobody is there.
  while (again === undefined) again = await vm.connect(1).catch(() => undefined);
  t.is(String(await echoed(again, Buffer.from('still here'))), 'still here');
});

test('the end of a VM ends its streams', async (t) => {
  await using vm = await boot(t);
  const stream = await vm.connect(1);
  const broken = once(stream, 'error');
  await vm.kill();
  t.like((await broken)[0], { code: 'ECONNRESET', reason: 'vm' });
});
