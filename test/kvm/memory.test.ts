import ava from 'ava';
import { Capability, dirtyPages, GuestMemory, type VcpuExit } from 'casemate/kvm';
import { requires } from '../helpers/index.js';
import { requiresCapability } from './capability.js';
import { entry, machine, out, realModeVcpu } from './guests.js';

const test = requires('kvm');

// mov byte [0x5000], 1; mov byte [0x7fff], 1; out 0x10, al; hlt
const writer = [0xc6, 0x06, 0x00, 0x50, 0x01, 0xc6, 0x06, 0xff, 0x7f, 0x01, 0xe6, 0x10, 0xf4];

/** Whether a page is not the one of the guest's code: KVM notes pages as it makes them writable, also for a fetch. */
const isData = (page: number) => page !== entry / 4096;
const dirtyData = (bitmap: Uint8Array) => [...dirtyPages(bitmap)].filter(isData);

ava('the pages of a bitmap are listed in order', (t) => {
  t.deepEqual([...dirtyPages(Uint8Array.of(0b10000001, 0, 0b110))], [0, 7, 17, 18]);
  t.deepEqual([...dirtyPages(new Uint8Array(8))], []);
});

test('the dirty log shows the pages written, once', async (t) => {
  await using guest = machine(writer, { slot: { logDirtyPages: true } });
  const vcpu = realModeVcpu(guest);
  t.deepEqual([...dirtyPages(guest.vm.getDirtyLog(0))], []);
  out(await vcpu.run());
  t.deepEqual(dirtyData(guest.vm.getDirtyLog(0)), [5, 7]);
  t.deepEqual([...dirtyPages(guest.vm.getDirtyLog(0))], []);
});

requiresCapability('manualDirtyLogProtect2')('pages stay dirty until cleared, where that was asked for', async (t) => {
  await using guest = machine(writer, {
    size: 128 * 4096,
    slot: { logDirtyPages: true },
    prepare: (vm) => vm.enableCap(Capability.manualDirtyLogProtect2, [1n]),
  });
  const vcpu = realModeVcpu(guest);
  out(await vcpu.run());
  const log = guest.vm.getDirtyLog(0);
  t.is(log.length, 16);
  t.deepEqual(dirtyData(log), [5, 7]);
  t.deepEqual(dirtyData(guest.vm.getDirtyLog(0)), [5, 7]);
  const bitmap = new Uint8Array(8);
  bitmap[0] = 1 << 5;
  guest.vm.clearDirtyLog({ slot: 0, firstPage: 0, pages: 64, bitmap });
  t.deepEqual(dirtyData(guest.vm.getDirtyLog(0)), [7]);
  t.throws(() => guest.vm.clearDirtyLog({ slot: 0, firstPage: 0, pages: 128, bitmap }), {
    code: 'ERR_CASEMATE_INVALID_OPTION',
  });
});

requiresCapability('dirtyLogRing')('the dirty ring names slot and page of each write', async (t) => {
  await using guest = machine(writer, {
    slot: { slot: 3, logDirtyPages: true },
    prepare: (vm) => vm.enableDirtyRing(65536),
  });
  const vcpu = realModeVcpu(guest);
  t.deepEqual(vcpu.harvestDirtyRing(), []);
  out(await vcpu.run());
  const pages = vcpu.harvestDirtyRing();
  t.deepEqual(
    pages.filter(({ page }) => isData(page)),
    [
      { slot: 3, page: 5 },
      { slot: 3, page: 7 },
    ],
  );
  t.is(guest.vm.resetDirtyRings(), pages.length);
  t.deepEqual(vcpu.harvestDirtyRing(), []);
});

test('a dirty log of a slot without one is a typed error', async (t) => {
  await using guest = machine([]);
  t.throws(() => guest.vm.getDirtyLog(0), { code: 'ERR_CASEMATE_KVM' });
  t.throws(() => guest.vm.getDirtyLog(9), { code: 'ERR_CASEMATE_KVM' });
});

requiresCapability('readonlyMemory')('writes to a read-only slot are MMIO', async (t) => {
  await using guest = machine(writer, { slot: { readOnly: true } });
  const vcpu = realModeVcpu(guest);
  t.like(await vcpu.run(), { reason: 'mmio', direction: 'write', address: 0x5000 } as Partial<VcpuExit>);
  t.is(guest.memory.bytes()[0x5000], 0);
});

test('JavaScript and the guest see the same bytes', async (t) => {
  await using guest = machine(writer);
  const vcpu = realModeVcpu(guest);
  out(await vcpu.run());
  t.is(guest.memory.bytes()[0x5000], 1);
  t.is(new DataView(guest.memory.buffer).getUint8(0x7fff), 1);
});

test('a slot may show any part of a memory, be replaced and be deleted', async (t) => {
  // mov al, [0x2000]; out 0x10, al; hlt
  await using guest = machine([0xa0, 0x00, 0x20, 0xe6, 0x10, 0xf4], { size: 0x2000 });
  const other = new GuestMemory(0x4000);
  other.bytes()[0x1000] = 11;
  other.bytes()[0x3000] = 22;
  const vcpu = realModeVcpu(guest);
  const read = async () => {
    vcpu.setRegs({ rip: 0x1000n });
    const exit = await vcpu.run();
    await vcpu.run({ immediateExit: true });
    return exit.reason === 'io' ? exit.data[0] : exit.reason;
  };
  guest.vm.setMemorySlot({ slot: 1, guestAddress: 0x2000, memory: other, offset: 0x1000, size: 0x1000 });
  t.is(await read(), 11);
  guest.vm.deleteMemorySlot(1);
  guest.vm.setMemorySlot({ slot: 1, guestAddress: 0x2000, memory: other, offset: 0x3000 });
  t.is(await read(), 22);
  guest.vm.deleteMemorySlot(1);
  t.is(await read(), 'mmio');
});

test('slots that cannot be are refused', async (t) => {
  await using guest = machine([]);
  const { memory, vm } = guest;
  const good = { slot: 1, guestAddress: 0x100000, memory };
  const refused = [
    { ...good, offset: memory.size },
    { ...good, offset: 4096, size: memory.size },
    { ...good, size: 0 },
    { ...good, guestAddress: -4096 },
    { ...good, guestAddress: 2 ** 52 },
    { ...good, slot: 1.5 },
    { ...good, memory: new ArrayBuffer(4096) },
    { ...good, memory: Object.create(GuestMemory.prototype) },
    { ...good, readonly: true },
  ];
  for (const slot of refused) {
    t.throws(() => vm.setMemorySlot(slot as never), { code: 'ERR_CASEMATE_INVALID_OPTION' });
  }
  t.throws(() => vm.setMemorySlot({ ...good, guestAddress: 0x100001 }), { code: 'ERR_CASEMATE_KVM' });
  t.throws(() => vm.setMemorySlot({ ...good, guestAddress: 0x1000 }), { code: 'ERR_CASEMATE_KVM' }, 'overlaps slot 0');
});

test('guest memory cannot be transferred away from under the guest', (t) => {
  const memory = new GuestMemory(4096);
  try {
    structuredClone(memory.buffer, { transfer: [memory.buffer] });
    t.log('this Node makes a copy');
  } catch (error) {
    t.is((error as Error).name, 'DataCloneError');
  }
  t.is(memory.size, 4096);
});
