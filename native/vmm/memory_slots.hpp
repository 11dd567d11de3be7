// What of a guest's memory KVM knows of, and so the guest can reach.
#pragma once

#include "kvm/vm.hpp"
#include "machine/extents.hpp"
#include "machine/guest_memory.hpp"
#include "sys/result.hpp"

#include <bitset>
#include <cstdint>

namespace casemate::vmm {

class MemorySlots {
public:
  MemorySlots(const kvm::VirtualMachine& vm, const machine::GuestMemory& memory)
      : vm_(vm), memory_(memory) {}

  /// In as few slots as there can be.
  sys::SysError add_all();

  /// The extents below `end`, which is in low memory, but those that are there.
  sys::SysError add_below(std::uint64_t end);

  bool has(const machine::Extent& extent) const { return added_[extent.number]; }
  sys::SysError add(const machine::Extent& extent);

private:
  sys::SysError set(std::uint32_t slot, std::uint64_t start, std::uint64_t end) const;

  const kvm::VirtualMachine& vm_;
  const machine::GuestMemory& memory_;
  std::bitset<machine::max_extents> added_;
};

} // namespace casemate::vmm
