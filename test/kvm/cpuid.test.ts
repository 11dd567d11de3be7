import test from 'ava';
import { type CpuidEntry, guestCpuid } from 'casemate/kvm';
import { decodeCpuid, encodeCpuid } from '#lib/kvm/cpuid.js';

const leaf = (number: number, registers: Partial<CpuidEntry> = {}): CpuidEntry => ({
  function: number,
  index: 0,
  flags: 0,
  eax: 0,
  ebx: 0,
  ecx: 0,
  edx: 0,
  ...registers,
});
const all = 0xffffffff;
const intel = leaf(0, { eax: 0x1f, ebx: 0x756e6547, ecx: 0x6c65746e, edx: 0x49656e69 });
const amd = leaf(0, { eax: 0x10, ebx: 0x68747541, ecx: 0x444d4163, edx: 0x69746e65 });

function find(entries: CpuidEntry[], number: number, index = 0): CpuidEntry {
  const found = entries.filter((entry) => entry.function === number && entry.index === index);
  if (found.length !== 1) throw new Error(`${found.length} entries of leaf ${number.toString(16)}, ${index}`);
  return found[0] as CpuidEntry;
}

test('the guest sees a hypervisor and no means to be one', (t) => {
  const entries = [
    intel,
    leaf(1, { ecx: all, edx: all, ebx: all }),
    leaf(0x80000001, { ecx: all }),
    leaf(0x8000000a, { eax: 1, ebx: 2, edx: 3 }),
    leaf(0x80000022, { eax: 1, ebx: 6 }),
  ];
  const guest = guestCpuid(entries, { vcpu: 0, vcpus: 1 });
  const one = find(guest, 1);
  t.is(one.ecx & (1 << 5), 0, 'VMX');
  t.is(one.ecx & (1 << 15), 0, 'PDCM');
  t.is(one.ecx >>> 31, 1, 'hypervisor');
  t.is((one.ecx >>> 24) & 1, 1, 'TSC deadline');
  t.is((one.edx >>> 28) & 1, 0, 'HTT with one vCPU');
  t.is(find(guest, 0x80000001).ecx & 4, 0, 'SVM');
  t.is(find(guest, 0x80000001).ecx & (1 << 23), 0, 'counters of the core');
  t.like(find(guest, 0x8000000a), { eax: 0, ebx: 0, ecx: 0, edx: 0 });
  t.like(find(guest, 0x80000022), { eax: 0, ebx: 0, ecx: 0, edx: 0 }, 'counters');
  t.is((find(guestCpuid(entries, { vcpu: 0, vcpus: 1, tscDeadline: false }), 1).ecx >>> 24) & 1, 0);
});

test('registers stay unsigned 32-bit numbers', (t) => {
  const guest = guestCpuid([intel, leaf(1, { eax: all, ebx: all, ecx: all, edx: all })], { vcpu: 3, vcpus: 4 });
  for (const entry of guest) {
    for (const register of ['eax', 'ebx', 'ecx', 'edx'] as const) t.true(entry[register] >= 0);
  }
  t.deepEqual(decodeCpuid(encodeCpuid(guest).subarray(8)), guest);
});

test('each vCPU has its APIC id, in every leaf that tells it', (t) => {
  const entries = [amd, leaf(1), leaf(0x8000001e, { eax: 77, ebx: 77, ecx: 77 }), leaf(0xb, { edx: 77 }), leaf(0x1f)];
  for (const vcpu of [0, 1, 5]) {
    const guest = guestCpuid(entries, { vcpu, vcpus: 6 });
    t.is(find(guest, 1).ebx >>> 24, vcpu);
    t.is((find(guest, 1).ebx >>> 16) & 0xff, 8, 'room for a power of two');
    t.is((find(guest, 1).edx >>> 28) & 1, 1, 'HTT');
    t.like(find(guest, 0x8000001e), { eax: vcpu, ebx: vcpu, ecx: 0 });
    t.like(find(guest, 0xb, 0), { eax: 0, ebx: 1, ecx: 0x100, edx: vcpu });
    t.like(find(guest, 0xb, 1), { eax: 3, ebx: 6, ecx: 0x201, edx: vcpu });
    t.like(find(guest, 0xb, 2), { eax: 0, ebx: 0, ecx: 2, edx: vcpu });
    t.false(guest.some((entry) => entry.function === 0x1f));
  }
});

test('no topology leaf is invented for a CPU that has none', (t) => {
  const guest = guestCpuid([leaf(0, { eax: 0xa }), leaf(1)], { vcpu: 0, vcpus: 2 });
  t.false(guest.some((entry) => entry.function === 0xb));
});

test('caches of the first two levels are private, the last level is shared', (t) => {
  const cache = (number: number, index: number, level: number) =>
    leaf(number, { index, flags: 1, eax: (0xfff << 14) | (level << 5) | 1 });
  const numbers = [4, 0x8000001d];
  const entries = numbers.flatMap((number) => [
    ...[1, 2, 3].map((level) => cache(number, level - 1, level)),
    leaf(number, { index: 3, flags: 1 }),
  ]);
  const guest = guestCpuid([intel, ...entries], { vcpu: 0, vcpus: 4 });
  for (const number of numbers) {
    const sharing = (index: number) => (find(guest, number, index).eax >>> 14) & 0xfff;
    t.deepEqual([0, 1, 2].map(sharing), [0, 0, 3]);
    t.is(find(guest, number, 3).eax, 0, 'the end of the list stays the end');
  }
  t.is(find(guest, 4, 0).eax >>> 26, 3, 'cores of the package');
});

test('AMD tells its number of cores in leaf 0x80000008, where Intel has nothing', (t) => {
  const options = { vcpu: 0, vcpus: 4 };
  t.is(find(guestCpuid([amd, leaf(0x80000008, { ecx: all })], options), 0x80000008).ecx, 0xffff2f03);
  t.is(find(guestCpuid([intel, leaf(0x80000008)], options), 0x80000008).ecx, 0);
});

test('what is not offered is not announced', (t) => {
  const guest = guestCpuid([intel, leaf(0xa, { eax: 5, edx: 3 }), leaf(6, { eax: all, ecx: all })], {
    vcpu: 0,
    vcpus: 1,
  });
  t.like(find(guest, 0xa), { eax: 0, ebx: 0, ecx: 0, edx: 0 });
  t.is(find(guest, 6).eax & 0x4002, 0);
  t.is(find(guest, 6).ecx & 8, 0);
});

test('the TSC frequency stands in the hypervisor leaves where it is known', (t) => {
  const entries = [intel, leaf(0x40000000, { eax: 0x40000001 }), leaf(0x40000010, { eax: 1 })];
  const guest = guestCpuid(entries, { vcpu: 0, vcpus: 1, tscKhz: 2_400_000 });
  t.is(find(guest, 0x40000000).eax, 0x40000010);
  t.like(find(guest, 0x40000010), { eax: 2_400_000, ebx: 1_000_000 });
  const unknown = guestCpuid(entries, { vcpu: 0, vcpus: 1 });
  t.is(find(unknown, 0x40000000).eax, 0x40000001);
  t.false(unknown.some((entry) => entry.function === 0x40000010));
});

test('the entries given are not changed', (t) => {
  const entries = [intel, leaf(1, { ecx: all })];
  const before = structuredClone(entries);
  guestCpuid(entries, { vcpu: 0, vcpus: 1 });
  t.deepEqual(entries, before);
});

test('impossible topologies are refused', (t) => {
  for (const options of [
    { vcpu: 1, vcpus: 1 },
    { vcpu: 0, vcpus: 0 },
    { vcpu: -1, vcpus: 2 },
    { vcpu: 0, vcpus: 1025 },
  ]) {
    t.throws(() => guestCpuid([], options), { code: 'ERR_CASEMATE_INVALID_OPTION' });
  }
  t.throws(() => guestCpuid([], { vcpu: 0, vcpus: 1, tscKhz: 0 }), { code: 'ERR_CASEMATE_INVALID_OPTION' });
});
