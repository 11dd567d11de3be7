#include "vmm/report.hpp"

#include "sys/clock.hpp"
#include "vmm/control.hpp"

#include <cstring>

namespace casemate::vmm {

void send_doorbell(const Timeline& timeline) {
  casemate_doorbell doorbell{};
  std::memcpy(doorbell.stamps, timeline.stamps, sizeof doorbell.stamps);
  send(doorbell, CASEMATE_EVENT_DOORBELL);
}

void set_registers(casemate_exited& exited, const kvm_regs& regs, const kvm_sregs& sregs) {
  exited.has_registers = 1;
  exited.registers = {regs.rax,  regs.rbx,  regs.rcx,  regs.rdx,  regs.rsi,  regs.rdi,
                      regs.rsp,  regs.rbp,  regs.r8,   regs.r9,   regs.r10,  regs.r11,
                      regs.r12,  regs.r13,  regs.r14,  regs.r15,  regs.rip,  regs.rflags,
                      sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer};
}

casemate_exited crash_of(const kvm::Vcpu& vcpu, casemate_exit_reason reason, std::uint32_t code,
                         std::uint64_t address) {
  casemate_exited exited{};
  exited.reason = reason;
  exited.code = code;
  exited.address = address;
  kvm_regs regs{};
  kvm_sregs sregs{};
  if (!vcpu.get_regs(regs) && !vcpu.get_sregs(sregs)) {
    set_registers(exited, regs, sregs);
  }
  return exited;
}

casemate_exited stop_of(const kvm::Vcpu& vcpu) {
  const kvm_run& state = vcpu.state();
  switch (state.exit_reason) {
  case KVM_EXIT_SHUTDOWN:
  case KVM_EXIT_SYSTEM_EVENT:
    return crash_of(vcpu, CASEMATE_EXIT_SHUTDOWN, 0);
  case KVM_EXIT_INTERNAL_ERROR:
    return crash_of(vcpu, CASEMATE_EXIT_INTERNAL, state.internal.suberror);
  case KVM_EXIT_FAIL_ENTRY:
    return crash_of(vcpu, CASEMATE_EXIT_INTERNAL,
                    static_cast<std::uint32_t>(state.fail_entry.hardware_entry_failure_reason));
  default:
    return crash_of(vcpu, CASEMATE_EXIT_INTERNAL, state.exit_reason);
  }
}

void report_end(casemate_exited exited) {
  exited.at = sys::monotonic_ns();
  send(exited, CASEMATE_EVENT_EXITED);
  exit_process(0);
}

void report_crash(const kvm::Vcpu& vcpu, casemate_exit_reason reason, std::uint32_t code,
                  std::uint64_t address) {
  report_end(crash_of(vcpu, reason, code, address));
}

} // namespace casemate::vmm
