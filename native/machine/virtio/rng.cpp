#include "machine/virtio/rng.hpp"

#include "sys/syscall.hpp"

#include <algorithm>

namespace casemate::machine::virtio {

namespace {

/// Of one buffer, and of buffers in one turn. A driver that asks for more gets less, as it
/// must be ready for: nobody else waits while it is served.
constexpr std::size_t max_bytes = 4096;
constexpr unsigned max_buffers = 16;

/// getrandom(2). How much of the buffer has been filled.
std::uint32_t fill(std::span<const Segment> segments) {
  std::size_t filled = 0;
  for (const Segment& segment : segments) {
    const std::size_t size = std::min(segment.size, max_bytes - filled);
    const long count = sys::call_retry(__NR_getrandom, segment.data, size, 0);
    filled += count > 0 ? static_cast<std::size_t>(count) : 0;
    if (count < static_cast<long>(size) || filled == max_bytes) {
      break;
    }
  }
  return static_cast<std::uint32_t>(filled);
}

} // namespace

void Rng::on_kick(std::uint16_t index) {
  Queue& requests = queue(index);
  requests.disable_kicks();
  for (unsigned count = 0; count < max_buffers && requests.pop(chain_); ++count) {
    requests.push(chain_.head(), fill(chain_.writable()));
  }
  if (requests.enable_kicks()) {
    kick_again(index);
  }
  notify(requests);
}

} // namespace casemate::machine::virtio
