// What is added to an epoll instance, changed in it and removed from it, where there is a libc.
// The monitor's event loop (sys/event_loop.hpp) has none, and its own struct epoll_event.
#pragma once

#include "sys/result.hpp"
#include "sys/syscall.hpp"

#include <cstdint>
#include <sys/epoll.h>

namespace casemate::sys {

/// epoll_ctl(2); `tag` is what epoll_wait(2) tells of it.
inline SysError epoll_control(int epoll, int operation, int fd, std::uint64_t tag = 0,
                              std::uint32_t events = 0) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = tag;
  return check("epoll_ctl", call(__NR_epoll_ctl, epoll, operation, fd, &event));
}

} // namespace casemate::sys
