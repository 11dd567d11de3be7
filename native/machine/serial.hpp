// A 16550A, the serial port of PCs: the console of Linux guests. National Semiconductor
// PC16550D
//
// It is as fast as its guest: the transmitter is empty always, and there are no baud
// rates. What the guest writes gathers here until it is worth a system call.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace casemate::machine {

class Serial {
public:
  static constexpr std::uint16_t port = 0x3f8;
  static constexpr std::uint16_t ports = 8;
  static constexpr std::uint32_t pin = 4; // of the I/O APIC

  /// `offset` is below `ports`.
  std::uint8_t read(std::uint16_t offset);
  void write(std::uint16_t offset, std::uint8_t value);

  /// Whether it wants an interrupt now. The pin has an edge when this becomes true.
  bool interrupts() const;

  // ---- What the guest has written ----

  std::span<const std::byte> output() const { return {output_.data(), output_size_}; }
  /// Without room, what is written is lost: a guest that goes on has it.
  bool has_output_room() const { return output_size_ < output_.size(); }
  /// At most as much as there is.
  void take_output(std::size_t size);

  // ---- What the guest is to read ----

  /// How many bytes there is room for.
  std::size_t input_room() const { return input_.size() - input_size_; }
  /// At most input_room() bytes.
  void receive(std::span<const std::byte> bytes);

private:
  std::uint8_t take_input();
  std::uint8_t identify_interrupt();
  std::uint8_t modem_status() const;
  void transmit(std::uint8_t value);
  void write_interrupt_enable(std::uint8_t value);
  bool is_divisor_open() const { return (line_control_ & 0x80) != 0; }
  bool is_loopback() const { return (modem_control_ & 0x10) != 0; }

  std::array<std::byte, 4096> output_;
  std::array<std::byte, 64> input_; // a ring
  std::size_t output_size_ = 0;
  std::size_t input_start_ = 0;
  std::size_t input_size_ = 0;
  bool transmitter_emptied_ = false; // an interrupt's cause until it has been told

  std::uint16_t divisor_ = 1;
  std::uint8_t interrupt_enable_ = 0;
  std::uint8_t fifo_control_ = 0;
  std::uint8_t line_control_ = 3; // 8N1
  std::uint8_t modem_control_ = 0;
  std::uint8_t scratch_ = 0;
};

} // namespace casemate::machine
