// Linux guests, from the vCPU to the end. Nothing of this is touched by other guests.
#pragma once

#include "kvm/vm.hpp"
#include "machine/guest_memory.hpp"
#include "vmm/configuration.hpp"
#include "vmm/timeline.hpp"

namespace casemate::vmm {

/// Takes over where a Linux guest's machine differs from a bare-metal one's: the vCPU is
/// there and has its CPUID.
[[noreturn]] void run_linux(const Configuration& configuration, const kvm::VirtualMachine& vm,
                            const kvm::Vcpu& vcpu, const machine::GuestMemory& memory,
                            Timeline& timeline);

} // namespace casemate::vmm
