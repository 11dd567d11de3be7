#pragma once

#include "sys/syscall.hpp"

#include <cstdint>

namespace casemate::sys {

/// struct timespec of the kernel.
struct Instant {
  long seconds;
  long nanoseconds;

  [[nodiscard]] std::uint64_t ns() const {
    return static_cast<std::uint64_t>(seconds) * 1'000'000'000u +
           static_cast<std::uint64_t>(nanoseconds);
  }
};

/// CLOCK_MONOTONIC in nanoseconds, by the real system call (about 0.1 us): the vDSO is
/// libc's to find, and the monitor has none.
inline std::uint64_t monotonic_ns() {
  Instant now{};
  call(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, &now);
  return now.ns();
}

} // namespace casemate::sys
