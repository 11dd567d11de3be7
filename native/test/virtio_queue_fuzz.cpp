// libFuzzer: any bytes as the memory that a queue lies in, read by a device that copies what
// it is given; ASan and UBSan watch. The first bytes say how the queue is laid out.
#include "machine/virtio/queue.hpp"
#include "test/virtio.hpp"

#include <algorithm>
#include <cstdlib>
#include <memory>

using namespace casemate;
using namespace casemate::machine::virtio;

namespace {

struct Start {
  std::uint8_t size_exponent;
  std::uint8_t features;
  std::uint16_t descriptors;
  std::uint16_t available;
  std::uint16_t used;
};
static_assert(sizeof(Start) == 8);

constexpr std::size_t memory_size = 1 << 16;

void use(Queue& queue, Chain& chain) {
  std::array<std::byte, 64> bytes{};
  // No driver can have made more available at once than there is room for.
  for (unsigned count = 0; queue.pop(chain); ++count) {
    if (count > max_queue_size) {
      std::abort();
    }
    const std::size_t size = std::min<std::size_t>(bytes.size(), chain.readable_size());
    if (!chain.read(chain.readable_size() - static_cast<std::uint32_t>(size),
                    std::span(bytes).first(size)) ||
        chain.read(chain.readable_size(), std::span(bytes).first(1))) {
      std::abort();
    }
    const std::size_t room = std::min<std::size_t>(bytes.size(), chain.writable_size());
    if (!chain.write(0, std::span(bytes).first(room))) {
      std::abort();
    }
    queue.push(chain.head(), static_cast<std::uint32_t>(room));
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Start start;
  if (size < sizeof start) {
    return 0;
  }
  std::memcpy(&start, data, sizeof start);
  const unit::GuestRam ram(memory_size);
  const std::size_t given = std::min(size - sizeof start, memory_size);
  std::memcpy(ram.memory.at(0, given), data + sizeof start, given);
  const QueueLayout layout{static_cast<std::uint16_t>(1u << start.size_exponent % 10),
                           start.descriptors, start.available, start.used};
  std::uint64_t features = feature_version_1;
  features |= (start.features & 1) != 0 ? feature_indirect : 0;
  features |= (start.features & 2) != 0 ? feature_event_index : 0;
  Queue queue;
  static Chain chain;
  if (!queue.start(ram.memory, layout, features)) {
    return 0;
  }
  for (int turn = 0; turn < 3; ++turn) {
    queue.disable_kicks();
    use(queue, chain);
    static_cast<void>(queue.enable_kicks());
    static_cast<void>(queue.take_notification());
  }
  return 0;
}
