#include "machine/ioapic.hpp"

#include <bit>

namespace casemate::machine {

namespace {

// Offsets of the two registers through which all others are reached.
constexpr std::uint64_t select_offset = 0x00;
constexpr std::uint64_t window_offset = 0x10;

constexpr std::uint8_t id_register = 0x00;
constexpr std::uint8_t version_register = 0x01;
constexpr std::uint8_t first_entry_register = 0x10; // two for each pin

constexpr std::uint32_t version = 0x11 | (Ioapic::pins - 1) << 16;

/// Delivery status and remote IRR. Neither is ever set: a message is on its way at once,
/// and what the pins tell are edges, whatever the guest calls them.
constexpr std::uint64_t read_only = 1u << 12 | 1u << 14;

InterruptMessage message_of(std::uint64_t entry) {
  const std::uint64_t destination = entry >> 56;
  const std::uint64_t is_logical = entry >> 11 & 1;
  const std::uint64_t lowest_priority = (entry >> 8 & 7) == 1 ? 1 : 0;
  InterruptMessage message;
  message.address = 0xfee00000 | destination << 12 | lowest_priority << 3 | is_logical << 2;
  message.data = static_cast<std::uint32_t>(entry & 0x7ff); // delivery mode and vector
  return message;
}

} // namespace

std::uint32_t Ioapic::read(std::uint64_t offset) const {
  if (offset == select_offset) {
    return selected_;
  }
  if (offset != window_offset) {
    return 0;
  }
  if (selected_ == id_register) {
    return std::uint32_t{id_} << 24;
  }
  if (selected_ == version_register) {
    return version;
  }
  const std::uint32_t half = selected_ - std::uint32_t{first_entry_register};
  if (half >= 2 * pins) {
    return 0;
  }
  return static_cast<std::uint32_t>(entries_[half / 2] >> 32 * (half % 2));
}

void Ioapic::write(std::uint64_t offset, std::uint32_t value) {
  if (offset == select_offset) {
    selected_ = static_cast<std::uint8_t>(value);
    return;
  }
  if (offset != window_offset) {
    return;
  }
  if (selected_ == id_register) {
    id_ = value >> 24 & 0xf;
    return;
  }
  const std::uint32_t half = selected_ - std::uint32_t{first_entry_register};
  if (half < 2 * pins) {
    const std::uint32_t shift = 32 * (half % 2);
    std::uint64_t& entry = entries_[half / 2];
    entry = (entry & ~(std::uint64_t{0xffffffff} << shift)) | std::uint64_t{value} << shift;
    entry &= ~read_only;
  }
}

std::optional<InterruptMessage> Ioapic::take_message() {
  for (std::uint32_t left = pending_; left != 0; left &= left - 1) {
    const auto pin = static_cast<std::uint32_t>(std::countr_zero(left));
    if ((entries_[pin] & masked) == 0) {
      pending_ &= ~(1u << pin);
      return message_of(entries_[pin]);
    }
  }
  return std::nullopt;
}

} // namespace casemate::machine
