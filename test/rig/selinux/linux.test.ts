/** A Linux guest under casemate's policy, enforced. */
import { once } from 'node:events';
import { copyFileSync, mkdirSync, truncateSync, writeFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import test from 'ava';
import { launch } from 'casemate';
import { linux, testKernel } from '../../helpers/linux.js';
import { hearDenials } from '../../helpers/selinux.js';

const folder = '/var/casemate-linux';
const kernel = join(folder, 'vmlinuz');

test.before(() => {
  mkdirSync(folder);
  copyFileSync(testKernel.vmlinuz, kernel);
});

test.serial('a Linux boots, works and powers off, and nothing at all is denied it', async (t) => {
  const denials = hearDenials();
  const [path, shared] = [join(folder, 'disk'), join(folder, 'shared')];
  for (const disk of [path, shared]) {
    writeFileSync(disk, '');
    truncateSync(disk, 8 << 20);
  }
  // All that a guest has of its monitor, at once and by all of its processors.
  const script = `
    for i in 1 2 3; do
      dd if=/dev/urandom of=/dev/vda bs=64k count=32 &
      dd if=/dev/vdb of=/dev/null bs=64k &
      (j=0; while [ $j -lt 2000 ]; do j=$((j+1)); done) &
      ping -c 3 -i 0.2 10.11.12.1 &
      i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i; done
      wait
    done
    sync
    echo worked`;
  const modules = ['virtio_mmio', 'virtio_blk', 'virtio_net', 'virtio-rng', 'virtio_balloon'];
  await using vm = await launch(
    linux(`ip addr add 10.11.12.2/24 dev eth0; ip link set eth0 up; ${script}`, {
      ...{ kernel, modules, vcpus: 2, jail: { selinux: 'enforcing' } },
      disks: [{ path }, { path: shared, readOnly: true }],
      network: { tap: { addresses: ['10.11.12.1/24'] } },
      balloon: true,
    }),
  );
  const evidence = await vm.evidence();
  t.true(evidence.ok, JSON.stringify(evidence, undefined, 1));
  const output = await text(vm.console);
  t.regex(output, /worked/);
  t.regex(output, /3 packets received/);
  t.is((await vm.exited).reason, 'poweroff');
  t.deepEqual(vm.denials, []);
  t.deepEqual(await denials.all(), []);
});

test.serial('its network may be a stream, which has none of the categories of who connects it', async (t) => {
  const denials = hearDenials();
  const path = '/run/casemate-network';
  const server = createServer().listen(path);
  await once(server, 'listening');
  t.teardown(() => server.close());
  const accepted = once(server, 'connection') as Promise<[Socket]>;
  const script = 'ip addr add 10.11.12.2/24 dev eth0; ip link set eth0 up; ping -c 3 10.11.12.1; sleep 1000';
  await using vm = await launch(
    linux(script, {
      kernel,
      modules: ['virtio_mmio', 'virtio_net'],
      network: { stream: { path } },
      jail: { selinux: 'enforcing' },
    }),
  );
  const [socket] = await accepted;
  // It asks who has the address. Nobody answers, but what comes is read: a frame too short to be one.
  const [bytes] = (await once(socket, 'data')) as [Buffer];
  t.true(bytes.length > 4);
  const end = once(vm, 'device-error');
  socket.end(Buffer.from([0, 0, 0, 1, 0]));
  await end;
  t.deepEqual(vm.denials, []);
  t.deepEqual(await denials.all(), []);
});
