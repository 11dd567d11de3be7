// The ports by which a guest ends its machine. ACPI names the first three of them.
#pragma once

#include <cstdint>

namespace casemate::machine {

enum class Power { On, Off, Reset, Panic };

/// Sleep control and status of hardware-reduced ACPI, section 4.8.3.7.
inline constexpr std::uint16_t sleep_control_port = 0x600;
inline constexpr std::uint16_t sleep_status_port = 0x601;
/// SLP_TYP of S5, as the package \_S5 has it.
inline constexpr std::uint8_t sleep_type_off = 5;

/// The reset control register of PC chipsets, which guests without ACPI know too.
inline constexpr std::uint16_t reset_port = 0xcf9;
inline constexpr std::uint8_t reset_value = 0x06;

/// The keyboard controller, for its command to pulse the reset line: the oldest way.
inline constexpr std::uint16_t keyboard_port = 0x64;

/// pvpanic: a kernel that panics says so. qemu/docs/specs/pvpanic
inline constexpr std::uint16_t panic_port = 0x505;
inline constexpr std::uint8_t panicked = 1;

/// What a byte written to a port means for the machine.
constexpr Power power_after(std::uint16_t port, std::uint8_t value) {
  switch (port) {
  case sleep_control_port: {
    constexpr std::uint8_t sleep_enable = 1 << 5;
    const bool is_off = (value & sleep_enable) != 0 && (value >> 2 & 7) == sleep_type_off;
    return is_off ? Power::Off : Power::On;
  }
  case reset_port:
    return (value & 4) != 0 ? Power::Reset : Power::On;
  case keyboard_port:
    return value == 0xfe ? Power::Reset : Power::On;
  case panic_port:
    return (value & panicked) != 0 ? Power::Panic : Power::On;
  default:
    return Power::On;
  }
}

} // namespace casemate::machine
