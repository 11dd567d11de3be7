/**
 * Streams as Node has them. In the place of the monitor stands test/programs/streams.c, which is guest and monitor in
 * one: each of its ports does something else. What a real one does is native/test/machine_virtio_vsock*'s, and
 * test/vm/linux-vsock.test.ts'.
 */
import type { ExecutionContext } from 'ava';
import { launch } from 'casemate';
import { requires } from '../helpers/index.js';
import { packageWithMonitor } from '../helpers/node.js';
import { program } from '../helpers/programs.js';
import { script } from '../helpers/scripts.js';
import { refused } from '../helpers/vm.js';

const { serial: test } = requires('kvm', 'programs');

let copy: string | undefined;

const prelude = `
import { text, buffer } from 'node:stream/consumers';
import { finished, pipeline } from 'node:stream/promises';
const start = (options) => launch({ kernel: guest('spin'), vsock: true, timeoutMs: 60_000, ...options });
const codeOf = (promise) => promise.then(() => 'no error', ({ code, name }) => code ?? name);
`;

/** What a script tells that has a VM \`vm\`; it must end by itself, and leave nothing open. */
async function told(t: ExecutionContext, body: string): Promise<unknown[]> {
  copy ??= packageWithMonitor(program('streams'));
  const source = `${prelude}
const left = await added(async () => {
  const vm = await start();
  try {
    ${body}
  } finally {
    await vm.kill();
  }
});
tell(left);`;
  const ended = await script(source, undefined, copy);
  t.deepEqual({ code: ended.code, signal: ended.signal, errors: ended.errors }, { code: 0, signal: null, errors: '' });
  const all = [...ended.told];
  t.deepEqual(all.pop(), []); // what is left open
  const once = all.slice(0, all.length / 2);
  t.deepEqual(all.slice(all.length / 2), once, 'the second time it is the same');
  return once;
}

test('a stream echoes what is written, and ends where it is ended', async (t) => {
  const body = `
    const stream = await vm.connect(1);
    stream.write('hello, ');
    stream.end('guest');
    tell(await text(stream));
    await finished(stream);
    tell(stream.destroyed);`;
  t.deepEqual(await told(t, body), ['hello, guest', true]);
});

test('megabytes go both ways at once, and none is lost', async (t) => {
  const body = `
    const bytes = Buffer.alloc(5_000_000, (_, i) => i).map((_, i) => (i * 31) >> 3);
    const stream = await vm.connect(1);
    const [back] = await Promise.all([buffer(stream), pipeline([bytes], stream, { end: true }).catch(() => {})]);
    tell(back.equals(Buffer.from(bytes)));`;
  t.deepEqual(await told(t, body), [true]);
});

test('200 streams at once go their own ways', async (t) => {
  const body = `
    const streams = await Promise.all(Array.from({ length: 200 }, () => vm.connect(1)));
    const texts = await Promise.all(streams.map((stream, i) => (stream.end('x'.repeat(i)), text(stream))));
    tell(texts.every((said, i) => said.length === i));`;
  t.deepEqual(await told(t, body), [true]);
});

test('a guest that refuses is a typed error', async (t) => {
  const body = `
    const { name, code, step, remedy } = await vm.connect(2).catch((error) => error);
    tell({ name, code, step, remedied: remedy.length > 0 });`;
  const [error] = await told(t, body);
  t.deepEqual(error, {
    name: 'CasemateError',
    code: 'ERR_CASEMATE_CONNECTION_REFUSED',
    step: 'connect',
    remedied: true,
  });
});

test('a guest that does not answer is waited for until the signal', async (t) => {
  const body = `
    const signal = AbortSignal.timeout(50);
    const error = await vm.connect(3, { signal }).catch((error) => error);
    tell([error.name, error.code, error.cause === signal.reason]);
    tell(await codeOf(vm.connect(3, { signal })));
    const waiting = codeOf(vm.connect(3));
    await vm.kill();
    tell(await waiting);
    tell(await codeOf(vm.connect(1)));`;
  t.deepEqual(await told(t, body), [
    ['AbortError', 'ABORT_ERR', true],
    'ABORT_ERR',
    'ERR_CASEMATE_CLOSED',
    'ERR_CASEMATE_CLOSED',
  ]);
});

test('a guest that never reads stops who writes, and him alone', async (t) => {
  const body = `
    const stuck = await vm.connect(4);
    const done = codeOf(new Promise((resolve, reject) => stuck.write(Buffer.alloc(10_000_000), (e) => e ? reject(e) : resolve())));
    const other = await vm.connect(1);
    other.end('still served');
    tell(await text(other));
    tell(stuck.writableNeedDrain);
    stuck.destroy();
    tell(await done);`;
  t.deepEqual(await told(t, body), ['still served', true, 'EPIPE']);
});

test('a stream that nobody reads stops the guest, not Node', async (t) => {
  const body = `
    const stream = await vm.connect(6);
    await delay(50);
    tell(stream.readableLength < 1_000_000);
    const bytes = await buffer(stream);
    tell(bytes.length);
    tell(bytes.every((byte, i) => byte === i % 251));`;
  t.deepEqual(await told(t, body), [true, 8 << 20, true]);
});

test('a stream that the guest breaks off is an error, behind what it has sent', async (t) => {
  const body = `
    const stream = await vm.connect(5);
    let read = '';
    stream.on('data', (chunk) => { read += chunk; });
    const { code, syscall, reason, message } = await once(stream, 'error').then(([error]) => error);
    tell([read, code, syscall, reason, message]);`;
  const message = 'ECONNRESET: connection reset by peer, read: the guest has reset the stream';
  t.deepEqual(await told(t, body), [['part', 'ECONNRESET', 'read', 'guest', message]]);
});

test('Node ends its half and hears the guest still', async (t) => {
  const body = `
    const stream = await vm.connect(7);
    for (let i = 0; i < 10; i += 1) stream.write(Buffer.alloc(100_000));
    stream.end();
    tell(await text(stream));`;
  t.deepEqual(await told(t, body), ['1000000']);
});

test('a guest that ends in both directions ends the stream, though only one is of interest', async (t) => {
  const body = `
    const stream = await vm.connect(9);
    stream.resume();
    const events = [];
    for (const event of ['end', 'close', 'error']) stream.on(event, () => events.push(event));
    await once(stream, 'close');
    tell(events);`;
  t.deepEqual(await told(t, body), [['end', 'close']]);
});

test('what is written to a stream that the guest has closed is an error', async (t) => {
  const body = `
    const stream = await vm.connect(9);
    await codeOf(vm.connect(2)); // once this is answered, the guest has done with the one before
    stream.write('nobody reads this');
    tell((await once(stream, 'error'))[0].code);`;
  t.deepEqual(await told(t, body), ['EPIPE']);
});

test('the end of the VM ends streams, each as the guest had left it', async (t) => {
  const body = `
    const open = await vm.connect(1);
    const broken = once(open, 'error');
    const ended = await vm.connect(8);
    await vm.exited;
    tell(await text(ended)); // though nobody had read it when the VM ended
    const [{ code, reason }] = await broken;
    tell([code, reason]);
    tell(await codeOf(vm.connect(1)));
    try { vm.listen(5); } catch (error) { tell(error.code); }`;
  t.deepEqual(await told(t, body), ['last', ['ECONNRESET', 'vm'], 'ERR_CASEMATE_CLOSED', 'ERR_CASEMATE_CLOSED']);
});

test('a server takes the connections of a guest, by its event', async (t) => {
  const body = `
    const server = vm.listen(1000);
    const echo = once(server, 'connection').then(([stream]) => { stream.end('from Node'); return text(stream); });
    tell(server.port);
    const asker = await vm.connect(1000);
    tell(await text(asker));
    tell(await echo);
    server.close();
    tell(await text(await vm.connect(1000)));`;
  t.deepEqual(await told(t, body), [1000, 'accepted', 'from Node', 'refused']);
});

test('a server takes the connections of a guest, one by one', async (t) => {
  const body = `
    const server = vm.listen(1001);
    let asked = 0;
    const ask = async () => { asked += 1; await text(await vm.connect(1001)); };
    ask();
    let taken = 0;
    for await (const stream of server) {
      stream.end(String(taken));
      tell(await text(stream));
      taken += 1;
      if (taken === 3) break;
      ask();
    }
    // Nobody takes them any more.
    tell(await text(await vm.connect(1001)));
    server.close();
    server.close();`;
  t.deepEqual(await told(t, body), ['0', '1', '2', 'refused']);
});

test('a server ends with its VM, and who waits for connections goes on', async (t) => {
  const body = `
    const server = vm.listen(1002);
    const closed = once(server, 'close');
    setTimeout(() => vm.kill(), 20);
    for await (const stream of server) tell('a connection');
    await closed;
    tell('closed');`;
  t.deepEqual(await told(t, body), ['closed']);
});

test('a guest that connects where nobody listens is refused', async (t) => {
  const body = `
    tell(await text(await vm.connect(1003)));
    const server = vm.listen(1003); // which nobody listens to
    tell(await text(await vm.connect(1003)));
    try { vm.listen(1003); } catch (error) { tell(error.code); }
    server.close();
    vm.listen(1003).close();`;
  t.deepEqual(await told(t, body), ['refused', 'refused', 'ERR_CASEMATE_STATE']);
});

test('a VM has 1024 streams and no more, and has them again', async (t) => {
  const body = `
    const streams = [];
    for (let i = 0; i < 200; i += 1) streams.push(vm.connect(3).catch(() => {}));
    const controller = new AbortController();
    const many = Array.from({ length: 824 }, () => codeOf(vm.connect(3, { signal: controller.signal })));
    tell(await codeOf(vm.connect(1)));
    controller.abort();
    tell((await Promise.all(many)).every((code) => code === 'ABORT_ERR'));
    for (let code; code !== 'no error'; await delay(1)) code = await codeOf(vm.connect(9));
    tell('again');`;
  t.deepEqual(await told(t, body), ['ERR_CASEMATE_TOO_MANY_STREAMS', true, 'again']);
});

test('of many streams that nobody reads each holds little, here and in the kernel', async (t) => {
  const body = `
    const held = async () => Number(await text(await vm.connect(10)));
    const streams = [];
    for (let i = 0; i < 64; i += 1) streams.push(await vm.connect(4));
    for (let i = 0; i < 50; i += 1) streams.push(await vm.connect(6));
    let before;
    for (let now = await held(); now !== before; before = now, now = await held()) await delay(20);
    tell(before > 0);
    tell(before < 50 * 65536);
    // They stop nothing but themselves.
    for (const stream of streams) stream.on('error', () => {});
    tell((await buffer(streams[100])).length);`;
  t.deepEqual(await told(t, body), [true, true, 8 << 20]);
});

test('evidence knows the sockets of streams, and finds any other', async (t) => {
  const body = `
    const seen = async () => (await vm.evidence()).layers.find(({ layer }) => layer === 'descriptors');
    const streams = [await vm.connect(1), await vm.connect(3, { signal: AbortSignal.timeout(1) }).catch(() => undefined)];
    for (let i = 0; i < 50; i += 1) {
      const { ok, observed } = await seen();
      if (!ok) tell(observed);
      (await vm.connect(9)).resume();
    }
    tell((await seen()).observed.match(/socket:/g).length >= 2);
    const last = await vm.connect(11);
    for (const stream of [streams[0], last]) stream.on('error', () => {});
    const { ok, observed } = await seen();
    tell([ok, /^not given: \\d+ socket:\\[\\d+\\], \\d+ socket:\\[\\d+\\]$/.test(observed)]);`;
  t.deepEqual(await told(t, body), [true, [false, true]]);
});

test('ports and options are checked', async (t) => {
  const body = `
    for (const port of [-1, 2 ** 32 - 1, 1.5, '1', undefined]) tell(await codeOf(vm.connect(port)));
    tell(await codeOf(vm.connect(1, { sinal: null })));
    tell(await codeOf(vm.connect(1, { signal: {} })));
    try { vm.listen(2 ** 32); } catch (error) { tell(error.code); }`;
  const codes = await told(t, body);
  t.is(codes.length, 8);
  t.deepEqual([...new Set(codes)], ['ERR_CASEMATE_INVALID_OPTION']);
});

test('a VM without vsock has no streams', async (t) => {
  await using vm = await launch({ console: 'ignore' });
  await t.throwsAsync(vm.connect(1), { code: 'ERR_CASEMATE_STATE' });
  t.throws(() => vm.listen(1), { code: 'ERR_CASEMATE_STATE' });
});

test('vsock is for Linux guests', async (t) => {
  await refused(t, { vsock: true }, 'ERR_CASEMATE_INVALID_OPTION');
});
