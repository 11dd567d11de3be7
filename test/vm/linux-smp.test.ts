/** Real kernels on machines with several processors, and with much or little memory. */
import { launch } from 'casemate';
import { requires } from '../helpers/index.js';
import { linux, says } from '../helpers/linux.js';
import { run } from '../helpers/vm.js';

// One after the other: where kernels can be tested at all, there is seldom memory for many.
const test = requires('kvm', 'kernels').serial;

test('a kernel brings up all of its processors, one core each, with ids of their own', async (t) => {
  const script = `
cat /sys/devices/system/cpu/online
grep apicid /proc/cpuinfo
cat /sys/devices/system/cpu/cpu*/topology/core_cpus_list
cat /sys/devices/system/clocksource/clocksource0/current_clocksource
dmesg`;
  const { output, exit } = await run(linux(script, { vcpus: 4 }));
  t.deepEqual(exit, { reason: 'poweroff' });
  const lines = output.split(/\r?\n/);
  t.true(lines.includes('0-3'), output);
  const ids = [...output.matchAll(/^apicid\s*: (\d+)/gm)].map(([, id]) => Number(id));
  t.deepEqual(ids, [0, 1, 2, 3]);
  for (const cpu of ['0', '1', '2', '3']) t.true(lines.includes(cpu), `${cpu} shares a core`);
  t.true(lines.includes('kvm-clock') || lines.includes('tsc'), output);
  t.notRegex(output, /WARNING: CPU|BUG:|mismatch|Firmware Bug/);
});

test('each processor has its timer, and work moves between them', async (t) => {
  const script = `
for cpu in 0 1; do taskset -p $((1 << cpu)) $$; sleep 0.05; done
grep -E 'LOC|RES' /proc/interrupts`;
  const { output } = await run(linux(script, { vcpus: 2 }));
  const counts = /LOC: +(\d+) +(\d+)/.exec(output);
  t.true(Number(counts?.[1]) > 0 && Number(counts?.[2]) > 0, output);
});

test('a kernel with several processors is paused and goes on, again and again', async (t) => {
  const script =
    'echo ready; (while :; do :; done) & while read line; do echo "heard $line"; [ "$line" != end ] || break; done';
  await using vm = await launch(linux(script, { vcpus: 3 }));
  await says(vm, 'ready');
  for (let round = 0; round < 10; round += 1) {
    await vm.pause();
    vm.console.write(`${round}\n`);
    await vm.resume();
    await says(vm, `heard ${round}`);
  }
  vm.console.write('end\n');
  t.deepEqual(await vm.exited, { reason: 'poweroff' });
});

test('a kernel with several processors restarts, which is its end', async (t) => {
  t.deepEqual((await run(linux('reboot -f', { vcpus: 2 }))).exit, { reason: 'reboot' });
});

test('a kernel that panics on any of its processors says so', async (t) => {
  const script = 'taskset 2 sh -c "echo c >/proc/sysrq-trigger"';
  const { exit } = await run(linux(script, { vcpus: 2, modules: ['pvpanic-mmio'] }));
  t.is(exit.reason, 'panic');
});
