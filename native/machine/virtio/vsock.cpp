#include "machine/virtio/vsock.hpp"

#include <algorithm>

namespace casemate::machine::virtio {

namespace {

/// struct virtio_vsock_config
struct Config {
  std::uint64_t guest_cid = VsockStreams::guest_cid;
};

constexpr std::uint32_t header_size = sizeof(VsockHeader);
constexpr std::uint32_t transport_reset = 0; // an event's id

} // namespace

// What follows from these goes to the guest with the device's other work, which stands still
// while the guest does.

void Vsock::connect(std::uint32_t id, std::uint32_t port, sys::Fd socket) {
  streams_.connect(id, port, std::move(socket), is_active_);
  kick_again(receive_queue);
}

bool Vsock::accept(std::uint32_t id, sys::Fd socket) {
  kick_again(receive_queue);
  return streams_.accept(id, std::move(socket));
}

bool Vsock::refuse(std::uint32_t id) {
  kick_again(receive_queue);
  return streams_.refuse(id);
}

void Vsock::on_activate(std::uint64_t /* features */) {
  is_active_ = true;
  queue(receive_queue).disable_kicks(); // nothing waits for a buffer
  send_event();
}

void Vsock::on_reset() {
  was_reset_ |= is_active_;
  is_active_ = false;
  awaits_answers_ = false;
  streams_.disconnect();
}

void Vsock::on_kick(std::uint16_t index) {
  switch (index) {
  case receive_queue:
    send_packets();
    break;
  case transmit_queue:
    receive_packets();
    break;
  default:
    send_event();
  }
}

void Vsock::on_read_config(std::uint32_t offset, std::span<std::byte> value) {
  read_from_config(Config{}, offset, value);
}

/// To the guest, as many as it has buffers for.
void Vsock::send_packets() {
  if (!is_active_) {
    return;
  }
  Queue& packets = queue(receive_queue);
  packets.disable_kicks();
  unsigned turns = 0;
  while (streams_.has_packets()) {
    if (++turns > packets.size()) {
      kick_again(receive_queue);
      break;
    }
    if (!packets.pop(chain_)) {
      if (packets.enable_kicks()) {
        kick_again(receive_queue);
      }
      break;
    }
    if (chain_.writable_size() <= header_size) {
      packets.push(chain_.head(), 0); // room for no packet
      continue;
    }
    VsockHeader header;
    if (!streams_.next(header,
                       {chain_.writable(), header_size, chain_.writable_size() - header_size})) {
      packets.put_back(1);
      break;
    }
    chain_.write_value(0, header);
    packets.push(chain_.head(), header_size + header.len);
  }
  notify(packets);
  if (awaits_answers_ && streams_.can_receive()) {
    kick_again(transmit_queue);
  }
}

void Vsock::receive_packets() {
  if (!is_active_) {
    return;
  }
  Queue& packets = queue(transmit_queue);
  packets.disable_kicks();
  awaits_answers_ = false;
  for (unsigned turns = 0; turns < packets.size(); ++turns) {
    if (!streams_.can_receive()) {
      awaits_answers_ = true; // No other guest's packets wait, and no other stream's data.
      break;
    }
    if (!packets.pop(chain_)) {
      break;
    }
    receive_packet();
    packets.push(chain_.head(), 0);
  }
  if (!awaits_answers_ && packets.enable_kicks()) {
    kick_again(transmit_queue);
  }
  notify(packets);
  send_packets();
}

void Vsock::receive_packet() {
  VsockHeader header;
  if (!chain_.read_value(0, header)) {
    return;
  }
  const std::uint32_t rest = chain_.readable_size() - header_size;
  const std::uint32_t size = std::min<std::uint32_t>(header.len, rest);
  streams_.receive(header, {chain_.readable(), header_size, size});
}

/// Tells a driver that comes after another one that its sockets are broken.
void Vsock::send_event() {
  Queue& events = queue(event_queue);
  if (!is_active_ || !was_reset_ || !events.pop(chain_)) {
    return;
  }
  const bool is_told = chain_.write_value(0, transport_reset);
  events.push(chain_.head(), is_told ? sizeof transport_reset : 0);
  was_reset_ = !is_told;
  notify(events);
}

} // namespace casemate::machine::virtio
