#include "machine/virtio/device.hpp"

#include "sys/clock.hpp"

#include <algorithm>

namespace casemate::machine::virtio {

void Device::reset() {
  reset_(*this);
  for (Queue& queue : queues_) {
    queue.stop();
  }
  again_ = 0;
  has_used_ = false;
  is_broken_ = false;
}

bool Device::may_go_on(const RateLimit& limit, sys::EventLoop::Timer& timer) const {
  if (!limit.is_limited()) {
    return true;
  }
  const std::uint64_t at = limit.wait(sys::monotonic_ns());
  if (at != 0) {
    loop().set_timer(timer, at);
  }
  return at == 0;
}

void Device::charge(RateLimit& limit, std::uint64_t bytes) {
  if (limit.is_limited()) {
    limit.charge(bytes, sys::monotonic_ns());
  }
}

void Device::report(std::uint32_t operation, int error) {
  const std::uint32_t bit = 1u << operation;
  if ((reported_ & bit) == 0) {
    reported_ |= bit;
    reporter_.report(reporter_.context, *this, operation, error);
  }
}

bool Device::is_broken() const {
  return is_broken_ ||
         std::ranges::any_of(queues_, [](const Queue& queue) { return queue.is_broken(); });
}

} // namespace casemate::machine::virtio
