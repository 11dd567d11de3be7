// Linux guests, from the vCPUs to the end. Nothing of this is touched by other guests.
//
// The main thread is the event loop: control socket, console, devices, times. Each vCPU has
// a thread of its own.
#pragma once

#include "kvm/vm.hpp"
#include "machine/guest_memory.hpp"
#include "vmm/configuration.hpp"
#include "vmm/timeline.hpp"

namespace casemate::vmm {

/// Takes over where a Linux guest's machine differs from a bare-metal one's: memory and the
/// irqchip are there, vCPUs are not.
[[noreturn]] void run_linux(const Configuration& configuration, const kvm::VirtualMachine& vm,
                            const machine::GuestMemory& memory, Timeline& timeline);

} // namespace casemate::vmm
