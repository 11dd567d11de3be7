// Everything that a Linux guest reaches by ports and by memory-mapped registers. What
// is not there reads as ones, and takes what is written to it, as on a PC.
#pragma once

#include "machine/ioapic.hpp"
#include "machine/power.hpp"
#include "machine/serial.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace casemate::machine {

class Board {
public:
  Serial& serial() { return serial_; }

  /// Whether a byte may be written to a port now: not to a serial port whose output nobody
  /// takes, for it would be lost.
  bool can_write_port(std::uint16_t port) const;
  Power write_port(std::uint16_t port, std::span<const std::byte> value);
  void read_port(std::uint16_t port, std::span<std::byte> value);
  void write_memory(std::uint64_t address, std::span<const std::byte> value);
  void read_memory(std::uint64_t address, std::span<std::byte> value) const;

  /// An edge on a pin of the I/O APIC.
  void raise(std::uint32_t pin) { ioapic_.raise(pin); }

  /// Looks at the lines of all devices: call it after each of the above, and after
  /// Serial::receive(); then take messages until there are none.
  void update_interrupts();
  std::optional<InterruptMessage> take_message() { return ioapic_.take_message(); }

private:
  Serial serial_;
  Ioapic ioapic_;
  bool serial_line_ = false;
};

} // namespace casemate::machine
