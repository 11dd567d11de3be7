#pragma once

#include <cstdint>
#include <time.h>

namespace casemate::jail {

/// CLOCK_MONOTONIC in nanoseconds, by the vDSO and not by a system call: a launch asks
/// thirty times. Async-signal-safe, also between clone3 and execve; signal-safety(7).
inline std::uint64_t monotonic_ns() {
  struct timespec now {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000u +
         static_cast<std::uint64_t>(now.tv_nsec);
}

} // namespace casemate::jail
