// The network device. Frames go between the guest's memory and a tap without a copy, with
// their offloads; or to a process that speaks passt's protocol, over a stream socket.
// VIRTIO 1.2, section 5.1
#pragma once

#include "machine/virtio/device.hpp"
#include "sys/event_loop.hpp"
#include "sys/result.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace casemate::machine::virtio {

/// What a driver has given to receive into, popped and not yet used: enough for the largest
/// frame, so that one readv(2) takes any.
class ReceiveBuffers {
public:
  /// Pops chains until there are `wanted` bytes or `chains` of them, or no more to be had.
  void fill(Queue& queue, Chain& scratch, std::size_t wanted, std::size_t chains);
  void clear();

  std::span<const Segment> segments() const { return {segments_.data(), segment_count_}; }
  /// In bytes.
  std::size_t size() const { return size_; }
  /// Whether no more chains can be had, however many the driver gives.
  bool is_full() const { return is_full_; }

  /// Copies to `offset` of the bytes that there are.
  void write(std::size_t offset, std::span<const std::byte> from) const;
  /// How many chains the first `size` bytes take.
  std::uint16_t chains_of(std::size_t size) const;
  /// Gives these chains back, all at once: a driver that sees the first of a frame looks for
  /// the others right away.
  void use(Queue& queue, std::size_t size);

private:
  struct Taken {
    std::uint16_t head = 0;
    std::uint16_t segments = 0;
    std::uint32_t size = 0;
  };

  std::array<Segment, 2 * max_queue_size> segments_;
  std::array<Taken, max_queue_size> chains_;
  std::size_t segment_count_ = 0;
  std::size_t chain_count_ = 0;
  std::size_t size_ = 0;
  bool is_full_ = false;
};

enum class NetBackend : std::uint8_t {
  Tap,   // a frame a call, behind the header of virtio
  Stream // frames without header, each behind its length: 32 bits, big-endian
};

struct NetOptions {
  NetBackend backend = NetBackend::Tap;
  int fd = -1; // stays open, never waits
  std::array<std::uint8_t, 6> mac{};
  std::uint16_t mtu = 0;      // told to the driver; 0: nothing is
  std::uint32_t offloads = 0; // of a tap: what it can do, TUN_F_*
  RateLimitOptions receive_limit{};
  RateLimitOptions send_limit{};
};

class Net : public DeviceOf<Net> {
public:
  static constexpr std::uint16_t receive_queue = 0;
  static constexpr std::uint16_t transmit_queue = 1;
  /// struct virtio_net_hdr_v1, before each frame in a buffer.
  static constexpr std::size_t header_size = 12;
  /// The largest datagram that there is, and its Ethernet header.
  static constexpr std::size_t max_frame = 65535 + 14;
  static constexpr std::size_t min_frame = 14;
  /// Of a frame in a stream.
  static constexpr std::size_t length_size = 4;

  explicit Net(const NetOptions& options);

  /// What a tap can do, TUN_F_*, of which it does nothing afterwards.
  static std::uint32_t probe_offloads(int tap);

  void on_activate(std::uint64_t features);
  void on_reset();
  void on_kick(std::uint16_t queue);
  void on_read_config(std::uint32_t offset, std::span<std::byte> value);

private:
  /// struct virtio_net_config, as far as our features go.
  struct Config {
    std::array<std::uint8_t, 6> mac{};
    std::uint16_t status = 0;
    std::uint16_t max_queue_pairs = 0;
    std::uint16_t mtu = 0;
  };

  enum class Sent : std::uint8_t { Done, Wait };
  enum class Received : std::uint8_t { Frame, Nothing, NoBuffers };

  void receive();
  Received receive_from_tap();
  Received receive_from_stream();
  Received receive_into_buffer();
  bool has_room(std::size_t size);
  void finish_frame(std::size_t size);

  void transmit();
  Sent send_to_tap();
  Sent send_to_stream();
  Sent send_unsent();

  void watch();
  void lose(std::uint32_t operation, long result);

  sys::EventLoop::Source source_;
  int fd_;
  std::uint32_t watched_ = 0; // EPOLL*
  std::uint32_t offloads_;
  Config config_;
  NetBackend backend_;
  bool is_active_ = false;
  bool is_lost_ = false;         // what was behind fd_ is gone
  bool is_mergeable_ = false;    // a frame may take several chains
  bool wants_buffers_ = false;   // there is nothing to receive into
  bool waits_to_send_ = false;   // until fd_ takes more
  bool rests_receiving_ = false; // until a limit allows more
  bool rests_sending_ = false;
  RateLimit receive_limit_;
  RateLimit send_limit_;
  sys::EventLoop::Timer receive_timer_;
  sys::EventLoop::Timer send_timer_;
  std::size_t largest_frame_ = 0; // that a tap gives

  Chain chain_;
  ReceiveBuffers buffers_;
  std::array<Segment, max_queue_size + 1> vectors_; // of a frame and its length
  // Of a stream: what has come and is not with the driver yet, and the rest of a frame whose
  // beginning is sent. That goes on even where the driver resets the device meanwhile, or
  // what follows would be taken for frames at the wrong place.
  std::size_t incoming_begin_ = 0;
  std::size_t incoming_end_ = 0;
  std::size_t unsent_begin_ = 0;
  std::size_t unsent_end_ = 0;
  std::array<std::byte, 2 * (length_size + max_frame)> incoming_;
  std::array<std::byte, length_size + max_frame> unsent_;
};

} // namespace casemate::machine::virtio
