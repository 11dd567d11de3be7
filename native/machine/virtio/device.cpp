#include "machine/virtio/device.hpp"

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
