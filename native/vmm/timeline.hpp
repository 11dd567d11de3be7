#pragma once

#include "sys/clock.hpp"
#include "vmm/wire.h"

#include <cstdint>

namespace casemate::vmm {

/// When each step of the monitor was done.
struct Timeline {
  std::uint64_t stamps[CASEMATE_STAMP_COUNT] = {};

  std::uint64_t stamp(casemate_stamp which) { return stamps[which] = sys::monotonic_ns(); }
};

} // namespace casemate::vmm
