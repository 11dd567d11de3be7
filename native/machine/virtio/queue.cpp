#include "machine/virtio/queue.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

namespace casemate::machine::virtio {

namespace {

// Of a descriptor. Section 2.7.5
constexpr std::uint16_t flag_next = 1;
constexpr std::uint16_t flag_write = 2;
constexpr std::uint16_t flag_indirect = 4;

/// Of the available ring: the driver wants no interrupts. Section 2.7.6
constexpr std::uint16_t flag_no_interrupt = 1;
/// Of the used ring: the device wants no kicks. Section 2.7.8
constexpr std::uint16_t flag_no_notify = 1;

// Both rings begin with flags and index; behind its elements each has the index that
// feature_event_index is about.
constexpr std::size_t flags_offset = 0;
constexpr std::size_t index_offset = 2;
constexpr std::size_t elements_offset = 4;

struct UsedElement {
  std::uint32_t id;
  std::uint32_t written;
};

constexpr std::size_t available_size(std::size_t count) { return elements_offset + 2 * count + 2; }
constexpr std::size_t used_size(std::size_t count) {
  return elements_offset + sizeof(UsedElement) * count + 2;
}

// The rings are aligned, and shared with other processors: these are single accesses.

std::uint16_t load(const std::byte* at) {
  return __atomic_load_n(reinterpret_cast<const std::uint16_t*>(at), __ATOMIC_ACQUIRE);
}

void store(std::byte* at, std::uint16_t value) {
  __atomic_store_n(reinterpret_cast<std::uint16_t*>(at), value, __ATOMIC_RELEASE);
}

/// What is stored before it is seen before what is loaded behind it. Not by
/// std::atomic_thread_fence(), which ThreadSanitizer does not know.
void full_fence() { asm volatile("lock orl $0, (%%rsp)" ::: "memory", "cc"); }

/// Copies between `bytes` and what of `segments` is at `offset`.
template <typename Bytes, typename Copy>
bool transfer(std::span<const Segment> segments, std::uint32_t size, std::uint32_t offset,
              Bytes bytes, Copy copy) {
  if (offset > size || bytes.size() > size - offset) {
    return false;
  }
  std::size_t skip = offset;
  for (const Segment& segment : segments) {
    if (bytes.empty()) {
      break;
    }
    if (skip >= segment.size) {
      skip -= segment.size;
      continue;
    }
    const std::size_t count = std::min(bytes.size(), segment.size - skip);
    copy(segment.data + skip, bytes.first(count));
    bytes = bytes.subspan(count);
    skip = 0;
  }
  return true;
}

} // namespace

struct Queue::Descriptor {
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  std::uint16_t flags = 0;
  std::uint16_t next = 0;
};

bool Chain::read(std::uint32_t offset, std::span<std::byte> to) const {
  const bool fits = transfer(readable(), readable_size_, offset, to,
                             [](const std::byte* guest, std::span<std::byte> part) {
                               std::memcpy(part.data(), guest, part.size());
                             });
  // The copy is what gets checked and used; nothing may read the original again.
  asm volatile("" ::: "memory");
  return fits;
}

bool Chain::write(std::uint32_t offset, std::span<const std::byte> from) const {
  return transfer(writable(), writable_size_, offset, from,
                  [](std::byte* guest, std::span<const std::byte> part) {
                    std::memcpy(guest, part.data(), part.size());
                  });
}

bool Queue::start(const GuestMemory& memory, const QueueLayout& layout, std::uint64_t features) {
  *this = Queue();
  const std::size_t size = layout.size;
  if (size == 0 || size > max_queue_size || (size & (size - 1)) != 0 ||
      layout.descriptors % 16 != 0 || layout.available % 2 != 0 || layout.used % 4 != 0) {
    return false;
  }
  descriptors_ = memory.at(layout.descriptors, sizeof(Descriptor) * size);
  available_ = memory.at(layout.available, available_size(size));
  used_ = memory.at(layout.used, used_size(size));
  if (descriptors_ == nullptr || available_ == nullptr || used_ == nullptr) {
    return false;
  }
  memory_ = memory;
  size_ = layout.size;
  has_indirect_ = (features & feature_indirect) != 0;
  has_event_index_ = (features & feature_event_index) != 0;
  return true;
}

bool Queue::pop(Chain& chain) {
  if (size_ == 0 || is_broken_) {
    return false;
  }
  const std::uint16_t index = load(available_ + index_offset);
  const auto count = static_cast<std::uint16_t>(index - next_);
  if (count == 0) {
    return false;
  }
  if (count > size_) {
    return fail();
  }
  const std::uint16_t head = load(available_ + elements_offset + 2 * (next_ % size_));
  if (!walk(head, chain)) {
    return fail();
  }
  ++next_;
  return true;
}

/// Follows a chain to its end. At most as many steps as a chain may have descriptors, each
/// table's own number of them: so one that bites its tail ends, too.
bool Queue::walk(std::uint16_t head, Chain& chain) {
  chain.head_ = head;
  chain.count_ = 0;
  chain.readable_count_ = 0;
  chain.readable_size_ = 0;
  chain.writable_size_ = 0;

  const std::byte* table = descriptors_;
  std::uint32_t table_size = size_;
  std::uint32_t left = table_size;
  bool is_indirect = false;
  for (std::uint16_t index = head;;) {
    if (index >= table_size || left-- == 0) {
      return false;
    }
    Descriptor descriptor;
    std::memcpy(&descriptor, table + sizeof descriptor * index, sizeof descriptor);
    // The copy is what gets checked and used; nothing may read the original again.
    asm volatile("" ::: "memory");
    if ((descriptor.flags & flag_indirect) != 0) {
      const std::uint32_t count = descriptor.length / sizeof descriptor;
      if (!has_indirect_ || is_indirect || (descriptor.flags & flag_next) != 0 ||
          descriptor.length % sizeof descriptor != 0 || count == 0 || count > max_queue_size) {
        return false;
      }
      table = memory_.at(descriptor.address, descriptor.length);
      if (table == nullptr) {
        return false;
      }
      table_size = left = count;
      is_indirect = true;
      index = 0;
      continue;
    }
    if (!append(descriptor, chain)) {
      return false;
    }
    if ((descriptor.flags & flag_next) == 0) {
      return true;
    }
    index = descriptor.next;
  }
}

bool Queue::append(const Descriptor& descriptor, Chain& chain) {
  const bool is_writable = (descriptor.flags & flag_write) != 0;
  const bool has_writable = chain.count_ > chain.readable_count_;
  const std::uint64_t total = std::uint64_t{chain.readable_size_} + chain.writable_size_;
  if ((has_writable && !is_writable) ||
      total + descriptor.length > std::numeric_limits<std::uint32_t>::max()) {
    return false;
  }
  if (descriptor.length == 0) {
    return true; // there is nothing to it
  }
  std::byte* data = memory_.at(descriptor.address, descriptor.length);
  if (data == nullptr || chain.count_ == chain.segments_.size()) {
    return false;
  }
  chain.segments_[chain.count_++] = {data, descriptor.length};
  if (is_writable) {
    chain.writable_size_ += descriptor.length;
  } else {
    chain.readable_size_ += descriptor.length;
    ++chain.readable_count_;
  }
  return true;
}

void Queue::stage(std::uint16_t head, std::uint32_t written) {
  if (size_ == 0 || is_broken_) {
    return;
  }
  const UsedElement element{head, written};
  std::memcpy(used_ + elements_offset + sizeof element * (used_index_ % size_), &element,
              sizeof element);
  ++used_index_;
}

void Queue::publish() {
  if (size_ > 0 && !is_broken_) {
    // Released: the elements, and what the device has written, are seen before it.
    store(used_ + index_offset, used_index_);
  }
}

bool Queue::take_notification() {
  if (size_ == 0 || is_broken_ || used_index_ == told_) {
    return false;
  }
  const std::uint16_t before = std::exchange(told_, used_index_);
  // The driver says what it wants, and then looks at the used index; here it is the other
  // way round, so that one of the two sees what the other did.
  full_fence();
  if (!has_event_index_) {
    return (load(available_ + flags_offset) & flag_no_interrupt) == 0;
  }
  const std::uint16_t event = load(available_ + elements_offset + 2 * std::size_t{size_});
  return static_cast<std::uint16_t>(used_index_ - event - 1) <
         static_cast<std::uint16_t>(used_index_ - before);
}

bool Queue::enable_kicks() {
  if (size_ == 0 || is_broken_) {
    return false;
  }
  if (has_event_index_) {
    store(used_ + elements_offset + sizeof(UsedElement) * size_, next_);
  } else {
    store(used_ + flags_offset, 0);
  }
  full_fence(); // as above, the roles exchanged
  return load(available_ + index_offset) != next_;
}

void Queue::disable_kicks() {
  // With event indices it is enough not to ask for the next one.
  if (size_ > 0 && !is_broken_ && !has_event_index_) {
    store(used_ + flags_offset, flag_no_notify);
  }
}

} // namespace casemate::machine::virtio
