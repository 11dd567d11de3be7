#include "machine/serial.hpp"

#include <cstring>

namespace casemate::machine {

namespace {

// Offsets of registers, some of them shared by two.
constexpr std::uint16_t data = 0;                     // low byte of the divisor
constexpr std::uint16_t interrupt_enable = 1;         // high byte of the divisor
constexpr std::uint16_t interrupt_identification = 2; // written: FIFO control
constexpr std::uint16_t line_control = 3;
constexpr std::uint16_t modem_control = 4;
constexpr std::uint16_t line_status = 5;
constexpr std::uint16_t modem_status_register = 6;

constexpr std::uint8_t data_available = 1u << 0; // in interrupt enable and line status
constexpr std::uint8_t transmitter_empty = 1u << 1;

constexpr std::uint8_t fifo_enable = 1u << 0;
constexpr std::uint8_t fifo_clear_input = 1u << 1;

constexpr std::uint8_t line_status_idle = 0x60; // holding register and transmitter are empty

constexpr std::uint8_t no_interrupt = 0x01;
constexpr std::uint8_t transmitter_interrupt = 0x02;
constexpr std::uint8_t data_interrupt = 0x04;
constexpr std::uint8_t fifo_is_enabled = 0xc0;

constexpr std::uint8_t out2 = 1u << 3; // on PCs the gate of the interrupt

} // namespace

std::uint8_t Serial::read(std::uint16_t offset) {
  switch (offset) {
  case data:
    return is_divisor_open() ? static_cast<std::uint8_t>(divisor_) : take_input();
  case interrupt_enable:
    return is_divisor_open() ? static_cast<std::uint8_t>(divisor_ >> 8) : interrupt_enable_;
  case interrupt_identification:
    return identify_interrupt();
  case line_control:
    return line_control_;
  case modem_control:
    return modem_control_;
  case line_status:
    return line_status_idle | (input_size_ > 0 ? data_available : 0);
  case modem_status_register:
    return modem_status();
  default:
    return scratch_;
  }
}

void Serial::write(std::uint16_t offset, std::uint8_t value) {
  switch (offset) {
  case data:
    if (is_divisor_open()) {
      divisor_ = static_cast<std::uint16_t>((divisor_ & 0xff00) | value);
    } else {
      transmit(value);
    }
    break;
  case interrupt_enable:
    if (is_divisor_open()) {
      divisor_ = static_cast<std::uint16_t>((divisor_ & 0xff) | value << 8);
    } else {
      write_interrupt_enable(value);
    }
    break;
  case interrupt_identification:
    fifo_control_ = value;
    if ((value & fifo_clear_input) != 0) {
      input_size_ = 0;
    }
    break;
  case line_control:
    line_control_ = value;
    break;
  case modem_control:
    modem_control_ = value & 0x1f;
    break;
  case line_status:
  case modem_status_register:
    break;
  default:
    scratch_ = value;
  }
}

bool Serial::interrupts() const {
  const bool has_data = (interrupt_enable_ & data_available) != 0 && input_size_ > 0;
  const bool has_room = (interrupt_enable_ & transmitter_empty) != 0 && transmitter_emptied_;
  return (modem_control_ & out2) != 0 && (has_data || has_room);
}

void Serial::take_output(std::size_t size) {
  output_size_ -= size;
  std::memmove(output_.data(), output_.data() + size, output_size_);
}

void Serial::receive(std::span<const std::byte> bytes) {
  for (const std::byte byte : bytes) {
    if (input_room() == 0) {
      return;
    }
    input_[(input_start_ + input_size_) % input_.size()] = byte;
    ++input_size_;
  }
}

std::uint8_t Serial::take_input() {
  if (input_size_ == 0) {
    return 0;
  }
  const auto value = static_cast<std::uint8_t>(input_[input_start_]);
  input_start_ = (input_start_ + 1) % input_.size();
  --input_size_;
  return value;
}

/// Of what is enabled, the most urgent; to have told of an empty transmitter ends that.
std::uint8_t Serial::identify_interrupt() {
  const std::uint8_t fifo = (fifo_control_ & fifo_enable) != 0 ? fifo_is_enabled : 0;
  if ((interrupt_enable_ & data_available) != 0 && input_size_ > 0) {
    return fifo | data_interrupt;
  }
  if ((interrupt_enable_ & transmitter_empty) != 0 && transmitter_emptied_) {
    transmitter_emptied_ = false;
    return fifo | transmitter_interrupt;
  }
  return fifo | no_interrupt;
}

/// The other end is there and ready; in loopback, which drivers probe with, it is this end.
std::uint8_t Serial::modem_status() const {
  if (!is_loopback()) {
    return 0xb0; // carrier, data set ready, clear to send
  }
  const std::uint8_t from_out = static_cast<std::uint8_t>((modem_control_ & 0x0c) << 4);
  const std::uint8_t from_ready = static_cast<std::uint8_t>((modem_control_ & 0x01) << 5);
  const std::uint8_t from_request = static_cast<std::uint8_t>((modem_control_ & 0x02) << 3);
  return from_out | from_ready | from_request;
}

void Serial::transmit(std::uint8_t value) {
  transmitter_emptied_ = true;
  const auto byte = std::byte{value};
  if (is_loopback()) {
    receive({&byte, 1});
    return;
  }
  if (output_size_ < output_.size()) {
    output_[output_size_++] = byte;
  }
}

void Serial::write_interrupt_enable(std::uint8_t value) {
  const bool asks = (value & ~interrupt_enable_ & transmitter_empty) != 0;
  interrupt_enable_ = value & 0x0f;
  transmitter_emptied_ = transmitter_emptied_ || asks;
}

} // namespace casemate::machine
