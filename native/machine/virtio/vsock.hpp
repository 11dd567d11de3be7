// The socket device: carries the packets of VsockStreams through three queues. VIRTIO 1.2,
// section 5.10
#pragma once

#include "machine/virtio/device.hpp"
#include "machine/virtio/vsock_streams.hpp"

namespace casemate::machine::virtio {

class Vsock : public DeviceOf<Vsock> {
public:
  using Storage = VsockStreams::Storage;

  /// `storage` is all zeroes.
  Vsock(Storage& storage, sys::EventLoop& loop, const VsockStreams::Listener& node)
      : DeviceOf(DeviceType::Vsock, feature_stream, 3),
        streams_(storage, loop, node, {on_move, this}) {}

  // ---- From Node: see VsockStreams ----

  void connect(std::uint32_t id, std::uint32_t port, sys::Fd socket);
  bool accept(std::uint32_t id, sys::Fd socket);
  bool refuse(std::uint32_t id);

  // ---- From the transport ----

  void on_activate(std::uint64_t features);
  void on_reset();
  void on_kick(std::uint16_t queue);
  void on_read_config(std::uint32_t offset, std::span<std::byte> value);

private:
  static constexpr std::uint64_t feature_stream = 1;
  static constexpr std::uint16_t receive_queue = 0; // the guest receives
  static constexpr std::uint16_t transmit_queue = 1;
  static constexpr std::uint16_t event_queue = 2;

  static void on_move(void* device) { static_cast<Vsock*>(device)->send_packets(); }
  void send_packets();
  void receive_packets();
  void receive_packet();
  void send_event();

  VsockStreams streams_;
  Chain chain_;
  bool is_active_ = false;
  bool was_reset_ = false;      // which the guest's sockets of before are to hear of
  bool awaits_answers_ = false; // the guest's packets wait until it has taken ours
};

} // namespace casemate::machine::virtio
