// Waiting for many descriptors and times at once, in one thread. epoll(7)
//
// Everything here is done with `lock` held, its owner's own calls too, but for the waiting:
// what is called back is never entered twice at once, however many threads hold that lock in
// turn. Sources and timers belong to who adds them and stay where they are meanwhile.
#pragma once

#include "sys/fd.hpp"
#include "sys/futex.hpp"
#include "sys/result.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace casemate::sys {

/// struct epoll_event, which is packed.
struct [[gnu::packed]] EpollEvent {
  std::uint32_t events = 0;
  void* source = nullptr;
};
static_assert(sizeof(EpollEvent) == 12);

class EventLoop {
public:
  /// What waits for a descriptor.
  struct Source {
    void (*ready)(void* context, std::uint32_t events) = nullptr; // EPOLL*
    void* context = nullptr;
    int fd = -1; // while it is added
  };

  /// What waits for a time.
  struct Timer {
    void (*due)(void* context) = nullptr;
    void* context = nullptr;
    // The loop's own.
    std::uint64_t at = 0;
    Timer* next = nullptr;
  };

  explicit EventLoop(Mutex& lock) : lock_(lock) {}

  SysError open();

  /// Level-triggered. EPOLLHUP and EPOLLERR come whether they are asked for or not: a source
  /// that wants nothing for a while is removed, or these keep the loop awake.
  SysError add(Source& source, int fd, std::uint32_t events);
  SysError change(Source& source, std::uint32_t events);
  /// Before its descriptor is closed. It is not called back any more, not even for what has
  /// happened already. Of one that is not added: nothing.
  void remove(Source& source);

  /// At a time of CLOCK_MONOTONIC in nanoseconds or up to a millisecond later, once, instead
  /// of an earlier one. In the past: in the next turn.
  void set_timer(Timer& timer, std::uint64_t at);
  void clear_timer(Timer& timer);

  /// Waits until something happens, or for `milliseconds` at most (-1: no limit), and calls
  /// back what waits for it, and behind each one `after(context)` where there is that.
  void turn(int milliseconds = -1, void (*after)(void* context) = nullptr, void* context = nullptr);

  /// Does what may take its time, as a disk does, without the lock: only what it does not
  /// guard. When it returns, others may have done what they like.
  template <typename Call> auto unlocked(Call call) {
    lock_.unlock();
    auto result = call();
    lock_.lock();
    return result;
  }

private:
  int timeout(int milliseconds) const;
  void call_due(void (*after)(void* context), void* context);

  Mutex& lock_;
  Fd epoll_;
  Timer* timers_ = nullptr; // in the order of their times
  Timer* due_ = nullptr;    // those yet to be called back
  std::array<EpollEvent, 16> batch_{};
  std::span<EpollEvent> happened_{}; // of the batch, those yet to be called back
};

} // namespace casemate::sys
