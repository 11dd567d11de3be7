// The I/O APIC, in user space: KVM has the local ones only (a split irqchip). It turns
// an edge on one of its pins into the message that the guest has set for that pin.
// Intel 82093AA
#pragma once

#include <array>
#include <cstdint>
#include <optional>

namespace casemate::machine {

/// A message-signalled interrupt, as KVM_SIGNAL_MSI takes it.
struct InterruptMessage {
  std::uint64_t address = 0;
  std::uint32_t data = 0;
};

class Ioapic {
public:
  static constexpr std::uint64_t address = 0xfec00000;
  static constexpr std::uint64_t size = 0x20;
  static constexpr std::uint32_t pins = 24;

  Ioapic() { entries_.fill(masked); }

  /// 32-bit accesses, `offset` from `address`.
  std::uint32_t read(std::uint64_t offset) const;
  void write(std::uint64_t offset, std::uint32_t value);

  /// An edge. On a masked pin it waits: a driver that masks for a moment misses nothing.
  void raise(std::uint32_t pin) { pending_ |= 1u << pin; }

  /// The next message to be delivered; call it until there is none.
  std::optional<InterruptMessage> take_message();

private:
  static constexpr std::uint64_t masked = 1u << 16;

  std::array<std::uint64_t, pins> entries_;
  std::uint32_t pending_ = 0;
  std::uint8_t selected_ = 0;
  std::uint8_t id_ = 0;
};

} // namespace casemate::machine
