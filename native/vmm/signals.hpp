// The signals of the monitor.
#pragma once

#include "kvm/vcpu.hpp"
#include "sys/result.hpp"

namespace casemate::vmm {

/// Makes SIGIO interrupt what waits, and this process the one to get it.
sys::SysError prepare_control_signal();

/// From here on the kernel raises SIGIO whenever there is something on the control
/// socket, its hang-up too: that gets the vCPU out of guest code without a second
/// thread. Not before the guest is to run: set-up is not to be interrupted. fcntl(2)
sys::SysError start_control_signal();

/// The vCPU whose KVM_RUN the signal is to end. There must not be another.
void interrupt_on_control(const kvm::Vcpu& vcpu);

/// Whether there is to be looked at the control socket. Where one comes behind this,
/// the next KVM_RUN returns at once: none is lost.
bool take_control_signal();

/// Makes a system call that seccomp refuses end the process with CASEMATE_EVENT_BLOCKED.
sys::SysError report_refused_calls();

} // namespace casemate::vmm
