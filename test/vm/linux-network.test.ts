/** The network of Linux guests: through taps in namespaces of every kind, and through streams. */
import { spawn, spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, closeSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { type CasemateError, type LaunchOptions, launch, type Vm } from 'casemate';
import { type ExecutionContext, requires } from '../helpers/index.js';
import { linux, program, says } from '../helpers/linux.js';
import { readProc, within } from '../helpers/proc.js';
import { run } from '../helpers/vm.js';

const { serial: test } = requires('kvm', 'kernels', 'tun');
const { serial: testPasst } = requires('kvm', 'kernels', 'passt');
const { serial: testAsRoot } = requires('kvm', 'kernels', 'tun', 'root');

const modules = ['virtio_mmio', 'virtio_net'];
const up =
  'echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 up; ' +
  'ip addr add 10.11.12.2/24 dev eth0; ip addr add fd11::2/64 dev eth0; ';
const tap = { addresses: ['10.11.12.1/24', 'fd11::1/64'] };

/** A guest whose network is up at once. */
const connected = (script: string, options: LaunchOptions = {}): LaunchOptions =>
  linux(up + script, { modules, network: { tap }, ...options });

async function pidOf(vm: Vm): Promise<number> {
  return (await vm.evidence()).pid;
}

const busybox = join(process.env.CASEMATE_TEST_KERNELS ?? '', 'busybox');

/** A command of busybox in the network namespace of a process. */
function inside(pid: number, ...command: string[]) {
  return spawn('nsenter', ['-t', String(pid), '-n', '--', busybox, ...command], { stdio: ['pipe', 'pipe', 'inherit'] });
}

/** What the kernel has counted of a device: bytes and packets that came in from the guest, and that went out to it. */
function traffic(pid: number, device = 'tap0') {
  const [, line = ''] = new RegExp(`^ *${device}:(.*)$`, 'm').exec(readProc(pid, 'net/dev')) ?? [];
  const [received, receivedPackets, , , , , , , sent, sentPackets] = line.trim().split(/\s+/).map(Number);
  return { received, receivedPackets, sent, sentPackets } as Record<string, number>;
}

/** A network namespace of the test's own. */
async function withNamespace(body: (network: { fd: number; pid: number }) => Promise<void>): Promise<void> {
  const holder = spawn('unshare', ['--net', 'sleep', '1000'], { stdio: 'ignore' });
  try {
    const pid = holder.pid as number;
    await within(5000, () => readProc(pid, 'comm') === 'sleep\n');
    const fd = openSync(`/proc/${pid}/ns/net`, 'r');
    try {
      await body({ fd, pid });
    } finally {
      closeSync(fd);
    }
  } finally {
    holder.kill('SIGKILL');
    await once(holder, 'exit');
  }
}

function ip(pid: number, ...args: string[]): string {
  const { status, stdout, stderr } = spawnSync('nsenter', ['-t', String(pid), '-n', '--', 'ip', ...args], {
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(`ip ${args.join(' ')}: ${stderr}`);
  return stdout;
}

/** A folder of the test's own, removed after it. */
function folder(t: ExecutionContext): string {
  const made = mkdtempSync(join(tmpdir(), 'casemate-test-'));
  t.teardown(() => rmSync(made, { recursive: true }));
  return made;
}

test('a guest and the network namespace of its VM talk, by IPv4 and IPv6', async (t) => {
  const look = 'cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu /sys/class/net/eth0/carrier; ';
  await using vm = await launch(
    connected(`${look}ping -c 3 10.11.12.1; ping -c 3 fd11::1`, {
      network: { tap, mac: '02:ca:5e:3a:7e:01', mtu: 4000 },
      startPaused: true,
    }),
  );
  const { pid, layers, ok } = await vm.evidence();
  t.true(ok);
  const layer = layers.find(({ layer }) => layer === 'network');
  t.regex(layer?.observed ?? '', /^tap0 in net:\[\d+\]$/);
  t.true(layer?.observed.endsWith(layers.find(({ layer }) => layer === 'networkNamespace')?.observed ?? 'nowhere'));
  await vm.resume();
  const said = await text(vm.console);
  t.regex(said, /^02:ca:5e:3a:7e:01\r?\n4000\r?\n1\r?$/m);
  t.is(said.match(/3 packets transmitted, 3 packets received/g)?.length, 2, said);
  t.deepEqual(await vm.exited, { reason: 'poweroff' });
  t.throws(() => readProc(pid, 'net/dev'), undefined, 'the namespace went with the VM');
});

testAsRoot('megabytes arrive as they were sent, in both directions, in segments larger than a frame', async (t) => {
  const bytes = randomBytes(24 << 20);
  const sum = createHash('md5').update(bytes).digest('hex');
  const script = `nc 10.11.12.1 1 >/file; md5sum /file; nc 10.11.12.1 2 </file; echo sent; read line`;
  await using vm = await launch(connected(script, { memoryMib: 512, startPaused: true }));
  const pid = await pidOf(vm);
  const sender = inside(pid, 'nc', '-l', '-p', '1');
  const receiver = inside(pid, 'nc', '-l', '-p', '2');
  const ended = once(receiver, 'close');
  const received = createHash('md5');
  receiver.stdout?.on('data', (chunk: Buffer) => received.update(chunk));
  sender.stdin?.end(bytes);
  await within(5000, () => readProc(pid, 'net/tcp').split('\n').length > 3);
  await vm.resume();
  t.true((await says(vm, 'sent')).includes(sum));
  const { received: received2 = 0, receivedPackets = 0, sent = 0, sentPackets = 0 } = traffic(pid);
  vm.console.write('\n');
  await ended;
  t.is(received.digest('hex'), sum);
  t.true(received2 > bytes.length && sent > bytes.length);
  t.true(received2 / receivedPackets > 3000, `from the guest: ${received2} bytes in ${receivedPackets} frames`);
  t.true(sent / sentPackets > 3000, `to the guest: ${sent} bytes in ${sentPackets} frames`);
  await vm.exited;
});

testAsRoot('guests on a bridge of a given namespace talk with each other, and leave nothing on it', async (t) => {
  await withNamespace(async ({ fd, pid }) => {
    ip(pid, 'link', 'add', 'br0', 'type', 'bridge');
    ip(pid, 'link', 'set', 'br0', 'up');
    const on = (name: string): Partial<LaunchOptions> => ({
      network: { tap: { name, bridge: 'br0' } },
      jail: { networkNamespace: { fd } },
    });
    {
      await using first = await launch(connected('echo ready; read line', on('first')));
      await says(first, 'ready');
      const ping = 'ip addr add 10.11.12.3/24 dev eth0; ping -c 3 -I 10.11.12.3 10.11.12.2';
      await using second = await launch(linux(`ip link set eth0 up; ${ping}`, { modules, ...on('second') }));
      t.regex(ip(pid, 'link', 'show', 'master', 'br0'), /first:.*second:/s);
      t.regex(await text(second.console), / 3 packets received/);
    }
    t.true(await within(5000, () => ip(pid, 'link', 'show', 'master', 'br0') === ''));
  });
});

testAsRoot('a tap that is deleted is told of, the guest sees its link go down, and goes on', async (t) => {
  await withNamespace(async ({ fd, pid }) => {
    const script =
      'ping -c 1 10.11.12.1; echo ready; while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done; ' +
      'echo link down; ping -c 2 -w 2 10.11.12.1; echo done';
    await using vm = await launch(connected(script, { jail: { networkNamespace: { fd } } }));
    await says(vm, 'ready');
    const errors: CasemateError[] = [];
    vm.on('device-error', (error) => errors.push(error));
    ip(pid, 'link', 'delete', 'tap0');
    const said = await text(vm.console);
    t.regex(said, /link down/);
    t.regex(said, /done/);
    t.deepEqual(await vm.exited, { reason: 'poweroff' });
    t.is(errors.length, 1);
    t.like(errors[0], { code: 'ERR_CASEMATE_DEVICE', step: 'options.network' });
  });
});

testAsRoot('a tap of the host that exists is used, and stays', async (t) => {
  spawnSync('ip', ['tuntap', 'add', 'dev', 'rig0', 'mode', 'tap']);
  try {
    spawnSync('ip', ['addr', 'add', '10.11.12.1/24', 'dev', 'rig0']);
    spawnSync('ip', ['link', 'set', 'rig0', 'up']);
    for (let times = 0; times < 2; times += 1) {
      const network = { tap: { name: 'rig0', existing: true, namespace: 'host' } } as const;
      await using vm = await launch(connected('ping -c 2 10.11.12.1', { network }));
      t.regex(await text(vm.console), / 2 packets received/);
    }
    t.regex(readProc('self', 'net/dev'), /^ *rig0:/m);
  } finally {
    spawnSync('ip', ['link', 'delete', 'rig0']);
  }
});

testAsRoot('what a guest may send in a second it does not exceed', async (t) => {
  const rate = { bytesPerSecond: 250_000, burstBytes: 50_000 };
  const script = 'dd if=/dev/zero bs=1000 count=1000 2>/dev/null | nc 10.11.12.1 1; read line';
  await using vm = await launch(connected(script, { network: { tap, rateLimit: { send: rate } }, startPaused: true }));
  const pid = await pidOf(vm);
  const receiver = inside(pid, 'nc', '-l', '-p', '1');
  await within(5000, () => readProc(pid, 'net/tcp').split('\n').length > 2);
  await vm.resume();
  let size = 0;
  let first = 0;
  for await (const chunk of receiver.stdout as NodeJS.ReadableStream) {
    first ||= performance.now();
    size += chunk.length;
  }
  const seconds = (performance.now() - first) / 1000;
  t.is(size, 1_000_000);
  // A burst and the largest frame may have come at once.
  const least = (size - rate.burstBytes - 2 * 65_536) / rate.bytesPerSecond;
  t.true(seconds > least, `${size} bytes in ${seconds} s`);
  vm.console.write('\n');
  await vm.exited;
});

/** The other end of a stream: frames, with their lengths before them. */
class Peer {
  #rest = Buffer.alloc(0);
  pings = 0;

  constructor(readonly socket: Socket) {
    socket.on('data', (chunk: Buffer) => this.#receive(chunk)).on('error', () => {});
  }

  #receive(chunk: Buffer): void {
    this.#rest = Buffer.concat([this.#rest, chunk]);
    while (this.#rest.length >= 4 && this.#rest.length >= 4 + this.#rest.readUInt32BE(0)) {
      const size = this.#rest.readUInt32BE(0);
      const answer = this.#answer(Buffer.from(this.#rest.subarray(4, 4 + size)));
      this.#rest = this.#rest.subarray(4 + size);
      if (answer === undefined) continue;
      const length = Buffer.alloc(4);
      length.writeUInt32BE(answer.length);
      // In pieces, as a stream may bring them.
      this.socket.write(length.subarray(0, 3));
      this.socket.write(Buffer.concat([length.subarray(3), answer.subarray(0, 20)]));
      this.socket.write(answer.subarray(20));
    }
  }

  /** Of 10.11.12.1, at 02:00:00:00:00:99: to ARP requests and pings. */
  #answer(frame: Buffer): Buffer | undefined {
    const own = Buffer.from('020000000099', 'hex');
    const guest = Buffer.from(frame.subarray(6, 12));
    guest.copy(frame, 0);
    own.copy(frame, 6);
    if (frame.readUInt16BE(12) === 0x0806 && frame.readUInt16BE(20) === 1) {
      const asked = Buffer.from(frame.subarray(38, 42));
      frame.writeUInt16BE(2, 20);
      frame.copy(frame, 32, 22, 32);
      own.copy(frame, 22);
      asked.copy(frame, 28);
      return frame;
    }
    if (frame.readUInt16BE(12) === 0x0800 && frame[23] === 1 && frame[34] === 8) {
      const from = Buffer.from(frame.subarray(26, 30));
      frame.copy(frame, 26, 30, 34);
      from.copy(frame, 30);
      frame[34] = 0;
      frame.writeUInt16BE((frame.readUInt16BE(36) + 0x0800) % 0xffff, 36); // its checksum, by as much as the type
      this.pings += 1;
      return frame;
    }
    return undefined;
  }
}

test('a guest talks through a stream, and hears when its other end hangs up', async (t) => {
  const path = join(folder(t), 'network');
  const server = createServer().listen(path);
  await once(server, 'listening');
  t.teardown(() => server.close());
  const accepted = once(server, 'connection') as Promise<[Socket]>;
  const script =
    'ping -c 3 -s 1000 10.11.12.1; while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done; echo link down';
  await using vm = await launch(connected(script, { network: { stream: { path } } }));
  const peer = new Peer((await accepted)[0]);
  const errors: CasemateError[] = [];
  vm.on('device-error', (error) => errors.push(error));
  await says(vm, ' 3 packets received');
  t.is(peer.pings, 3);
  peer.socket.destroy();
  await says(vm, 'link down');
  t.deepEqual(await vm.exited, { reason: 'poweroff' });
  t.like(errors[0], { code: 'ERR_CASEMATE_DEVICE', step: 'options.network' });
  t.is(errors.length, 1);
});

/** Takes the lease that a DHCP server offers, and notes its router. */
const takeLease = program(
  'bin/take-lease',
  `#!/bin/busybox sh
if [ "$1" = bound ]; then
  ip addr add "$ip/$mask" dev eth0
  ip route add default via "$router"
  echo "$router" >/router
fi
`,
);

/** Whether somebody listens there: that comes after the socket has its path. proc_pid_net(5) */
function isListening(path: string): boolean {
  const flags = 3; // of these, only __SO_ACCEPTCON is shown
  const lines = readProc('self', 'net/unix').split('\n');
  return lines.some((line) => line.endsWith(` ${path}`) && line.split(' ')[flags] === '00010000');
}

/** The port of a server on this host that does this with each connection. */
async function listening(t: ExecutionContext, connected: (socket: Socket) => void): Promise<number> {
  const server = createServer(connected).listen(0, '127.0.0.1');
  t.teardown(() => server.close());
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}

testPasst('passt gives a guest an address, and connections of the host', async (t) => {
  // Run by root, passt is nobody.
  const place = folder(t);
  chmodSync(place, 0o777);
  const path = join(place, 'passt');
  const passt = spawn('passt', ['--foreground', '--one-off', '--quiet', '--socket', path], {
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  t.teardown(() => passt.kill('SIGKILL'));
  t.true(await within(5000, () => isListening(path)));
  const bytes = randomBytes(4 << 20);
  const received = createHash('md5');
  let size = 0;
  const giving = await listening(t, (socket) => socket.end(bytes));
  const taking = await listening(t, (socket) => {
    socket.on('data', (chunk) => {
      received.update(chunk);
      size += chunk.length;
    });
  });
  // The router is the host. One direction at a time: where both ends have shut down their halves, passt
  // (0.0~git20250503) ends as soon as what it has sent is acknowledged, with the rest still in its socket.
  const script =
    'ip link set eth0 up; udhcpc -i eth0 -q -n -f -s /bin/take-lease; ip addr show eth0; ' +
    `nc $(cat /router) ${giving} >/received; wc -c </received; md5sum </received; ` +
    `head -c 1000000 /dev/urandom >/sent; md5sum </sent; nc $(cat /router) ${taking} </sent`;
  const { output, exit } = await run(
    linux(script, { modules: [...modules, 'af_packet'], files: [takeLease], network: { stream: { path } } }),
  );
  t.deepEqual(exit, { reason: 'poweroff' });
  t.regex(output, /inet [\d.]+\/\d+ scope global eth0/);
  t.regex(output, new RegExp(`^${bytes.length}\r?$`, 'm'));
  const [got, sent] = [...output.matchAll(/^([0-9a-f]{32}) {2}-/gm)].map(([, sum]) => sum);
  t.is(got, createHash('md5').update(bytes).digest('hex'), output);
  t.is(size, 1_000_000);
  t.is(received.digest('hex'), sent as string);
});
