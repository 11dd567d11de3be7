// A virtio device without its transport: what each of them is written against. It knows
// its queues, the guest's memory and the event loop, and nothing of KVM, so tests and
// fuzzers drive it on plain memory.
//
// All of it runs with the machine's lock held. What may need a system call runs on the
// event loop: on_activate(), on_reset(), on_kick() and what the loop calls back by itself.
// Registers and configuration are accessed on the vCPUs' threads, whose filters allow none.
#pragma once

#include "machine/rate_limit.hpp"
#include "machine/virtio/queue.hpp"
#include "sys/event_loop.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace casemate::machine::virtio {

/// Section 5
enum class DeviceType : std::uint32_t {
  Net = 1,
  Block = 2,
  Console = 3,
  Rng = 4,
  Balloon = 5,
  Vsock = 19
};

class Device;

/// Takes a device's bad news to Node: something behind it went wrong. `operation` is one of
/// enum casemate_device_operation in vmm/wire.h. On the event loop only.
struct Reporter {
  void (*report)(void* context, const Device& device, std::uint32_t operation, int error) = nullptr;
  void* context = nullptr;
};

class Device {
public:
  static constexpr std::uint16_t max_queues = 8;

  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  DeviceType type() const { return type_; }
  /// What it offers; its transport offers feature_version_1, _indirect and _event_index
  /// besides.
  std::uint64_t features() const { return features_; }
  std::uint16_t queue_count() const { return queue_count_; }
  Queue& queue(std::uint16_t index) { return queues_[index]; }

  /// Once, before all else.
  void attach(const GuestMemory& memory, sys::EventLoop& loop, const Reporter& reporter) {
    memory_ = memory;
    loop_ = &loop;
    reporter_ = reporter;
  }

  // ---- From the transport: see DeviceOf ----

  void activate(std::uint64_t features) { activate_(*this, features); }
  /// The queues are stopped behind on_reset().
  void reset();
  void kick(std::uint16_t queue) { kick_(*this, queue); }
  void read_config(std::uint32_t offset, std::span<std::byte> value) {
    read_config_(*this, offset, value);
  }
  void write_config(std::uint32_t offset, std::span<const std::byte> value) {
    write_config_(*this, offset, value);
  }

  // ---- To the transport, which asks after each of these ----

  /// Since the last call: buffers have been used that the driver wants to hear of.
  bool take_used() { return std::exchange(has_used_, false); }
  bool take_config_change() { return std::exchange(has_config_change_, false); }
  /// Queues to be kicked again, as bits.
  std::uint32_t take_again() { return std::exchange(again_, 0); }
  bool has_again() const { return again_ != 0; }
  /// The driver has broken a queue, or the device cannot go on: it needs a reset.
  bool is_broken() const;

protected:
  Device(DeviceType type, std::uint64_t features, std::uint16_t queue_count)
      : type_(type), features_(features), queue_count_(queue_count) {}
  ~Device() = default;

  const GuestMemory& memory() const { return memory_; }
  sys::EventLoop& loop() const { return *loop_; }

  /// Behind push()es: the driver is interrupted, where it wants to be.
  void notify(Queue& queue) { has_used_ |= queue.take_notification(); }
  /// What read_config() gives has changed.
  void notify_config() { has_config_change_ = true; }
  void fail() { is_broken_ = true; }

  /// There is more to do in this queue: on_kick() is called once more, when others have had
  /// their turn. So a guest that never stops asking has its share of the loop and no more.
  void kick_again(std::uint16_t queue) { again_ |= 1u << queue; }
  /// Whether a limit allows another operation now. Where it does not, the timer says when it
  /// does.
  bool may_go_on(const RateLimit& limit, sys::EventLoop::Timer& timer) const;
  /// An operation of so many bytes was done.
  static void charge(RateLimit& limit, std::uint64_t bytes);

  /// The first time for each operation: a guest that tries again and again is no news.
  void report(std::uint32_t operation, int error);

private:
  template <typename Self> friend class DeviceOf;

  // Pointers that each object has, rather than a virtual table: that is constant data with
  // addresses in it, which a position-independent program relocates at its start. Launches
  // of guests without devices would pay for it.
  void (*activate_)(Device&, std::uint64_t);
  void (*reset_)(Device&);
  void (*kick_)(Device&, std::uint16_t);
  void (*read_config_)(Device&, std::uint32_t, std::span<std::byte>);
  void (*write_config_)(Device&, std::uint32_t, std::span<const std::byte>);

  DeviceType type_;
  std::uint64_t features_;
  std::uint16_t queue_count_;
  std::uint32_t again_ = 0;
  std::uint32_t reported_ = 0; // operations, as bits
  bool has_used_ = false;
  bool has_config_change_ = false;
  bool is_broken_ = false;
  std::array<Queue, max_queues> queues_{};
  GuestMemory memory_;
  sys::EventLoop* loop_ = nullptr;
  Reporter reporter_;
};

/// What a device derives from, with itself as `Self`: each of these functions that it has
/// takes the place of the one here.
template <typename Self> class DeviceOf : public Device {
public:
  /// The driver is ready, and has accepted these of the device's features. Queues that it
  /// has not set up give nothing.
  void on_activate(std::uint64_t /* features */) {}
  /// Ends all that is under way before it returns: afterwards nothing of the device touches
  /// guest memory. The queues are stopped behind this.
  void on_reset() {}
  /// The driver has made something available in this queue, or says so. Also called where
  /// nothing is: a driver's word is worth that much.
  void on_kick(std::uint16_t /* queue */) {}
  /// `value` is all zeroes, for what is not there.
  void on_read_config(std::uint32_t /* offset */, std::span<std::byte> /* value */) {}
  void on_write_config(std::uint32_t /* offset */, std::span<const std::byte> /* value */) {}

protected:
  DeviceOf(DeviceType type, std::uint64_t features, std::uint16_t queue_count)
      : Device(type, features, queue_count) {
    // One by one: as one aggregate they would be constant data again.
    activate_ = [](Device& device, std::uint64_t features) { self(device).on_activate(features); };
    reset_ = [](Device& device) { self(device).on_reset(); };
    kick_ = [](Device& device, std::uint16_t queue) { self(device).on_kick(queue); };
    read_config_ = [](Device& device, std::uint32_t offset, std::span<std::byte> value) {
      self(device).on_read_config(offset, value);
    };
    write_config_ = [](Device& device, std::uint32_t offset, std::span<const std::byte> value) {
      self(device).on_write_config(offset, value);
    };
  }

private:
  static Self& self(Device& device) { return static_cast<Self&>(device); }
};

/// Copies what of a device's configuration is asked for: `config` is all of it, as the
/// driver sees it.
template <typename Config>
void read_from_config(const Config& config, std::uint32_t offset, std::span<std::byte> value) {
  const auto bytes = std::as_bytes(std::span(&config, 1));
  for (std::byte& byte : value) {
    byte = offset < bytes.size() ? bytes[offset] : std::byte{0};
    ++offset;
  }
}

} // namespace casemate::machine::virtio
