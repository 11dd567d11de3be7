// The virtio devices of a Linux guest: made of their configuration, put on the board, and
// kicked by eventfds, which KVM tells without leaving the guest for more than an instant.
#pragma once

#include "kvm/vm.hpp"
#include "machine/block_engine.hpp"
#include "machine/board.hpp"
#include "machine/guest_memory.hpp"
#include "machine/virtio/balloon.hpp"
#include "machine/virtio/transport.hpp"
#include "machine/virtio/vsock.hpp"
#include "sys/event_loop.hpp"
#include "sys/fd.hpp"
#include "sys/mapping.hpp"
#include "vmm/configuration.hpp"
#include "vmm/threads.hpp"

#include <array>
#include <cstdint>
#include <optional>

namespace casemate::vmm {

class Devices {
public:
  Devices() = default;
  Devices(const Devices&) = delete;
  Devices& operator=(const Devices&) = delete;

  /// While the VM is created, under that filter. Memory, loop and board stay where they are.
  sys::SysError create(const Configuration& configuration, const kvm::VirtualMachine& vm,
                       const machine::GuestMemory& memory, sys::EventLoop& loop,
                       machine::Board& board);

  /// Null where there is none.
  machine::virtio::Vsock* vsock() const { return vsock_; }
  machine::virtio::Balloon* balloon() const { return balloon_; }
  /// Node has asked what the guest says of its memory.
  void tell_memory(const machine::virtio::MemoryStatistics& statistics) const;

private:
  /// What an eventfd of a queue is for.
  struct Kick {
    sys::EventLoop::Source source;
    sys::Fd eventfd;
    machine::virtio::Transport* transport = nullptr;
    std::uint16_t queue = 0;
  };

  struct Slot {
    sys::Mapping storage; // of the device
    machine::virtio::Device* device = nullptr;
    std::optional<machine::virtio::Transport> transport;
    std::array<Kick, machine::virtio::Device::max_queues> kicks;
  };

  template <typename Device, typename... Arguments>
  sys::SysError make(Slot& slot, Arguments&&... arguments);
  sys::SysError open_engine(const Configuration& configuration, sys::EventLoop& loop);
  sys::SysError start_disk_threads();
  [[noreturn]] static void serve_disks(void* devices);
  static void on_disk(void* devices, std::uint32_t events);
  sys::SysError make_block(Slot& slot, const casemate_device& configuration, int descriptor);
  sys::SysError make_device(Slot& slot, const casemate_device& configuration, int descriptor,
                            sys::EventLoop& loop);
  sys::SysError make_vsock(Slot& slot, sys::EventLoop& loop);
  sys::SysError make_balloon(Slot& slot, std::uint32_t flags);
  sys::SysError connect(std::uint32_t index, const kvm::VirtualMachine& vm, sys::EventLoop& loop);
  static void on_kick(void* kick, std::uint32_t events);
  static void report(void* devices, const machine::virtio::Device& device, std::uint32_t operation,
                     int error);

  machine::BlockEngine engine_;
  sys::EventLoop::Source engine_source_;
  std::uint32_t disk_count_ = 0;
  bool is_confined_ = false;
  Stacks stacks_;
  machine::virtio::Balloon* balloon_ = nullptr;
  std::array<Slot, CASEMATE_MAX_DEVICES> slots_;
  sys::Mapping streams_; // of the vsock device
  machine::virtio::Vsock* vsock_ = nullptr;
};

} // namespace casemate::vmm
