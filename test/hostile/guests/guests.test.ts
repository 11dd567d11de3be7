/** Guests that mean harm: to what was in their memory before, to their own code, to each device and register there is. */
import { once } from 'node:events';
import { launch, type VmExit } from 'casemate';
import { guest } from '../../helpers/guests.js';
import { requires } from '../../helpers/index.js';
import { kernel, powerOff, print, readMsr, touchMemory, touchPorts, writeMsr } from '../../helpers/kernels.js';
import { cpuTimeOf } from '../../helpers/proc.js';
import { comesToRest, run } from '../../helpers/vm.js';
import { machine, out, realModeVcpu } from '../../kvm/guests.js';

const { serial: test } = requires('kvm');

const describe = ({ reason, ...rest }: VmExit): string => `${reason} ${Object.values(rest).map(String)}`;
const hostile = guest('hostile');
const memoryMib = 16;

/** What it says of each thing that it does, and how it ends. */
async function does(...args: string[]): Promise<number[]> {
  const { output, exit } = await run({ guest: hostile, args, memoryMib });
  if (exit.reason !== 'exit' || exit.code !== 0) throw new Error(describe(exit));
  return output.trim().split('\n').map(Number);
}

test('no guest finds what another one has written, while that runs, and when it is gone', async (t) => {
  // It would find it, in each word of its own.
  const [hidden = 0, found] = await does('hide', 'seek');
  t.true(hidden > (6 * 2 ** 20) / 8);
  t.is(found, hidden);

  await using neighbour = await launch({ guest: hostile, args: ['hide', 'stay'], memoryMib });
  await once(neighbour.console, 'data');
  t.deepEqual(await does('seek'), [0]);
  await neighbour.kill();
  for (let i = 0; i < 3; i += 1) t.deepEqual(await does('seek'), [0]);
});

test('a guest finds nothing to virtualize with', async (t) => {
  t.deepEqual(await does('virtualization'), [0]);
});

test('a guest at CPL 3 finds of its processor what programs look for, and nothing of what only kernels do', async (t) => {
  t.deepEqual(await does('leaves'), [3 * 16]);
});

test('a guest that writes its code anew before each call runs what it wrote', async (t) => {
  t.deepEqual(await does('patch'), [(999 * 1000) / 2]);
});

test('a guest that leaves its processor all the time ends like any other, and none beside it minds', async (t) => {
  const [one, ...others] = await Promise.all([does('exits'), does('patch'), does('patch')]);
  t.deepEqual(one, [5000]);
  t.deepEqual(others, [[499_500], [499_500]]);
});

test('the time that a guest spends on leaving its processor is on its account, and on nobody else’s', async (t) => {
  await using neighbour = await launch({ guest: guest('echo'), memoryMib });
  t.true(await comesToRest(neighbour));
  const before = cpuTimeOf(neighbour.pid);
  const begun = performance.now();
  await using victim = await launch({ guest: hostile, args: ['exits', 'stay'], memoryMib });
  await once(victim.console, 'data');
  const spent = cpuTimeOf(victim.pid) / 1e6;
  const passed = performance.now() - begun;
  // No exit takes less than a microsecond, and no thread is on two processors.
  t.true(spent > 5 && spent <= passed, `${spent} of ${passed} ms`);
  t.is(cpuTimeOf(neighbour.pid), before);
});

/** How a Linux machine ends whose kernel does this, and then switches it off. */
async function ends(...code: string[]): Promise<string> {
  const { exit } = await run({ kernel: kernel(print('.'), ...code, powerOff) });
  return exit.reason;
}

test('a kernel that reads and writes its ports, in each width, gets to its end', async (t) => {
  // Each way in which a device's ports can be met, and a good part of all others.
  t.is(await ends(touchPorts(0, 0x100, 1)), 'poweroff');
  t.is(await ends(touchPorts(0x2e8, 0x420, 1)), 'poweroff');
  t.is(await ends(touchPorts(0x420, 0x10000, 61)), 'poweroff');
});

test('a kernel that reads and writes where no memory is gets to its end', async (t) => {
  t.is(await ends(touchMemory(0xc000_0000, 0x4_1040)), 'poweroff');
});

test('a kernel that asks for what it has not got is told so by a fault', async (t) => {
  const efer = 0xc000_0080;
  const longMode = 0x500;
  t.is(await ends(writeMsr(efer, longMode)), 'poweroff');
  t.is(await ends(writeMsr(efer, longMode | 0x1000)), 'shutdown', 'SVM switched on');
  t.is(await ends(readMsr(0x480)), 'shutdown', 'VMX_BASIC');
  t.is(await ends(readMsr(0x1234_5678)), 'shutdown', 'a register that is none');
});

/** Whether a guest can read a register where there is no filter of ours. */
async function kvmHas(register: number): Promise<boolean> {
  // mov ecx, register; rdmsr; out 0x10, al. A fault goes to 0x2000: out 0x11, al.
  const number = [0, 8, 16, 24].map((shift) => (register >>> shift) & 0xff);
  await using guest = machine([0x66, 0xb9, ...number, 0x0f, 0x32, 0xe6, 0x10]);
  guest.memory.bytes(13 * 4).set([0x00, 0x20, 0x00, 0x00]);
  guest.memory.bytes(0x2000).set([0xe6, 0x11]);
  return out(await realModeVcpu(guest).run({ signal: AbortSignal.timeout(60_000) })).port === 0x10;
}

test('a kernel is denied what KVM would let it have, and has what kernels need', async (t) => {
  const [platform, features] = [0xce, 0x140];
  for (const register of [platform, features]) {
    t.true(await kvmHas(register), `KVM has no ${register.toString(16)}: that it is denied shows nothing`);
    t.is(await ends(readMsr(register)), 'shutdown');
    t.is(await ends(writeMsr(register, 0)), 'shutdown');
  }
  const [timeStamp, attributes, target] = [0x10, 0x277, 0xc000_0082];
  for (const register of [timeStamp, attributes, target]) {
    t.is(await ends(readMsr(register), writeMsr(register, 0)), 'poweroff');
  }
  t.false(await kvmHas(0x1234_5678));
});

test('a kernel that writes to registers of its processor harms nobody', async (t) => {
  const registers = [
    0x10, 0x1b, 0x3a, 0x3b, 0x48, 0x49, 0x79, 0x8b, 0xce, 0xfe, 0x10a, 0x122, 0x174, 0x175, 0x176, 0x179, 0x17a, 0x186,
    0x198, 0x199, 0x1a0, 0x1d9, 0x200, 0x277, 0x2ff, 0x345, 0x38f, 0x480, 0x6e0, 0x800, 0x802, 0x830, 0xc80, 0xd90,
    0xda0, 0xe01, 0x4000_0000, 0x4000_0001, 0x4b56_4d00, 0x4b56_4d02, 0xc000_0080, 0xc000_0081, 0xc000_0100,
    0xc000_0103, 0xc001_0010, 0xc001_0015, 0xc001_0058, 0xc001_0114, 0xc001_0117, 0xc001_1029, 0xc001_1023,
  ];
  const seen = new Set<string>();
  for (const register of registers) {
    seen.add(await ends(writeMsr(register, 0xffff_ffff)));
  }
  // What KVM refuses is a fault, for which there is no handler here; what it lets be written is this guest's alone.
  for (const reason of seen) t.true(['poweroff', 'shutdown', 'internal-error'].includes(reason), reason);
  t.deepEqual(await does('patch'), [499_500]);
});
