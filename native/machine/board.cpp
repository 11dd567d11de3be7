#include "machine/board.hpp"

#include <algorithm>
#include <cstring>

namespace casemate::machine {

namespace {

bool is_serial(std::uint16_t port) {
  return port >= Serial::port && port - Serial::port < Serial::ports;
}

/// The I/O APIC's register at `address`, where it is one and accessed as one.
std::optional<std::uint64_t> ioapic_offset(std::uint64_t address, std::size_t size) {
  const std::uint64_t offset = address - Ioapic::address;
  return size == sizeof(std::uint32_t) && offset < Ioapic::size ? std::optional(offset)
                                                                : std::nullopt;
}

/// A register of a device's window.
struct DeviceRegister {
  std::size_t device;
  std::uint64_t offset;
};

DeviceRegister device_register(std::uint64_t address) {
  const std::uint64_t from_first = address - virtio::first_window;
  return {from_first / virtio::Transport::size, from_first % virtio::Transport::size};
}

void fill_with_ones(std::span<std::byte> value) { std::ranges::fill(value, std::byte{0xff}); }

} // namespace

// Every register behind a port is one byte. A wider access is for somebody else: the
// configuration address of PCI, 0xcf8, has the reset register among its four.

bool Board::can_write_port(std::uint16_t port) const {
  return !is_serial(port) || serial_.has_output_room();
}

Power Board::write_port(std::uint16_t port, std::span<const std::byte> value) {
  if (value.size() != 1) {
    return Power::On;
  }
  const auto byte = static_cast<std::uint8_t>(value[0]);
  if (is_serial(port)) {
    serial_.write(port - Serial::port, byte);
    return Power::On;
  }
  return power_after(port, byte);
}

void Board::read_port(std::uint16_t port, std::span<std::byte> value) {
  fill_with_ones(value);
  if (value.size() != 1) {
    return;
  }
  if (is_serial(port)) {
    value[0] = std::byte{serial_.read(port - Serial::port)};
  } else if (port == panic_port) {
    value[0] = std::byte{panicked}; // what may be told through it
  } else if (port == sleep_control_port || port == sleep_status_port) {
    value[0] = std::byte{0};
  }
}

void Board::write_memory(std::uint64_t address, std::span<const std::byte> value) {
  if (const auto offset = ioapic_offset(address, value.size())) {
    std::uint32_t word;
    std::memcpy(&word, value.data(), sizeof word);
    ioapic_.write(*offset, word);
  } else if (const auto where = device_register(address); where.device < device_count_) {
    devices_[where.device]->write(where.offset, value);
  }
}

void Board::read_memory(std::uint64_t address, std::span<std::byte> value) const {
  fill_with_ones(value);
  if (const auto offset = ioapic_offset(address, value.size())) {
    const std::uint32_t word = ioapic_.read(*offset);
    std::memcpy(value.data(), &word, sizeof word);
  } else if (const auto where = device_register(address); where.device < device_count_) {
    devices_[where.device]->read(where.offset, value);
  }
}

bool Board::has_work() const {
  return std::ranges::any_of(devices(), [](const auto* device) { return device->has_work(); });
}

void Board::work() {
  for (virtio::Transport* device : devices()) {
    device->work();
  }
}

bool Board::is_settling() const {
  return std::ranges::any_of(devices(), [](const auto* device) { return device->is_settling(); });
}

void Board::update_interrupts() {
  const bool line = serial_.interrupts();
  if (line && !serial_line_) {
    ioapic_.raise(Serial::pin);
  }
  serial_line_ = line;
  for (std::uint32_t i = 0; i < device_count_; ++i) {
    if (devices_[i]->take_interrupt()) {
      ioapic_.raise(virtio::first_pin + i);
    }
  }
}

} // namespace casemate::machine
