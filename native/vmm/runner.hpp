#pragma once

#include "kvm/vcpu.hpp"
#include "machine/console.hpp"
#include "machine/extents.hpp"
#include "machine/guest_memory.hpp"
#include "machine/hypercalls.hpp"
#include "vmm/configuration.hpp"
#include "vmm/memory_slots.hpp"
#include "vmm/timeline.hpp"
#include "vmm/wire.h"

#include <cstdint>

namespace casemate::vmm {

/// Runs a vCPU until its guest ends, and says how it ended.
class Runner {
public:
  Runner(const Configuration& configuration, const kvm::Vcpu& vcpu,
         const machine::GuestMemory& memory, MemorySlots& slots, const machine::Console& console,
         Timeline& timeline)
      : vcpu_(vcpu), memory_(memory), slots_(slots), hypercalls_(memory, console),
        timeline_(timeline), start_paused_(configuration.has(CASEMATE_CONFIGURE_PAUSED)),
        cpuid_(*configuration.cpuid) {}

  [[noreturn]] void run();

private:
  void handle_exit();
  void handle_io();
  void handle_hypercall(std::uint16_t port, std::uint32_t value);
  void ring_doorbell();
  void handle_exception();
  sys::SysError provide(const machine::Extent& extent);

  const kvm::Vcpu& vcpu_;
  const machine::GuestMemory& memory_;
  MemorySlots& slots_;
  machine::Hypercalls hypercalls_;
  Timeline& timeline_;
  bool start_paused_;
  const casemate_kvm_cpuid2& cpuid_;
  bool doorbell_rung_ = false;
};

} // namespace casemate::vmm
