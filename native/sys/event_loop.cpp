#include "sys/event_loop.hpp"

#include "sys/clock.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace casemate::sys {

namespace {

constexpr int epoll_cloexec = 02000000;
constexpr int control_add = 1;
constexpr int control_delete = 2;
constexpr int control_modify = 3;

constexpr std::uint64_t nanoseconds_per_millisecond = 1'000'000;

} // namespace

SysError EventLoop::open() {
  const long fd = call(__NR_epoll_create1, epoll_cloexec);
  if (fd >= 0) {
    epoll_.reset(static_cast<int>(fd));
  }
  return check("epoll_create1", fd);
}

SysError EventLoop::add(Source& source, int fd, std::uint32_t events) {
  const EpollEvent event{events, &source};
  const auto error =
      check("epoll_ctl", call(__NR_epoll_ctl, epoll_.get(), control_add, fd, &event));
  if (!error) {
    source.fd = fd;
  }
  return error;
}

SysError EventLoop::change(Source& source, std::uint32_t events) {
  const EpollEvent event{events, &source};
  return check("epoll_ctl", call(__NR_epoll_ctl, epoll_.get(), control_modify, source.fd, &event));
}

void EventLoop::remove(Source& source) {
  if (source.fd < 0) {
    return;
  }
  const EpollEvent unused; // older kernels want one
  call(__NR_epoll_ctl, epoll_.get(), control_delete, std::exchange(source.fd, -1), &unused);
  for (EpollEvent& event : happened_) {
    if (event.source == &source) {
      event.source = nullptr;
    }
  }
}

void EventLoop::set_timer(Timer& timer, std::uint64_t at) {
  clear_timer(timer);
  timer.at = at;
  Timer** place = &timers_;
  while (*place != nullptr && (*place)->at <= at) {
    place = &(*place)->next;
  }
  timer.next = std::exchange(*place, &timer);
}

void EventLoop::clear_timer(Timer& timer) {
  for (Timer** list : {&timers_, &due_}) {
    for (Timer** place = list; *place != nullptr; place = &(*place)->next) {
      if (*place == &timer) {
        *place = timer.next;
        return;
      }
    }
  }
}

int EventLoop::timeout(int milliseconds) const {
  if (timers_ == nullptr) {
    return milliseconds;
  }
  const std::uint64_t now = monotonic_ns();
  const std::uint64_t left = timers_->at > now ? timers_->at - now : 0;
  // Rounded up: not to wake before it is time, and then again and again.
  const std::uint64_t wait = std::min<std::uint64_t>(
      left / nanoseconds_per_millisecond + (left % nanoseconds_per_millisecond != 0 ? 1 : 0),
      std::numeric_limits<int>::max());
  return milliseconds < 0 ? static_cast<int>(wait) : std::min(milliseconds, static_cast<int>(wait));
}

void EventLoop::turn(int milliseconds, void (*after)(void* context), void* context) {
  const int limit = timeout(milliseconds);
  lock_.unlock();
  const long count =
      call(__NR_epoll_wait, epoll_.get(), batch_.data(), static_cast<int>(batch_.size()), limit);
  lock_.lock();
  happened_ = std::span(batch_).first(count > 0 ? static_cast<std::size_t>(count) : 0);
  while (!happened_.empty()) {
    const EpollEvent event = happened_.front();
    happened_ = happened_.subspan(1);
    if (event.source == nullptr) {
      continue;
    }
    const auto* source = static_cast<const Source*>(event.source);
    source->ready(source->context, event.events);
    if (after != nullptr) {
      after(context);
    }
    if (!happened_.empty()) {
      lock_.unlock(); // whoever waits for it has a turn
      lock_.lock();
    }
  }
  call_due(after, context);
}

void EventLoop::call_due(void (*after)(void* context), void* context) {
  if (timers_ == nullptr) {
    return;
  }
  // Taken out first: one that sets itself anew, for a time that has passed, waits for the next
  // turn.
  const std::uint64_t now = monotonic_ns();
  Timer** end = &timers_;
  while (*end != nullptr && (*end)->at <= now) {
    end = &(*end)->next;
  }
  Timer* rest = std::exchange(*end, nullptr);
  due_ = std::exchange(timers_, rest);
  while (due_ != nullptr) {
    const Timer& timer = *std::exchange(due_, due_->next);
    timer.due(timer.context);
    if (after != nullptr) {
      after(context);
    }
  }
}

} // namespace casemate::sys
