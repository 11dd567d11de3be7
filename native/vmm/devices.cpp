#include "vmm/devices.hpp"

#include "machine/virtio/rng.hpp"
#include "sys/eventfd.hpp"
#include "vmm/control.hpp"

#include <asm/errno.h>
#include <linux/eventpoll.h>
#include <linux/kvm.h>
#include <linux/mman.h>

#include <new>
#include <utility>

namespace casemate::vmm {

using machine::virtio::Device;
using machine::virtio::DeviceType;
using machine::virtio::Transport;

// The configuration's numbers are the devices' own.
static_assert(CASEMATE_MAX_DEVICES == machine::virtio::max_devices);
static_assert(CASEMATE_DEVICE_RNG == static_cast<int>(DeviceType::Rng));
static_assert(CASEMATE_DEVICE_BLOCK == static_cast<int>(DeviceType::Block));

sys::SysError Devices::create(const Configuration& configuration, const kvm::VirtualMachine& vm,
                              const machine::GuestMemory& memory, sys::EventLoop& loop,
                              machine::Board& board) {
  int descriptor = CASEMATE_FD_DEVICES;
  for (std::uint32_t i = 0; i < configuration.devices.size(); ++i) {
    Slot& slot = slots_[i];
    if (auto error = make_device(slot, configuration.devices[i], descriptor)) {
      return error;
    }
    descriptor += static_cast<int>(configuration.devices[i].descriptors);
    slot.device->attach(memory, loop, {report, this});
    slot.transport.emplace(*slot.device, memory);
    if (auto error = connect(i, vm, loop)) {
      return error;
    }
    board.add_device(*slot.transport);
  }
  return {};
}

/// In pages of its own: some devices are large, and most guests have few.
template <typename Made, typename... Arguments>
sys::SysError Devices::make(Slot& slot, Arguments&&... arguments) {
  auto storage = sys::Mapping::map(sizeof(Made), PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  if (!storage) {
    return storage.error();
  }
  slot.storage = std::move(storage).value();
  slot.device = new (slot.storage.data()) Made(std::forward<Arguments>(arguments)...);
  return {};
}

sys::SysError Devices::make_device(Slot& slot, const casemate_device& configuration,
                                   int /* descriptor */) {
  switch (configuration.type) {
  case CASEMATE_DEVICE_RNG:
    return make<machine::virtio::Rng>(slot);
  default:
    return {"casemate_device", ENOSYS}; // the configuration has been checked
  }
}

sys::SysError Devices::connect(std::uint32_t index, const kvm::VirtualMachine& vm,
                               sys::EventLoop& loop) {
  Slot& slot = slots_[index];
  for (std::uint16_t queue = 0; queue < slot.device->queue_count(); ++queue) {
    Kick& kick = slot.kicks[queue];
    auto eventfd = sys::make_eventfd();
    if (!eventfd) {
      return eventfd.error();
    }
    kick.eventfd = std::move(eventfd).value();
    kick.transport = &*slot.transport;
    kick.queue = queue;
    kick.source = {on_kick, &kick};

    kvm_ioeventfd ioeventfd{};
    ioeventfd.addr =
        machine::virtio::first_window + index * Transport::size + Transport::notify_offset;
    ioeventfd.len = sizeof(std::uint32_t);
    ioeventfd.datamatch = queue;
    ioeventfd.fd = kick.eventfd.get();
    ioeventfd.flags = KVM_IOEVENTFD_FLAG_DATAMATCH;
    if (auto error = vm.ioeventfd(ioeventfd)) {
      return error;
    }
    // Edge-triggered: each kick is told anew, and its count is of no interest to anybody.
    if (auto error = loop.add(kick.source, kick.eventfd.get(), EPOLLIN | EPOLLET)) {
      return error;
    }
  }
  return {};
}

void Devices::on_kick(void* context, std::uint32_t /* events */) {
  const auto& kick = *static_cast<const Kick*>(context);
  kick.transport->kick(kick.queue);
}

void Devices::report(void* context, const Device& device, std::uint32_t operation, int error) {
  const auto& self = *static_cast<const Devices*>(context);
  for (std::uint32_t i = 0; i < self.slots_.size(); ++i) {
    if (self.slots_[i].device == &device) {
      casemate_device_error event{};
      event.device = i;
      event.operation = operation;
      event.error = static_cast<std::uint32_t>(error);
      send(event, CASEMATE_EVENT_DEVICE_ERROR);
    }
  }
}

} // namespace casemate::vmm
