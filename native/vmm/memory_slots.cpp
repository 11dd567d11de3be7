#include "vmm/memory_slots.hpp"

namespace casemate::vmm {

using machine::GuestMemory;

sys::SysError MemorySlots::add_all() {
  added_.set();
  if (auto error = set(0, 0, memory_.low_size())) {
    return error;
  }
  return memory_.high_size() > 0 ? set(1, GuestMemory::hole_end, memory_.end()) : sys::SysError{};
}

sys::SysError MemorySlots::add_below(std::uint64_t end) {
  for (std::uint64_t at = 0; at < end;) {
    const machine::Extent extent = *machine::extent_of(memory_, at);
    if (!has(extent)) {
      if (auto error = add(extent)) {
        return error;
      }
    }
    at = extent.end;
  }
  return {};
}

sys::SysError MemorySlots::add(const machine::Extent& extent) {
  added_[extent.number] = true;
  return set(extent.number, extent.start, extent.end);
}

sys::SysError MemorySlots::set(std::uint32_t slot, std::uint64_t start, std::uint64_t end) const {
  kvm_userspace_memory_region region{};
  region.slot = slot;
  region.guest_phys_addr = start;
  region.memory_size = end - start;
  region.userspace_addr = reinterpret_cast<std::uintptr_t>(memory_.at(start, end - start));
  return vm_.set_user_memory_region(region);
}

} // namespace casemate::vmm
