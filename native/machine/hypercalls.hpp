// The machine's side of the guest ABI (guest/casemate-guest-abi.h).
#pragma once

#include "guest/casemate-guest-abi.h"
#include "machine/console.hpp"
#include "machine/guest_memory.hpp"

#include <cstdint>

namespace casemate::machine {

enum class HypercallStatus {
  Done,
  Interrupted, // look whether the machine is to stop, then proceed()
  Exit,        // the guest is finished: exit_code()
  Violation    // not a call of the ABI
};

/// One vCPU's hypercalls. What is unfinished is an address and a count, here and not
/// on a stack, so that a machine that is stopped can be looked at, or saved, whole.
class Hypercalls {
public:
  Hypercalls(const GuestMemory& memory, const Console& console)
      : memory_(memory), console_(console) {}

  /// A 32-bit `out` of `value` to `port`.
  HypercallStatus start(std::uint16_t port, std::uint32_t value);
  /// Goes on with the call that was interrupted.
  HypercallStatus proceed();

  std::uint32_t exit_code() const { return exit_code_; }
  /// The guest's clock starts here.
  void set_entered_at(std::uint64_t ns) { entered_at_ = ns; }

private:
  HypercallStatus start_transfer(std::uint32_t address);
  HypercallStatus write();
  HypercallStatus read();
  HypercallStatus random();
  HypercallStatus time(std::uint32_t address);
  HypercallStatus finish(std::int64_t result);
  std::byte* guest_bytes(std::uint64_t address, std::uint64_t size) const;

  const GuestMemory& memory_;
  const Console& console_;
  std::uint64_t entered_at_ = 0;
  std::uint32_t exit_code_ = 0;

  std::uint16_t port_ = 0;
  std::uint32_t request_ = 0;    // where the guest's struct is
  casemate_transfer transfer_{}; // the only copy of it that is looked at
  std::uint64_t transferred_ = 0;
};

} // namespace casemate::machine
