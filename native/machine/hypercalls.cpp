#include "machine/hypercalls.hpp"

#include "machine/layout.hpp"
#include "sys/clock.hpp"
#include "sys/syscall.hpp"

#include <algorithm>
#include <cstddef>

namespace casemate::machine {

namespace {

/// The kernel gives up to 256 bytes at once, without interruption; a guest that asks
/// for more is told how many it got.
constexpr std::uint64_t max_random = 256;

} // namespace

HypercallStatus Hypercalls::start(std::uint16_t port, std::uint32_t value) {
  port_ = port;
  switch (port) {
  case CASEMATE_PORT_DOORBELL:
    return HypercallStatus::Done;
  case CASEMATE_PORT_EXIT:
    exit_code_ = value;
    return value <= 255 ? HypercallStatus::Exit : HypercallStatus::Violation;
  case CASEMATE_PORT_TIME:
    return time(value);
  case CASEMATE_PORT_WRITE:
  case CASEMATE_PORT_READ:
  case CASEMATE_PORT_RANDOM:
    return start_transfer(value);
  default:
    return HypercallStatus::Violation;
  }
}

HypercallStatus Hypercalls::proceed() {
  switch (port_) {
  case CASEMATE_PORT_WRITE:
    return write();
  case CASEMATE_PORT_READ:
    return read();
  default:
    return random();
  }
}

HypercallStatus Hypercalls::start_transfer(std::uint32_t address) {
  request_ = address;
  transferred_ = 0;
  if (guest_bytes(address, sizeof transfer_) == nullptr || !memory_.read(address, transfer_)) {
    return HypercallStatus::Violation;
  }
  const std::uint64_t known_flags = port_ == CASEMATE_PORT_READ ? CASEMATE_NONBLOCK : 0;
  if ((transfer_.flags & ~known_flags) != 0) {
    return HypercallStatus::Violation;
  }
  if (transfer_.size == 0) {
    return finish(0); // of any address, a null pointer's too
  }
  return guest_bytes(transfer_.address, transfer_.size) != nullptr ? proceed()
                                                                   : HypercallStatus::Violation;
}

HypercallStatus Hypercalls::write() {
  std::span<const std::byte> rest{
      guest_bytes(transfer_.address + transferred_, transfer_.size - transferred_),
      transfer_.size - transferred_};
  const ConsoleStatus status = console_.write(rest);
  transferred_ = transfer_.size - rest.size();
  if (status == ConsoleStatus::Interrupted) {
    return HypercallStatus::Interrupted;
  }
  return finish(status == ConsoleStatus::Closed ? std::int64_t{CASEMATE_CLOSED}
                                                : static_cast<std::int64_t>(transferred_));
}

HypercallStatus Hypercalls::read() {
  std::size_t size = 0;
  const bool wait = (transfer_.flags & CASEMATE_NONBLOCK) == 0;
  switch (
      console_.read({guest_bytes(transfer_.address, transfer_.size), transfer_.size}, wait, size)) {
  case ConsoleStatus::Interrupted:
    return HypercallStatus::Interrupted;
  case ConsoleStatus::WouldBlock:
    return finish(CASEMATE_AGAIN);
  default:
    return finish(static_cast<std::int64_t>(size));
  }
}

HypercallStatus Hypercalls::random() {
  const long count = sys::call_retry(__NR_getrandom, guest_bytes(transfer_.address, transfer_.size),
                                     std::min(transfer_.size, max_random), 0);
  return count < 0 ? HypercallStatus::Violation : finish(count);
}

HypercallStatus Hypercalls::time(std::uint32_t address) {
  const casemate_time time{sys::monotonic_ns() - entered_at_};
  return guest_bytes(address, sizeof time) != nullptr && memory_.write(address, time)
             ? HypercallStatus::Done
             : HypercallStatus::Violation;
}

HypercallStatus Hypercalls::finish(std::int64_t result) {
  memory_.write(request_ + offsetof(casemate_transfer, result), result);
  return HypercallStatus::Done;
}

/// Hypercalls do not reach the machine's own pages: through them a guest at CPL 3
/// could make itself supervisor.
std::byte* Hypercalls::guest_bytes(std::uint64_t address, std::uint64_t size) const {
  return address >= image_base ? memory_.at(address, size) : nullptr;
}

} // namespace casemate::machine
