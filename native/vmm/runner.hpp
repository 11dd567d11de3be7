#pragma once

#include "kvm/vcpu.hpp"
#include "machine/console.hpp"
#include "machine/guest_memory.hpp"
#include "machine/hypercalls.hpp"
#include "vmm/timeline.hpp"
#include "vmm/wire.h"

#include <cstdint>

namespace casemate::vmm {

/// Runs a vCPU until its guest ends, and says how it ended.
class Runner {
public:
  Runner(const kvm::Vcpu& vcpu, const machine::GuestMemory& memory, const machine::Console& console,
         Timeline& timeline, bool start_paused)
      : vcpu_(vcpu), memory_(memory), hypercalls_(memory, console), timeline_(timeline),
        start_paused_(start_paused) {}

  [[noreturn]] void run();

private:
  void handle_exit();
  void handle_io();
  void handle_hypercall(std::uint16_t port, std::uint32_t value);
  void ring_doorbell();
  [[noreturn]] void end_with_fault();

  const kvm::Vcpu& vcpu_;
  const machine::GuestMemory& memory_;
  machine::Hypercalls hypercalls_;
  Timeline& timeline_;
  bool start_paused_;
  bool doorbell_rung_ = false;
};

} // namespace casemate::vmm
