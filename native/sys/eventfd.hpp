#pragma once

#include "sys/fd.hpp"
#include "sys/result.hpp"
#include "sys/syscall.hpp"

#include <cstdint>

namespace casemate::sys {

/// An eventfd that never waits: what was told since it was last taken is one event. eventfd(2)
inline Result<Fd> make_eventfd() {
  constexpr int nonblock_cloexec = 04000 | 02000000;
  const long fd = call(__NR_eventfd2, 0, nonblock_cloexec);
  if (fd < 0) {
    return check("eventfd2", fd);
  }
  return Fd(static_cast<int>(fd));
}

inline void tell_eventfd(int fd) {
  const std::uint64_t one = 1;
  call_retry(__NR_write, fd, &one, sizeof one);
}

/// Makes it unreadable until it is told again.
inline void take_eventfd(int fd) {
  std::uint64_t count;
  call(__NR_read, fd, &count, sizeof count);
}

} // namespace casemate::sys
