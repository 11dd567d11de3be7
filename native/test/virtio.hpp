// A virtio driver on plain memory, for the tests of devices: it does what drivers do, or
// whatever else a test wants, by the registers of a transport and by rings in memory.
#pragma once

#include "machine/virtio/transport.hpp"

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <vector>

namespace casemate::unit {

/// Offsets of registers.
namespace mmio {
inline constexpr std::uint64_t magic = 0x00, version = 0x04, device_id = 0x08;
inline constexpr std::uint64_t device_features = 0x10, device_features_select = 0x14;
inline constexpr std::uint64_t driver_features = 0x20, driver_features_select = 0x24;
inline constexpr std::uint64_t queue_select = 0x30, queue_size_max = 0x34, queue_size = 0x38;
inline constexpr std::uint64_t queue_ready = 0x44, queue_notify = 0x50;
inline constexpr std::uint64_t interrupt_status = 0x60, interrupt_acknowledge = 0x64;
inline constexpr std::uint64_t status = 0x70, descriptors = 0x80, available = 0x90, used = 0xa0;
inline constexpr std::uint64_t config_generation = 0xfc, config = 0x100;
} // namespace mmio

/// Of descriptors.
inline constexpr std::uint16_t has_next = 1, is_writable = 2, is_indirect = 4;

struct Descriptor {
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  std::uint16_t flags = 0;
  std::uint16_t next = 0;
};

/// A buffer of a chain.
struct Buffer {
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  bool is_writable = false;
};

struct Used {
  std::uint32_t id = 0;
  std::uint32_t written = 0;
};

/// A guest's memory, zeroed, with rings for each queue at its start; from `data` on it is
/// the test's.
class GuestRam {
public:
  static constexpr std::uint64_t ring_size = 0x4000; // of all three parts of one queue
  static constexpr std::uint64_t data = ring_size * machine::virtio::Device::max_queues;

  explicit GuestRam(std::size_t size = 1 << 20) : bytes_(size + page), memory(aligned(), size) {}

  template <typename T> void write(std::uint64_t address, const T& value) const {
    memory.write(address, value);
  }
  template <typename T> T read(std::uint64_t address) const {
    T value{};
    memory.read(address, value);
    return value;
  }

private:
  static constexpr std::size_t page = 4096;

  std::byte* aligned() {
    const auto at = reinterpret_cast<std::uintptr_t>(bytes_.data());
    return bytes_.data() + (page - at % page) % page;
  }

  std::vector<std::byte> bytes_;

public:
  const machine::GuestMemory memory;
};

/// The driver's end of a queue.
class DriverQueue {
public:
  DriverQueue(const GuestRam& ram, std::uint16_t index, std::uint16_t size = 16)
      : ram(&ram), size(size), descriptors(index * GuestRam::ring_size),
        available(descriptors + 0x2000), used(available + 0x1000) {}

  machine::virtio::QueueLayout layout() const { return {size, descriptors, available, used}; }

  void set(std::uint16_t index, const Descriptor& descriptor) const {
    ram->write(descriptors + sizeof descriptor * index, descriptor);
  }
  /// Makes the chain that begins with this descriptor available.
  void offer(std::uint16_t head) {
    ram->write(available + 4 + 2 * std::uint64_t(next_available % size), head);
    ram->write(available + 2, ++next_available);
  }
  /// The next descriptors as a chain, made available; its head.
  std::uint16_t add(std::initializer_list<Buffer> buffers) {
    const std::uint16_t head = next_descriptor;
    std::size_t left = buffers.size();
    for (const Buffer& buffer : buffers) {
      const std::uint16_t index = next_descriptor;
      next_descriptor = static_cast<std::uint16_t>((index + 1) % size);
      const bool is_last = --left == 0;
      set(index, {buffer.address, buffer.length,
                  static_cast<std::uint16_t>((buffer.is_writable ? is_writable : 0) |
                                             (is_last ? 0 : has_next)),
                  next_descriptor});
    }
    offer(head);
    return head;
  }
  std::uint16_t used_index() const { return ram->read<std::uint16_t>(used + 2); }
  /// What the device has given back since the last call.
  std::optional<Used> take_used() {
    if (next_used == used_index()) {
      return std::nullopt;
    }
    return ram->read<Used>(used + 4 + sizeof(Used) * (next_used++ % size));
  }
  /// With feature_event_index.
  void set_used_event(std::uint16_t index) const { ram->write(available + 4 + 2u * size, index); }
  std::uint16_t available_event() const { return ram->read<std::uint16_t>(used + 4 + 8u * size); }

  const GuestRam* ram;
  std::uint16_t size;
  std::uint64_t descriptors, available, used;
  std::uint16_t next_available = 0;
  std::uint16_t next_used = 0;
  std::uint16_t next_descriptor = 0;
};

/// The driver's side of a device's registers, and the event loop's.
class Driver {
public:
  Driver(const GuestRam& ram, machine::virtio::Device& device)
      : ram(ram), device(device), transport(device, ram.memory) {
    for (std::uint16_t i = 0; i < device.queue_count(); ++i) {
      queues.emplace_back(ram, i);
    }
  }

  std::uint32_t read(std::uint64_t offset) {
    std::uint32_t value = 0;
    transport.read(offset, std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }
  void write(std::uint64_t offset, std::uint32_t value) {
    transport.write(offset, std::as_bytes(std::span(&value, 1)));
  }
  template <typename T> T config(std::uint64_t offset) {
    T value{};
    transport.read(mmio::config + offset, std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }
  std::uint64_t offered() {
    write(mmio::device_features_select, 1);
    const std::uint64_t high = read(mmio::device_features);
    write(mmio::device_features_select, 0);
    return high << 32 | read(mmio::device_features);
  }
  void accept(std::uint64_t features) {
    write(mmio::driver_features_select, 0);
    write(mmio::driver_features, static_cast<std::uint32_t>(features));
    write(mmio::driver_features_select, 1);
    write(mmio::driver_features, static_cast<std::uint32_t>(features >> 32));
  }
  void set_queue(std::uint16_t index) {
    const auto layout = queues[index].layout();
    write(mmio::queue_select, index);
    write(mmio::queue_size, layout.size);
    for (const auto& [at, address] : {std::pair{mmio::descriptors, layout.descriptors},
                                      {mmio::available, layout.available},
                                      {mmio::used, layout.used}}) {
      write(at, static_cast<std::uint32_t>(address));
      write(at + 4, static_cast<std::uint32_t>(address >> 32));
    }
    write(mmio::queue_ready, 1);
  }
  /// As section 3.1.1 has it. False where the device does not accept the features.
  bool start(std::uint64_t features = 0) {
    reset();
    write(mmio::status, 1);
    write(mmio::status, 3);
    accept(features | machine::virtio::feature_version_1);
    write(mmio::status, 11);
    if ((read(mmio::status) & 8) == 0) {
      return false;
    }
    for (std::uint16_t i = 0; i < device.queue_count(); ++i) {
      set_queue(i);
    }
    write(mmio::status, 15);
    settle();
    return true;
  }
  void reset() {
    write(mmio::status, 0);
    settle();
    for (std::uint16_t i = 0; i < device.queue_count(); ++i) {
      queues[i] = DriverQueue(ram, i, queues[i].size);
      ram.write(queues[i].available, std::uint32_t{0});
      ram.write(queues[i].used, std::uint32_t{0});
    }
  }
  /// What the event loop does behind an access, until there is nothing more to do.
  void settle() {
    while (transport.has_work()) {
      transport.work();
    }
  }
  void kick(std::uint16_t queue) {
    transport.kick(queue);
    settle();
  }
  bool needs_reset() { return (read(mmio::status) & 64) != 0; }

  const GuestRam& ram;
  machine::virtio::Device& device;
  machine::virtio::Transport transport;
  std::vector<DriverQueue> queues;
};

} // namespace casemate::unit
