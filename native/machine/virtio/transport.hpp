// The registers through which a driver finds a virtio device, negotiates and sets up its
// queues. VIRTIO 1.2, section 4.2 (MMIO, version 2), and 2.1, 3.1 for the status.
#pragma once

#include "machine/virtio/device.hpp"

#include <array>
#include <cstdint>
#include <span>

namespace casemate::machine::virtio {

/// Where devices are, in the order of their configuration: one window and one pin of the
/// I/O APIC each.
inline constexpr std::uint64_t first_window = 0xd0000000;
inline constexpr std::uint32_t first_pin = 5;
inline constexpr std::uint32_t max_devices = 16;

class Transport {
public:
  /// Of the window in the guest's address space.
  static constexpr std::uint64_t size = 0x1000;
  /// Of the register that kicks a queue by its number: for an ioeventfd.
  static constexpr std::uint64_t notify_offset = 0x50;

  Transport(Device& device, const GuestMemory& memory) : device_(&device), memory_(memory) {}

  Device& device() const { return *device_; }

  /// `offset` is below `size`.
  void read(std::uint64_t offset, std::span<std::byte> value);
  void write(std::uint64_t offset, std::span<const std::byte> value);

  // ---- On the event loop ----

  /// The driver's kick, as an ioeventfd tells it.
  void kick(std::uint32_t queue);
  /// Whether work() is to be called: something is left to do that a register access may not
  /// do itself, or that has had its turn and wants another one.
  bool has_work() const;
  void work();
  /// Whether a driver counts on what work() has yet to do, a reset: the vCPU whose access
  /// this comes from does not go on before.
  bool is_settling() const { return pending_ != Pending::Nothing; }

  // ---- Anywhere ----

  /// Takes over what the device has to say; whether there is news for its driver since the
  /// last call: an edge on its pin.
  bool take_interrupt();

private:
  enum class Pending : std::uint8_t { Nothing, Activate, Reset };

  struct Setup {
    QueueLayout layout{};
    bool is_ready = false;
  };

  std::uint32_t read_register(std::uint64_t offset) const;
  void write_register(std::uint64_t offset, std::uint32_t value);
  void write_queue_register(std::uint64_t offset, std::uint32_t value);
  void write_status(std::uint32_t value);
  void activate();
  void reset();
  void set_interrupt(std::uint32_t bit);
  bool is_live() const;

  Device* device_;
  GuestMemory memory_;
  std::uint64_t driver_features_ = 0;
  std::uint32_t status_ = 0;
  std::uint32_t interrupt_status_ = 0;
  std::uint32_t config_generation_ = 0;
  std::uint32_t device_features_select_ = 0;
  std::uint32_t driver_features_select_ = 0;
  std::uint32_t queue_select_ = 0;
  std::uint32_t kicked_ = 0; // queues, as bits, by the register
  Pending pending_ = Pending::Nothing;
  bool has_interrupt_ = false;
  std::array<Setup, Device::max_queues> setups_{};
};

} // namespace casemate::machine::virtio
