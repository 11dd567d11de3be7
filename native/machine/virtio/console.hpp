// A guest's console, hvc0 of Linux: a buffer at a time, where a serial port takes a byte.
// VIRTIO 1.2, section 5.3
#pragma once

#include "machine/virtio/device.hpp"
#include "sys/event_loop.hpp"

#include <cstdint>
#include <optional>

namespace casemate::machine::virtio {

class Console : public DeviceOf<Console> {
public:
  /// Stream sockets, which it does not own: one for what the guest writes, one for what it
  /// reads. A reader of `output` that does not keep pace stops the guest's writing.
  Console(int output, int input);

  void on_reset();
  void on_kick(std::uint16_t index);

private:
  void send_output();
  bool send_chain();
  void receive_input();
  std::optional<std::uint32_t> receive_chain();
  void watch(sys::EventLoop::Source& source, int fd, std::uint32_t events);

  int output_;
  int input_;
  sys::EventLoop::Source output_room_; // added while Node does not keep pace
  sys::EventLoop::Source input_data_;  // added while the guest has buffers for it
  bool has_output_ = false;            // the chain of which a part is yet to be sent
  std::uint32_t sent_ = 0;             // of it
  bool is_input_over_ = false;
  Chain output_chain_;
  Chain input_chain_;
};

} // namespace casemate::machine::virtio
