#pragma once

#include "sys/syscall.hpp"

#include <cstdint>

namespace casemate::sys {

/// CLOCK_MONOTONIC in nanoseconds, by the real system call (about 0.1 us): the vDSO is
/// libc's to find, and the monitor has none.
inline std::uint64_t monotonic_ns() {
  struct {
    long seconds;
    long nanoseconds;
  } now{};
  call(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, &now);
  return static_cast<std::uint64_t>(now.seconds) * 1'000'000'000u +
         static_cast<std::uint64_t>(now.nanoseconds);
}

} // namespace casemate::sys
