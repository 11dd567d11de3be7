#include "machine/virtio/transport.hpp"

#include <cstring>

namespace casemate::machine::virtio {

namespace {

// Section 4.2.2
enum : std::uint64_t {
  magic_value = 0x000,
  version = 0x004,
  device_id = 0x008,
  vendor_id = 0x00c,
  device_features = 0x010,
  device_features_select = 0x014,
  driver_features = 0x020,
  driver_features_select = 0x024,
  queue_select = 0x030,
  queue_size_max = 0x034,
  queue_size = 0x038,
  queue_ready = 0x044,
  queue_notify = Transport::notify_offset,
  interrupt_status = 0x060,
  interrupt_acknowledge = 0x064,
  status = 0x070,
  queue_descriptors_low = 0x080,
  queue_descriptors_high = 0x084,
  queue_available_low = 0x090,
  queue_available_high = 0x094,
  queue_used_low = 0x0a0,
  queue_used_high = 0x0a4,
  shared_memory_size_low = 0x0b0,
  shared_memory_base_high = 0x0bc,
  config_generation = 0x0fc,
  config = 0x100
};

constexpr std::uint32_t magic = 0x74726976;  // "virt"
constexpr std::uint32_t vendor = 0x544d5343; // "CSMT"

// Section 2.1
constexpr std::uint32_t status_driver = 2;
constexpr std::uint32_t status_driver_ok = 4;
constexpr std::uint32_t status_features_ok = 8;
constexpr std::uint32_t status_needs_reset = 64;

constexpr std::uint32_t used_interrupt = 1;
constexpr std::uint32_t config_interrupt = 2;

constexpr std::uint64_t transport_features =
    feature_version_1 | feature_indirect | feature_event_index;

std::uint32_t half_of(std::uint64_t value, std::uint32_t select) {
  return select < 2 ? static_cast<std::uint32_t>(value >> 32 * select) : 0;
}

void set_half(std::uint64_t& value, std::uint32_t select, std::uint32_t half) {
  if (select < 2) {
    const unsigned shift = 32 * select;
    value = (value & ~(std::uint64_t{0xffffffff} << shift)) | std::uint64_t{half} << shift;
  }
}

} // namespace

void Transport::read(std::uint64_t offset, std::span<std::byte> value) {
  std::memset(value.data(), 0, value.size());
  if (offset >= config) {
    device_->read_config(static_cast<std::uint32_t>(offset - config), value);
  } else if (value.size() == sizeof(std::uint32_t)) {
    const std::uint32_t word = read_register(offset);
    std::memcpy(value.data(), &word, sizeof word);
  }
}

void Transport::write(std::uint64_t offset, std::span<const std::byte> value) {
  // As if it had not been: a driver that does not wait for the end of a reset.
  if (pending_ == Pending::Reset) {
    return;
  }
  if (offset >= config) {
    device_->write_config(static_cast<std::uint32_t>(offset - config), value);
  } else if (value.size() == sizeof(std::uint32_t)) {
    std::uint32_t word;
    std::memcpy(&word, value.data(), sizeof word);
    write_register(offset, word);
  }
}

std::uint32_t Transport::read_register(std::uint64_t offset) const {
  const bool has_queue = queue_select_ < device_->queue_count();
  switch (offset) {
  case magic_value:
    return magic;
  case version:
    return 2;
  case device_id:
    return static_cast<std::uint32_t>(device_->type());
  case vendor_id:
    return vendor;
  case device_features:
    return half_of(device_->features() | transport_features, device_features_select_);
  case queue_size_max:
    return has_queue ? max_queue_size : 0;
  case queue_ready:
    return has_queue && setups_[queue_select_].is_ready ? 1 : 0;
  case interrupt_status:
    return interrupt_status_;
  case status:
    return status_;
  case config_generation:
    return config_generation_;
  default:
    // There is no shared memory, which is told by all ones.
    return offset >= shared_memory_size_low && offset <= shared_memory_base_high ? 0xffffffff : 0;
  }
}

void Transport::write_register(std::uint64_t offset, std::uint32_t value) {
  switch (offset) {
  case device_features_select:
    device_features_select_ = value;
    break;
  case driver_features_select:
    driver_features_select_ = value;
    break;
  case driver_features:
    if ((status_ & (status_driver | status_features_ok)) == status_driver) {
      set_half(driver_features_, driver_features_select_, value);
    }
    break;
  case queue_select:
    queue_select_ = value;
    break;
  case queue_notify:
    if (value < device_->queue_count()) {
      kicked_ |= 1u << value;
    }
    break;
  case interrupt_acknowledge:
    interrupt_status_ &= ~value;
    break;
  case status:
    write_status(value);
    break;
  default:
    write_queue_register(offset, value);
  }
}

/// Where the queues are is the driver's to say between its features and DRIVER_OK. Later the
/// device works with them: what stands in these registers then is frozen.
void Transport::write_queue_register(std::uint64_t offset, std::uint32_t value) {
  if ((status_ & (status_features_ok | status_driver_ok)) != status_features_ok ||
      queue_select_ >= device_->queue_count()) {
    return;
  }
  Setup& setup = setups_[queue_select_];
  switch (offset) {
  case queue_size:
    // What is no size at all must not become one by losing its upper half.
    setup.layout.size = value <= max_queue_size ? static_cast<std::uint16_t>(value) : 0;
    break;
  case queue_ready:
    setup.is_ready = value == 1;
    break;
  case queue_descriptors_low:
  case queue_descriptors_high:
    set_half(setup.layout.descriptors, offset == queue_descriptors_high ? 1 : 0, value);
    break;
  case queue_available_low:
  case queue_available_high:
    set_half(setup.layout.available, offset == queue_available_high ? 1 : 0, value);
    break;
  case queue_used_low:
  case queue_used_high:
    set_half(setup.layout.used, offset == queue_used_high ? 1 : 0, value);
    break;
  default:
    break;
  }
}

void Transport::write_status(std::uint32_t value) {
  if (value == 0) {
    pending_ = Pending::Reset;
    return;
  }
  // A driver takes nothing back but by a reset, and that the device needs one it does not say.
  std::uint32_t added = value & ~status_ & 0xff & ~status_needs_reset;
  if ((added & status_features_ok) != 0) {
    const std::uint64_t offered = device_->features() | transport_features;
    if ((driver_features_ & ~offered) != 0 || (driver_features_ & feature_version_1) == 0) {
      added &= ~status_features_ok;
    }
  }
  if (((status_ | added) & status_features_ok) == 0) {
    added &= ~status_driver_ok;
  }
  status_ |= added;
  if ((added & status_driver_ok) != 0) {
    pending_ = Pending::Activate;
  }
}

bool Transport::is_live() const {
  return (status_ & (status_driver_ok | status_needs_reset)) == status_driver_ok &&
         pending_ == Pending::Nothing;
}

bool Transport::has_work() const {
  return pending_ != Pending::Nothing || (is_live() && (kicked_ != 0 || device_->has_again()));
}

void Transport::work() {
  const Pending pending = std::exchange(pending_, Pending::Nothing);
  if (pending == Pending::Reset) {
    reset();
  } else if (pending == Pending::Activate) {
    activate();
  }
  const std::uint32_t queues = std::exchange(kicked_, 0) | device_->take_again();
  for (std::uint16_t i = 0; i < device_->queue_count(); ++i) {
    if ((queues >> i & 1) != 0) {
      kick(i);
    }
  }
}

void Transport::activate() {
  for (std::uint16_t i = 0; i < device_->queue_count(); ++i) {
    const Setup& setup = setups_[i];
    if (setup.is_ready && !device_->queue(i).start(memory_, setup.layout, driver_features_)) {
      status_ |= status_needs_reset;
      set_interrupt(config_interrupt);
      return;
    }
  }
  device_->activate(driver_features_);
}

void Transport::reset() {
  device_->reset();
  driver_features_ = 0;
  status_ = 0;
  interrupt_status_ = 0;
  has_interrupt_ = false;
  device_features_select_ = 0;
  driver_features_select_ = 0;
  queue_select_ = 0;
  kicked_ = 0;
  setups_ = {};
}

void Transport::kick(std::uint32_t queue) {
  if (is_live() && queue < device_->queue_count()) {
    device_->kick(static_cast<std::uint16_t>(queue));
  }
}

/// A bit that is set already tells nothing new: its driver has yet to acknowledge it, and
/// looks at the queues behind that.
void Transport::set_interrupt(std::uint32_t bit) {
  has_interrupt_ = has_interrupt_ || (interrupt_status_ & bit) == 0;
  interrupt_status_ |= bit;
}

bool Transport::take_interrupt() {
  if (device_->take_config_change()) {
    ++config_generation_;
    if ((status_ & status_driver_ok) != 0) {
      set_interrupt(config_interrupt);
    }
  }
  if (is_live()) {
    if (device_->take_used()) {
      set_interrupt(used_interrupt);
    }
    if (device_->is_broken()) {
      status_ |= status_needs_reset;
      set_interrupt(config_interrupt);
    }
  }
  return std::exchange(has_interrupt_, false);
}

} // namespace casemate::machine::virtio
