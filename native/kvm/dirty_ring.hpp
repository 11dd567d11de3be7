#pragma once

#include "kvm/vcpu.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

namespace casemate::kvm {

/// The ring in which the kernel notes the pages that one vCPU dirties: an alternative
/// to the dirty log, whose cost follows the pages written and not the size of the slot.
/// The ring's size is set with KVM_CAP_DIRTY_LOG_RING before the first vCPU is created.
///
/// Harvest with next(); then VirtualMachine::reset_dirty_rings() lets the kernel use
/// the harvested entries again.
class DirtyRing {
public:
  DirtyRing() = default;

  /// `size` in bytes, as given to the capability: a power of two.
  static sys::Result<DirtyRing> map(const Vcpu& vcpu, std::size_t size) {
    constexpr int read_write = 1 | 2;
    constexpr int shared = 1;
    constexpr std::uint64_t page_size = 4096;
    auto mapping = sys::Mapping::map(size, read_write, shared, vcpu.fd(),
                                     KVM_DIRTY_LOG_PAGE_OFFSET * page_size);
    if (!mapping) {
      return mapping.error();
    }
    DirtyRing ring;
    ring.mapping_ = std::move(mapping).value();
    return ring;
  }

  /// The next dirty page: `slot` (with the address space in its upper 16 bits) and
  /// `offset`, its number within the slot. Nothing where there is none at present.
  std::optional<kvm_dirty_gfn> next() {
    if (!mapping_) {
      return std::nullopt;
    }
    auto* entries = reinterpret_cast<kvm_dirty_gfn*>(mapping_.data());
    auto& entry = entries[next_ & (mapping_.size() / sizeof(kvm_dirty_gfn) - 1)];
    // The flag is what hands an entry over, in both directions: it is read before the
    // rest and written after it.
    if ((__atomic_load_n(&entry.flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY) == 0) {
      return std::nullopt;
    }
    const kvm_dirty_gfn page{0, entry.slot, entry.offset};
    __atomic_store_n(&entry.flags, static_cast<std::uint32_t>(KVM_DIRTY_GFN_F_RESET),
                     __ATOMIC_RELEASE);
    ++next_;
    return page;
  }

private:
  sys::Mapping mapping_;
  std::uint64_t next_ = 0;
};

} // namespace casemate::kvm
