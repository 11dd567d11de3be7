// What the machine wants to know of the processor that its guest will see.
#pragma once

#include "kvm/abi.h"

#include <cstdint>

namespace casemate::machine {

inline const kvm_cpuid_entry2* find_leaf(const casemate_kvm_cpuid2& table, std::uint32_t leaf) {
  for (std::uint32_t i = 0; i < table.nent; ++i) {
    if (table.entries[i].function == leaf) {
      return &table.entries[i];
    }
  }
  return nullptr;
}

/// Pages of 1 GiB.
inline bool has_huge_pages(const casemate_kvm_cpuid2& table) {
  const kvm_cpuid_entry2* leaf = find_leaf(table, 0x80000001);
  return leaf != nullptr && (leaf->edx >> 26 & 1) != 0;
}

/// "AuthenticAMD", whose virtualization is SVM.
inline bool is_amd(const casemate_kvm_cpuid2& table) {
  const kvm_cpuid_entry2* leaf = find_leaf(table, 0);
  return leaf != nullptr && leaf->ebx == 0x68747541 && leaf->edx == 0x69746e65 &&
         leaf->ecx == 0x444d4163;
}

/// Makes it the table of the vCPU with this number, which is its APIC id, in each leaf that
/// tells it. What the leaves say of all of them is in the table already.
inline void set_apic_id(casemate_kvm_cpuid2& table, std::uint32_t id) {
  for (std::uint32_t i = 0; i < table.nent; ++i) {
    kvm_cpuid_entry2& entry = table.entries[i];
    switch (entry.function) {
    case 0x1:
      entry.ebx = (entry.ebx & 0x00ffffff) | id << 24;
      break;
    case 0xb:
    case 0x1f:
      entry.edx = id;
      break;
    case 0x8000001e: // AMD's: extended APIC id, and the number of the core
      entry.eax = id;
      entry.ebx = (entry.ebx & ~0xffu) | (id & 0xff);
      break;
    default:
      break;
    }
  }
}

} // namespace casemate::machine
