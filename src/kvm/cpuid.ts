/** CPUID as a guest sees it: pure functions over the entries that KVM takes and gives. */
import { boolean, integer, object } from '../is.js';
import { decodeEntries, encodeTable, type Layout, struct, u32 } from './layout.js';

/** The answer to one CPUID leaf and subleaf (struct kvm_cpuid_entry2). */
export interface CpuidEntry {
  /** The leaf: EAX of the guest's CPUID instruction. */
  function: number;
  /** The subleaf: ECX, where `flags` has {@link CPUID_SIGNIFICANT_INDEX}. */
  index: number;
  flags: number;
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}

/** The entry answers its subleaf alone (KVM_CPUID_FLAG_SIGNIFCANT_INDEX). */
export const CPUID_SIGNIFICANT_INDEX = 1;

const entryLayout: Layout<CpuidEntry> = struct(
  { function: u32, index: u32, flags: u32, eax: u32, ebx: u32, ecx: u32, edx: u32 },
  40,
);

/** Entries from the kernel's bytes, 40 each. */
export function decodeCpuid(entries: Uint8Array): CpuidEntry[] {
  return decodeEntries(entryLayout, entries);
}

/** struct kvm_cpuid2: its head of 8 bytes, then the entries. */
export function encodeCpuid(entries: readonly CpuidEntry[], name = 'entries'): Uint8Array {
  return encodeTable(entryLayout, entries, name);
}

/** Whose CPUID it is. */
export interface GuestCpuidOptions {
  /** This vCPU's number, which becomes its APIC id. */
  vcpu: number;
  /** How many there are: cores of one package, one thread each. */
  vcpus: number;
  /** The guest's TSC frequency in kHz, where known: the guest then need not measure it. */
  tscKhz?: number;
  /** Whether the LAPIC's timer has its TSC-deadline mode. It has if KVM has the LAPIC (default true). */
  tscDeadline?: boolean;
}

const bit = (n: number): number => 2 ** n;
const set = (value: number, mask: number): number => (value | mask) >>> 0;
const clear = (value: number, mask: number): number => (value & ~mask) >>> 0;
/** `value` with `width` bits from `shift` on replaced; what does not fit is cut to the most that does. */
function field(value: number, shift: number, width: number, content: number): number {
  const most = bit(width) - 1;
  return set(clear(value, most * bit(shift)), Math.min(content, most) * bit(shift));
}

const hypervisorBase = 0x40000000;
const hypervisorTiming = 0x40000010;
/** KVM's LAPIC timer counts nanoseconds. */
const apicBusKhz = 1_000_000;

/**
 * What KVM supports (KVM_GET_SUPPORTED_CPUID) as one guest vCPU should see it:
 *
 * - no VMX and no SVM, for nothing here runs guests of guests; no performance counters; no turbo and no
 *   energy hints, which nobody behind them would obey;
 * - a hypervisor is present, and tells its TSC and bus frequency (leaf 0x40000010) where `tscKhz` is known;
 * - its own APIC id, and the topology of `vcpus` cores in one package, in each leaf that speaks of it.
 *
 * The entries given stay as they are.
 *
 * @throws CasemateError `ERR_CASEMATE_INVALID_OPTION`
 */
export function guestCpuid(entries: readonly CpuidEntry[], options: GuestCpuidOptions): CpuidEntry[] {
  object('options', options, ['vcpu', 'vcpus', 'tscKhz', 'tscDeadline']);
  const vcpus = integer('options.vcpus', options.vcpus, 1, 1024);
  const vcpu = integer('options.vcpu', options.vcpu, 0, vcpus - 1);
  const tscKhz = options.tscKhz === undefined ? undefined : integer('options.tscKhz', options.tscKhz, 1, 2 ** 32 - 1);
  const tscDeadline = options.tscDeadline === undefined || boolean('options.tscDeadline', options.tscDeadline);
  const apicIdBits = Math.ceil(Math.log2(vcpus));
  const vendor = entries.find((entry) => entry.function === 0);
  const amd = vendor?.ebx === 0x68747541 /* AuthenticAMD */ || vendor?.ebx === 0x6f677948; /* HygonGenuine */

  const adjusted: CpuidEntry[] = [];
  for (const given of entries) {
    const entry = { ...given };
    switch (entry.function) {
      case 0x1:
        // Initial APIC id, and how many of them the package has room for.
        entry.ebx = field(field(entry.ebx, 24, 8, vcpu & 0xff), 16, 8, bit(apicIdBits));
        entry.edx = vcpus > 1 ? set(entry.edx, bit(28)) : clear(entry.edx, bit(28));
        entry.ecx = clear(entry.ecx, bit(5) /* VMX */ | bit(15) /* PDCM: performance capabilities */);
        entry.ecx = tscDeadline ? set(entry.ecx, bit(24)) : clear(entry.ecx, bit(24));
        entry.ecx = set(entry.ecx, bit(31)); // A hypervisor is present.
        break;
      case 0x4:
      case 0x8000001d: {
        // Type 0 ends the list of caches.
        if ((entry.eax & 0x1f) === 0) break;
        const level = (entry.eax >>> 5) & 7;
        entry.eax = field(entry.eax, 14, 12, level >= 3 ? bit(apicIdBits) - 1 : 0);
        if (entry.function === 0x4) entry.eax = field(entry.eax, 26, 6, bit(apicIdBits) - 1);
        break;
      }
      case 0x6:
        entry.eax = clear(entry.eax, bit(1) /* turbo */ | bit(14) /* turbo 3.0 */);
        entry.ecx = clear(entry.ecx, bit(3) /* energy hint */);
        break;
      case 0xa:
        Object.assign(entry, { eax: 0, ebx: 0, ecx: 0, edx: 0 });
        break;
      case 0xb:
      case 0x1f:
        continue; // Made anew below; without 0x1f guests use 0xb.
      case hypervisorBase:
        if (tscKhz !== undefined) entry.eax = Math.max(entry.eax, hypervisorTiming);
        break;
      case hypervisorTiming:
        continue;
      case 0x80000001:
        entry.ecx = clear(entry.ecx, bit(2) /* SVM */ | bit(23) /* performance counters of the core */);
        break;
      case 0x80000008:
        // Cores less one, and how many bits of the APIC id they take; reserved on Intel.
        if (amd) entry.ecx = field(field(entry.ecx, 0, 8, vcpus - 1), 12, 4, apicIdBits);
        break;
      case 0x8000000a:
      case 0x80000022:
        Object.assign(entry, { eax: 0, ebx: 0, ecx: 0, edx: 0 });
        break;
      case 0x8000001e:
        // Extended APIC id; core id with one thread per core; node 0 of 1.
        Object.assign(entry, { eax: vcpu, ebx: vcpu & 0xff, ecx: 0 });
        break;
    }
    adjusted.push(entry);
  }

  if (vendor !== undefined && vendor.eax >= 0xb) {
    const topology = (index: number, eax: number, ebx: number, type: number): CpuidEntry => ({
      function: 0xb,
      index,
      flags: CPUID_SIGNIFICANT_INDEX,
      eax,
      ebx,
      ecx: (type << 8) | index,
      edx: vcpu,
    });
    adjusted.push(
      topology(0, 0, 1, 1 /* threads */),
      topology(1, apicIdBits, vcpus, 2 /* cores */),
      topology(2, 0, 0, 0),
    );
  }
  if (tscKhz !== undefined) {
    adjusted.push({
      function: hypervisorTiming,
      index: 0,
      flags: 0,
      eax: tscKhz,
      ebx: apicBusKhz,
      ecx: 0,
      edx: 0,
    });
  }
  return adjusted;
}
