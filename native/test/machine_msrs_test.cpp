#include "machine/msrs.hpp"

#include "test/unit.hpp"

#include <iterator>

using namespace casemate;

namespace {

/// As KVM reads the filter: the first range that has it says, and otherwise the default.
bool lets_through(const kvm_msr_filter& filter, std::uint32_t msr, std::uint32_t access) {
  for (const kvm_msr_filter_range& range : filter.ranges) {
    if ((range.flags & access) != 0 && msr >= range.base && msr - range.base < range.nmsrs) {
      const std::uint32_t bit = msr - range.base;
      return (range.bitmap[bit / 8] >> bit % 8 & 1) != 0;
    }
  }
  return (filter.flags & KVM_MSR_FILTER_DEFAULT_DENY) == 0;
}

} // namespace

TEST("the filter of a processor's registers has those that are allowed, and no other") {
  const kvm_msr_filter filter = machine::msr_filter();
  int count = 0;
  for (const std::uint32_t start : {0u, 0x40000000u, 0x4b564d00u, 0xc0000000u, 0xc0010000u}) {
    for (std::uint32_t msr = start; msr < start + 0x4000; ++msr) {
      const bool is_allowed = machine::is_allowed_msr(msr);
      count += is_allowed ? 1 : 0;
      CHECK_EQ(lets_through(filter, msr, KVM_MSR_FILTER_READ), is_allowed);
      CHECK_EQ(lets_through(filter, msr, KVM_MSR_FILTER_WRITE), is_allowed);
    }
  }
  CHECK(count > 100);
}

TEST("counters, virtualization and system management are none of a guest's registers") {
  const std::uint32_t denied[] = {
      0xc1,       0x186,      0x38f,      0x345,      // performance counters
      0x1c9,      0x680,                              // last branches
      0x3a,       0x480,      0xc0010114, 0xc0010117, // virtualization
      0x9e,       0x34,                               // system management
      0xce,       0x199,      0x606,      0xc0010063, // frequency and power
      0xc0010000, 0xc0010200, 0x40000000, 0x12345678, 0xffffffff};
  for (const std::uint32_t msr : denied) {
    CHECK(!machine::is_allowed_msr(msr));
  }
}
