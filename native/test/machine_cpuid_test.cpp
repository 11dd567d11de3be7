#include "machine/cpuid.hpp"

#include "kvm/ioctl.hpp"
#include "test/unit.hpp"

using namespace casemate;

TEST("a vCPU's number is its APIC id in each leaf that tells it, and changes nothing else") {
  kvm::Table<casemate_kvm_cpuid2, kvm_cpuid_entry2, 6> table;
  const std::uint32_t leaves[] = {0x1, 0x4, 0xb, 0xb, 0x1f, 0x8000001e};
  for (const std::uint32_t leaf : leaves) {
    table->entries[table->nent++] = {leaf,       0,          0,          0xaaaaaaaa,
                                     0xbbbbbbbb, 0xcccccccc, 0xdddddddd, {}};
  }
  for (const std::uint32_t id : {31u, 0u, 7u}) { // of the same table, again and again
    machine::set_apic_id(*table.get(), id);
    for (std::uint32_t i = 0; i < table->nent; ++i) {
      const kvm_cpuid_entry2& entry = table->entries[i];
      const bool is_amd_leaf = entry.function == 0x8000001e;
      const bool is_topology = entry.function == 0xb || entry.function == 0x1f;
      const std::uint32_t ebx = entry.function == 0x1 ? 0x00bbbbbb | id << 24
                                : is_amd_leaf         ? 0xbbbbbb00 | id
                                                      : 0xbbbbbbbb;
      CHECK_EQ(entry.eax, is_amd_leaf ? id : 0xaaaaaaaa);
      CHECK_EQ(entry.ebx, ebx);
      CHECK_EQ(entry.ecx, 0xccccccccu);
      CHECK_EQ(entry.edx, is_topology ? id : 0xdddddddd);
    }
  }
}
