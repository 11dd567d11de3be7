// The two signals of the monitor.
#pragma once

#include "kvm/vcpu.hpp"
#include "sys/result.hpp"

namespace casemate::vmm {

/// Has the kernel raise SIGIO whenever there is something on the control socket, its
/// hang-up too: that gets the vCPU out of guest code without a second thread. fcntl(2)
sys::SysError raise_on_control();

/// The vCPU whose KVM_RUN the signal is to end. There must not be another.
void interrupt_on_control(const kvm::Vcpu& vcpu);

/// Whether there was such a signal since the last call. Where one comes behind this,
/// the next KVM_RUN returns at once: none is lost.
bool take_control_signal();

/// Makes a system call that seccomp refuses end the process with CASEMATE_EVENT_BLOCKED.
sys::SysError report_refused_calls();

} // namespace casemate::vmm
