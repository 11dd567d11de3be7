// The registers of its processor (MSRs) that a guest with a kernel of its own may touch.
#pragma once

#include "kvm/abi.h"

#include <cstdint>

namespace casemate::machine {

/// Whether a guest at CPL 0 may read and write it. KVM may refuse it nevertheless, by CPUID.
bool is_allowed_msr(std::uint32_t msr);

/// Denies all others: an access is #GP. Those of the x2APIC (0x800 to 0x8ff) KVM filters never.
kvm_msr_filter msr_filter();

} // namespace casemate::machine
