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

} // namespace casemate::machine
