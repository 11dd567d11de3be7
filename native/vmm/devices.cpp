#include "vmm/devices.hpp"

#include "machine/virtio/block.hpp"
#include "machine/virtio/console.hpp"
#include "machine/virtio/net.hpp"
#include "machine/virtio/rng.hpp"
#include "machine/virtio/vsock.hpp"
#include "sys/eventfd.hpp"
#include "vmm/confinement.hpp"
#include "vmm/control.hpp"
#include "vmm/linux_control.hpp"

#include <asm/errno.h>
#include <asm/stat.h>
#include <linux/eventpoll.h>
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/kvm.h>
#include <linux/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace casemate::vmm {

using machine::virtio::Balloon;
using machine::virtio::Device;
using machine::virtio::DeviceType;
using machine::virtio::MemoryStatistics;
using machine::virtio::Transport;

// The configuration's numbers are the devices' own.
static_assert(CASEMATE_MAX_DEVICES == machine::virtio::max_devices);
static_assert(CASEMATE_DEVICE_NET == static_cast<int>(DeviceType::Net));
static_assert(CASEMATE_DEVICE_RNG == static_cast<int>(DeviceType::Rng));
static_assert(CASEMATE_DEVICE_BLOCK == static_cast<int>(DeviceType::Block));
static_assert(CASEMATE_DEVICE_VSOCK == static_cast<int>(DeviceType::Vsock));
static_assert(CASEMATE_DEVICE_CONSOLE == static_cast<int>(DeviceType::Console));
static_assert(CASEMATE_MEMORY_STATISTICS == MemoryStatistics::count);
static_assert(CASEMATE_DEVICE_BALLOON == static_cast<int>(DeviceType::Balloon));

namespace {

machine::RateLimitOptions rate_limit_of(const __u64* parameters) {
  return {parameters[0], parameters[1], parameters[2], parameters[3]};
}

machine::virtio::NetOptions net_options_of(const casemate_device& configuration, int descriptor) {
  using machine::virtio::Net;
  using machine::virtio::NetBackend;
  const bool is_stream = (configuration.flags & CASEMATE_NET_STREAM) != 0;
  machine::virtio::NetOptions options;
  options.backend = is_stream ? NetBackend::Stream : NetBackend::Tap;
  options.fd = descriptor;
  for (std::size_t i = 0; i < options.mac.size(); ++i) {
    options.mac[i] =
        static_cast<std::uint8_t>(configuration.parameters[CASEMATE_NET_MAC] >> (8 * i));
  }
  options.mtu = static_cast<std::uint16_t>(configuration.parameters[CASEMATE_NET_MTU]);
  options.offloads = is_stream ? 0 : Net::probe_offloads(descriptor);
  options.receive_limit = rate_limit_of(configuration.parameters + CASEMATE_NET_RECEIVE_LIMIT);
  options.send_limit = rate_limit_of(configuration.parameters + CASEMATE_NET_SEND_LIMIT);
  return options;
}

} // namespace

sys::SysError Devices::create(const Configuration& configuration, const kvm::VirtualMachine& vm,
                              const machine::GuestMemory& memory, sys::EventLoop& loop,
                              machine::Board& board) {
  is_confined_ = configuration.has(CASEMATE_CONFIGURE_SECCOMP);
  if (auto error = open_engine(configuration, loop)) {
    return error;
  }
  int descriptor = CASEMATE_FD_DEVICES;
  for (std::uint32_t i = 0; i < configuration.devices.size(); ++i) {
    Slot& slot = slots_[i];
    if (auto error = make_device(slot, configuration.devices[i], descriptor, loop)) {
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

/// Where there are disks: what serves all of them.
sys::SysError Devices::open_engine(const Configuration& configuration, sys::EventLoop& loop) {
  std::array<int, CASEMATE_MAX_DEVICES> files{};
  std::size_t count = 0;
  int descriptor = CASEMATE_FD_DEVICES;
  for (const casemate_device& device : configuration.devices) {
    if (device.type == CASEMATE_DEVICE_BLOCK) {
      files[count++] = descriptor;
    }
    descriptor += static_cast<int>(device.descriptors);
  }
  if (count == 0) {
    return {};
  }
  if (auto error = engine_.open(std::span(files).first(count))) {
    return error;
  }
  const long moved = sys::call(__NR_dup3, engine_.descriptor(), disk_descriptor, O_CLOEXEC);
  if (moved < 0) {
    return sys::check("dup3", moved);
  }
  engine_.replace_descriptor(sys::Fd(disk_descriptor));
  engine_source_ = {on_disk, this};
  if (auto error = loop.add(engine_source_, engine_.descriptor(), EPOLLIN)) {
    return error;
  }
  return engine_.needs_threads() ? start_disk_threads() : sys::SysError{};
}

sys::SysError Devices::start_disk_threads() {
  constexpr std::uint32_t threads = 4;
  auto stacks = Stacks::map(threads);
  if (!stacks) {
    return stacks.error();
  }
  stacks_ = std::move(stacks).value();
  for (std::uint32_t i = 0; i < threads; ++i) {
    const long id = stacks_.start(i, serve_disks, this);
    if (id < 0) {
      return sys::check("clone3", id);
    }
  }
  return {};
}

void Devices::serve_disks(void* devices) {
  auto& self = *static_cast<Devices*>(devices);
  if (self.is_confined_ && confine_disk_thread()) {
    exit_process(1);
  }
  self.engine_.serve();
  exit_process(1); // nobody stops it
}

void Devices::on_disk(void* devices, std::uint32_t /* events */) {
  static_cast<Devices*>(devices)->engine_.finish();
}

/// fstat(2), ioctl(2). What the file is has been checked.
sys::SysError Devices::make_block(Slot& slot, const casemate_device& configuration,
                                  int descriptor) {
  machine::virtio::BlockOptions options;
  options.file = disk_count_++;
  options.is_read_only = (configuration.flags & CASEMATE_BLOCK_READ_ONLY) != 0;
  const auto& parameters = configuration.parameters;
  std::memcpy(options.serial.data(), &parameters[CASEMATE_BLOCK_SERIAL], options.serial.size());
  const auto* limit = &parameters[CASEMATE_BLOCK_LIMIT];
  options.limit = {limit[0], limit[1], limit[2], limit[3]};
  struct stat status {};
  if (auto error = sys::check("fstat", sys::call(__NR_fstat, descriptor, &status))) {
    return error;
  }
  constexpr unsigned kind_mask = 0170000;
  constexpr unsigned block_device = 0060000;
  std::uint32_t logical = machine::virtio::Block::sector_size;
  auto physical = static_cast<std::uint32_t>(status.st_blksize);
  options.size = static_cast<std::uint64_t>(status.st_size);
  if ((status.st_mode & kind_mask) == block_device) {
    if (auto error = sys::check("ioctl(BLKGETSIZE64)",
                                sys::call(__NR_ioctl, descriptor, BLKGETSIZE64, &options.size))) {
      return error;
    }
    sys::call(__NR_ioctl, descriptor, BLKSSZGET, &logical);
    sys::call(__NR_ioctl, descriptor, BLKPBSZGET, &physical);
  }
  options.set_block_sizes(logical, physical);
  return make<machine::virtio::Block>(slot, options, engine_);
}

sys::SysError Devices::make_device(Slot& slot, const casemate_device& configuration, int descriptor,
                                   sys::EventLoop& loop) {
  switch (configuration.type) {
  case CASEMATE_DEVICE_BLOCK:
    return make_block(slot, configuration, descriptor);
  case CASEMATE_DEVICE_RNG:
    return make<machine::virtio::Rng>(slot);
  case CASEMATE_DEVICE_VSOCK:
    return make_vsock(slot, loop);
  case CASEMATE_DEVICE_NET:
    return make<machine::virtio::Net>(slot, net_options_of(configuration, descriptor));
  case CASEMATE_DEVICE_CONSOLE:
    return make<machine::virtio::Console>(slot, CASEMATE_FD_CONSOLE_OUT, CASEMATE_FD_CONSOLE_IN);
  case CASEMATE_DEVICE_BALLOON:
    return make_balloon(slot, configuration.flags);
  default:
    return {"casemate_device", ENOSYS}; // the configuration has been checked
  }
}

sys::SysError Devices::make_vsock(Slot& slot, sys::EventLoop& loop) {
  using machine::virtio::Vsock;
  auto streams = sys::Mapping::map(sizeof(Vsock::Storage), PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  if (!streams) {
    return streams.error();
  }
  streams_ = std::move(streams).value();
  if (auto error = make<Vsock>(slot, *reinterpret_cast<Vsock::Storage*>(streams_.data()), loop,
                               machine::virtio::VsockStreams::Listener{tell_of_stream, nullptr})) {
    return error;
  }
  vsock_ = static_cast<Vsock*>(slot.device);
  return {};
}

sys::SysError Devices::make_balloon(Slot& slot, std::uint32_t flags) {
  Balloon::Settings settings;
  settings.deflates_on_oom = (flags & CASEMATE_BALLOON_DEFLATE_ON_OOM) != 0;
  settings.takes_reports = (flags & CASEMATE_BALLOON_REPORTING) != 0;
  const Balloon::Listener listener{[](void* devices, const MemoryStatistics& statistics) {
                                     static_cast<const Devices*>(devices)->tell_memory(statistics);
                                   },
                                   this};
  if (auto error = make<Balloon>(slot, settings, listener)) {
    return error;
  }
  balloon_ = static_cast<Balloon*>(slot.device);
  return {};
}

void Devices::tell_memory(const MemoryStatistics& statistics) const {
  casemate_memory event{};
  event.target = balloon_->target();
  event.actual = balloon_->actual();
  event.known = statistics.known;
  std::ranges::copy(statistics.values, event.statistics);
  send(event, CASEMATE_EVENT_MEMORY);
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
