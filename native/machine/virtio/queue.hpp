// Split virtqueues: how a driver hands buffers to a device, and gets them back. Virtual
// I/O Device (VIRTIO) 1.2, section 2.7
//
// The one accessor of rings and descriptors. All of them lie in guest memory and may
// change at any time: each field is read once, and what was read is what is checked and
// used. A queue that makes no sense is broken, and stays so until the driver resets the
// device; nothing a driver writes leads to more work than its buffers are worth.
#pragma once

#include "machine/guest_memory.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

namespace casemate::machine::virtio {

/// Of device-independent features, the ones that queues know. Section 6
inline constexpr std::uint64_t feature_indirect = std::uint64_t{1} << 28;
inline constexpr std::uint64_t feature_event_index = std::uint64_t{1} << 29;
inline constexpr std::uint64_t feature_version_1 = std::uint64_t{1} << 32;

/// The most that any queue of ours has; also the longest chain, by the driver's own rules.
inline constexpr std::uint16_t max_queue_size = 256;

/// Contiguous guest memory, in RAM as a whole. struct iovec, as the kernel takes it.
struct Segment {
  std::byte* data = nullptr;
  std::size_t size = 0;
};
static_assert(sizeof(Segment) == 16);

/// What a driver has made available as one: memory for the device to read, and memory for
/// it to write to, either of which may be empty. The memory is the guest's: read() what is
/// to be checked, once.
class Chain {
public:
  std::uint16_t head() const { return head_; }
  std::span<const Segment> readable() const { return {segments_.data(), readable_count_}; }
  std::span<const Segment> writable() const {
    return std::span(segments_).subspan(readable_count_, count_ - readable_count_);
  }
  /// To be narrowed down: the chain itself stays as it was.
  std::span<Segment> readable() { return {segments_.data(), readable_count_}; }
  std::span<Segment> writable() {
    return std::span(segments_).subspan(readable_count_, count_ - readable_count_);
  }
  /// In bytes. Both together are below 4 GiB.
  std::uint32_t readable_size() const { return readable_size_; }
  std::uint32_t writable_size() const { return writable_size_; }

  /// Copies out of the readable part, from `offset` on. False where it is too short.
  bool read(std::uint32_t offset, std::span<std::byte> to) const;
  /// Copies into the writable part, likewise.
  bool write(std::uint32_t offset, std::span<const std::byte> from) const;

  template <typename T> bool read_value(std::uint32_t offset, T& value) const {
    static_assert(std::is_trivially_copyable_v<T>);
    return read(offset, std::as_writable_bytes(std::span(&value, 1)));
  }
  template <typename T> bool write_value(std::uint32_t offset, const T& value) const {
    static_assert(std::is_trivially_copyable_v<T>);
    return write(offset, std::as_bytes(std::span(&value, 1)));
  }

private:
  friend class Queue;

  std::array<Segment, max_queue_size> segments_;
  std::uint16_t head_ = 0;
  std::uint16_t count_ = 0;
  std::uint16_t readable_count_ = 0;
  std::uint32_t readable_size_ = 0;
  std::uint32_t writable_size_ = 0;
};

/// Where a driver has put a queue. Anything may stand here.
struct QueueLayout {
  std::uint16_t size = 0;
  std::uint64_t descriptors = 0;
  std::uint64_t available = 0;
  std::uint64_t used = 0;
};

class Queue {
public:
  /// Begins at the driver's index 0. False where the layout is none. `features` are those
  /// negotiated.
  bool start(const GuestMemory& memory, const QueueLayout& layout, std::uint64_t features);
  void stop() { *this = Queue(); }

  bool is_started() const { return size_ > 0; }
  /// Whether the driver has broken the rules. The device needs a reset, and its queues
  /// give and take nothing more.
  bool is_broken() const { return is_broken_; }
  std::uint16_t size() const { return size_; }

  /// The driver's next chain. False where there is none (now), or the queue is broken. The
  /// same head may come again before it has been pushed: drivers can do that, too.
  /// `chain` is large: have one for all, not one on each stack.
  bool pop(Chain& chain);
  /// Undoes the last `count` pop()s, whose chains have not been pushed.
  void put_back(std::uint16_t count) { next_ = static_cast<std::uint16_t>(next_ - count); }

  /// Gives a chain back, of whose writable part the first `written` bytes have been
  /// written. In any order; each once.
  void push(std::uint16_t head, std::uint32_t written) {
    stage(head, written);
    publish();
  }
  /// The two halves of push(), for chains that the driver is to see all at once.
  void stage(std::uint16_t head, std::uint32_t written);
  void publish();

  /// Whether what has been pushed since the last call is worth an interrupt to the driver.
  bool take_notification();

  /// Kicks are wanted, or not: advice to the driver. Asked for, they come for what is made
  /// available from now on; true says that there is some already, for which none comes.
  bool enable_kicks();
  void disable_kicks();

private:
  struct Descriptor;

  bool walk(std::uint16_t head, Chain& chain);
  bool append(const Descriptor& descriptor, Chain& chain);
  bool fail() {
    is_broken_ = true;
    return false;
  }

  GuestMemory memory_;
  // The three parts, all of each in RAM; null in a queue that is not started.
  const std::byte* descriptors_ = nullptr;
  const std::byte* available_ = nullptr;
  std::byte* used_ = nullptr;
  std::uint16_t size_ = 0;
  std::uint16_t next_ = 0;       // of the available ring: the next to pop
  std::uint16_t used_index_ = 0; // of the used ring: the next to push
  std::uint16_t told_ = 0;       // used_index_ at the last take_notification()
  bool has_indirect_ = false;
  bool has_event_index_ = false;
  bool is_broken_ = false;
};

} // namespace casemate::machine::virtio
