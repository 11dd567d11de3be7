// What Node is told of a guest: that it runs, and how it ended.
#pragma once

#include "kvm/vcpu.hpp"
#include "vmm/timeline.hpp"
#include "vmm/wire.h"

#include <cstdint>

namespace casemate::vmm {

/// The guest's first sign of life, which has its stamp already.
void send_doorbell(const Timeline& timeline);

void set_registers(casemate_exited& exited, const kvm_regs& regs, const kvm_sregs& sregs);

/// What is told of a guest that went wrong; with its registers.
casemate_exited crash_of(const kvm::Vcpu& vcpu, casemate_exit_reason reason, std::uint32_t code,
                         std::uint64_t address = 0);

/// Likewise, at an exit that is the same for every guest: of a vCPU that cannot go on.
casemate_exited stop_of(const kvm::Vcpu& vcpu);

/// Says how the guest ended, and ends the process.
[[noreturn]] void report_end(casemate_exited exited);

/// Likewise, of a guest that went wrong.
[[noreturn]] void report_crash(const kvm::Vcpu& vcpu, casemate_exit_reason reason,
                               std::uint32_t code, std::uint64_t address = 0);

} // namespace casemate::vmm
