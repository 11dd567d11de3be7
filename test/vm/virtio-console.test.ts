/** The console of a Linux guest that is a virtio device. */
import { text } from 'node:stream/consumers';
import { launch } from 'casemate';
import { requires } from '../helpers/index.js';
import { kernel, powerOff, print } from '../helpers/kernels.js';
import { linux, says } from '../helpers/linux.js';
import { refused, run } from '../helpers/vm.js';

const test = requires('kvm');
const { serial: testKernels } = requires('kvm', 'kernels');

const options = { console: 'virtio', modules: ['virtio_mmio', 'virtio_console'] } as const;

testKernels('what a guest prints to hvc0 is read, and its kernel’s own words are', async (t) => {
  const { output, exit } = await run(
    linux('i=0; while [ $i -lt 500 ]; do echo "line $i"; i=$((i + 1)); done', options),
  );
  const lines = output.match(/^line \d+(?=\r?$)/gm) ?? [];
  t.deepEqual(
    lines,
    Array.from({ length: 500 }, (_, i) => `line ${i}`),
  );
  t.deepEqual(exit, { reason: 'poweroff' });
});

testKernels('hvc0 is typed to, much at once too', async (t) => {
  await using vm = await launch(
    linux('echo listens; while read line; do echo "heard <$line>"; [ "$line" != end ] || break; done', options),
  );
  await says(vm, 'listens');
  for (let i = 0; i < 20; i += 1) vm.console.write(`${i} ${'x'.repeat(200)}\n`);
  vm.console.write('end\n');
  const said = await says(vm, 'heard <end>');
  t.is(said.match(/heard <\d+ x{200}>/g)?.length, 20);
  t.deepEqual(await vm.exited, { reason: 'poweroff' });
});

testKernels('a guest whose hvc0 nobody reads waits, and nothing of what it prints is lost', async (t) => {
  await using vm = await launch(linux('echo begins; yes $(printf %0400d 7) | head -n 2000; echo ends', options));
  await says(vm, 'begins');
  await vm.pause();
  await vm.resume();
  const rest = await text(vm.console);
  t.is(rest.match(/^0{399}7\r?$/gm)?.length, 2000);
  t.regex(rest, /ends/);
  t.deepEqual(await vm.exited, { reason: 'poweroff' });
});

test('with a console that is a virtio device the serial port is a line to nobody', async (t) => {
  const { output, exit } = await run({ kernel: kernel(print('x'.repeat(100)), powerOff), console: 'virtio' });
  t.is(output, '');
  t.deepEqual(exit, { reason: 'poweroff' });
});

test('a bare-metal guest has no console that is a virtio device', async (t) => {
  t.is((await refused(t, { console: 'virtio' }, 'ERR_CASEMATE_INVALID_OPTION')).step, 'options.console');
});
