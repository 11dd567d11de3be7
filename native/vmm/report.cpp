#include "vmm/report.hpp"

#include "sys/clock.hpp"
#include "vmm/control.hpp"

#include <cstring>

namespace casemate::vmm {

void report_doorbell(Timeline& timeline, bool pause) {
  timeline.stamp(CASEMATE_STAMP_DOORBELL);
  casemate_doorbell doorbell{};
  std::memcpy(doorbell.stamps, timeline.stamps, sizeof doorbell.stamps);
  send(doorbell, CASEMATE_EVENT_DOORBELL);
  if (pause) {
    stay_paused();
  }
}

void read_registers(const kvm::Vcpu& vcpu, casemate_exited& exited) {
  kvm_regs regs{};
  kvm_sregs sregs{};
  if (vcpu.get_regs(regs) || vcpu.get_sregs(sregs)) {
    return;
  }
  exited.has_registers = 1;
  exited.registers = {regs.rax,  regs.rbx,  regs.rcx,  regs.rdx,  regs.rsi,  regs.rdi,
                      regs.rsp,  regs.rbp,  regs.r8,   regs.r9,   regs.r10,  regs.r11,
                      regs.r12,  regs.r13,  regs.r14,  regs.r15,  regs.rip,  regs.rflags,
                      sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer};
}

void report_end(casemate_exited& exited, casemate_exit_reason reason) {
  exited.reason = reason;
  exited.at = sys::monotonic_ns();
  send(exited, CASEMATE_EVENT_EXITED);
  exit_process(0);
}

void report_crash(const kvm::Vcpu& vcpu, casemate_exit_reason reason, std::uint32_t code,
                  std::uint64_t address) {
  casemate_exited exited{};
  exited.code = code;
  exited.address = address;
  read_registers(vcpu, exited);
  report_end(exited, reason);
}

void report_stopped(const kvm::Vcpu& vcpu) {
  const kvm_run& state = vcpu.state();
  switch (state.exit_reason) {
  case KVM_EXIT_SHUTDOWN:
  case KVM_EXIT_SYSTEM_EVENT:
    report_crash(vcpu, CASEMATE_EXIT_SHUTDOWN, 0);
  case KVM_EXIT_INTERNAL_ERROR:
    report_crash(vcpu, CASEMATE_EXIT_INTERNAL, state.internal.suberror);
  case KVM_EXIT_FAIL_ENTRY:
    report_crash(vcpu, CASEMATE_EXIT_INTERNAL,
                 static_cast<std::uint32_t>(state.fail_entry.hardware_entry_failure_reason));
  default:
    report_crash(vcpu, CASEMATE_EXIT_INTERNAL, state.exit_reason);
  }
}

} // namespace casemate::vmm
