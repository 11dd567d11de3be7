// Everything that a Linux guest reaches by ports and by memory-mapped registers. What
// is not there reads as ones, and takes what is written to it, as on a PC.
#pragma once

#include "machine/ioapic.hpp"
#include "machine/power.hpp"
#include "machine/serial.hpp"
#include "machine/virtio/transport.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace casemate::machine {

class Board {
public:
  Serial& serial() { return serial_; }

  /// The next virtio device, whose window and pin follow from its place: at most
  /// virtio::max_devices. It outlives the board.
  void add_device(virtio::Transport& device) { devices_[device_count_++] = &device; }

  /// Whether a byte may be written to a port now: not to a serial port whose output nobody
  /// takes, for it would be lost.
  bool can_write_port(std::uint16_t port) const;
  Power write_port(std::uint16_t port, std::span<const std::byte> value);
  void read_port(std::uint16_t port, std::span<std::byte> value);
  void write_memory(std::uint64_t address, std::span<const std::byte> value);
  void read_memory(std::uint64_t address, std::span<std::byte> value) const;

  /// What register accesses leave for the event loop, which does not sleep while there is some.
  bool has_work() const;
  void work();
  /// Whether a vCPU that has written to a register waits for work() to be done. Drivers count
  /// on a reset being over as soon as it is asked for.
  bool is_settling() const;

  /// Looks at the lines of all devices: call it after each of the above, after
  /// Serial::receive() and whatever makes a device do something; then take messages until
  /// there are none.
  void update_interrupts();
  std::optional<InterruptMessage> take_message() { return ioapic_.take_message(); }

private:
  std::span<virtio::Transport* const> devices() const {
    return std::span(devices_).first(device_count_);
  }

  Serial serial_;
  Ioapic ioapic_;
  bool serial_line_ = false;
  std::array<virtio::Transport*, virtio::max_devices> devices_{};
  std::size_t device_count_ = 0;
};

} // namespace casemate::machine
