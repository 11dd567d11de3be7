/** Memory of the host's huge pages, which only a machine of one's own can be asked to set apart. */
import { readFileSync, writeFileSync } from 'node:fs';
import { type LaunchOptions, launch } from 'casemate';
import { type ExecutionContext, requires } from '../helpers/index.js';
import { kernel, loop, print } from '../helpers/kernels.js';
import { linux } from '../helpers/linux.js';
import { refused, run } from '../helpers/vm.js';

const test = requires('kvm', 'root').serial;

/** For this test, on this machine, which nobody else has. */
function setApart(t: ExecutionContext, pages: number): void {
  const write = (count: number) => writeFileSync('/proc/sys/vm/nr_hugepages', `${count}`);
  write(pages);
  t.teardown(() => write(0));
}

/** Of the pages set apart, those that nobody has a claim to. */
function unclaimed(): number {
  const text = readFileSync('/proc/meminfo', 'utf8');
  const count = (name: string) => Number(new RegExp(`^HugePages_${name}: +(\\d+)`, 'm').exec(text)?.[1]);
  return count('Free') - count('Rsvd');
}

const options: LaunchOptions = { kernel: kernel(print('>'), loop), memoryMib: 64, hugePages: '2M' };

test('a VM has all of its huge pages from its launch to its end', async (t) => {
  setApart(t, 80);
  t.is(unclaimed(), 80);
  const vm = await launch(options);
  t.is(unclaimed(), 80 - 32);
  const mapped = /^Private_Hugetlb: +([1-9]\d*) kB/m.exec(readFileSync(`/proc/${vm.pid}/smaps`, 'utf8'))?.[1];
  t.true(Number(mapped) >= 2048, 'what the guest has touched is of them');
  await vm.kill();
  t.is(unclaimed(), 80);
});

test('one huge page too few is an error of the launch, and leaves none behind', async (t) => {
  setApart(t, 80);
  await using vm = await launch(options);
  t.is(vm.state, 'running');
  const error = await refused(t, { ...options, memoryMib: 98 }, 'ERR_CASEMATE_HUGE_PAGES');
  t.is(error.step, 'options.hugePages');
  t.is(unclaimed(), 80 - 32);
});

requires('kvm', 'root', 'kernels').serial('a kernel boots in huge pages', async (t) => {
  setApart(t, 80);
  const { output, exit } = await run(linux('uname', { memoryMib: 160, hugePages: '2M' }));
  t.regex(output, /^Linux/m);
  t.deepEqual(exit, { reason: 'poweroff' });
});
