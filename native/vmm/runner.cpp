#include "vmm/runner.hpp"

#include "machine/system_page.hpp"
#include "sys/clock.hpp"
#include "vmm/control.hpp"
#include "vmm/signals.hpp"

#include <asm/errno.h>

#include <cstring>

namespace casemate::vmm {

using machine::HypercallStatus;

void Runner::run() {
  hypercalls_.set_entered_at(timeline_.stamps[CASEMATE_STAMP_RUN]);
  for (;;) {
    if (take_control_signal()) {
      obey_commands();
    }
    const sys::SysError error = vcpu_.run();
    if (!error) {
      handle_exit();
    } else if (error.number != EINTR && error.number != EAGAIN) {
      end(CASEMATE_EXIT_HOST, static_cast<std::uint32_t>(error.number));
    }
  }
}

void Runner::handle_exit() {
  const kvm_run& state = vcpu_.state();
  switch (state.exit_reason) {
  case KVM_EXIT_IO:
    handle_io();
    break;
  case KVM_EXIT_INTR:
    break;
  case KVM_EXIT_MMIO:
    end(CASEMATE_EXIT_PROTOCOL, 0, state.mmio.phys_addr);
  case KVM_EXIT_SHUTDOWN:
  case KVM_EXIT_SYSTEM_EVENT:
    end(CASEMATE_EXIT_SHUTDOWN, 0);
  case KVM_EXIT_INTERNAL_ERROR:
    end(CASEMATE_EXIT_INTERNAL, state.internal.suberror);
  case KVM_EXIT_FAIL_ENTRY:
    end(CASEMATE_EXIT_INTERNAL,
        static_cast<std::uint32_t>(state.fail_entry.hardware_entry_failure_reason));
  default:
    end(CASEMATE_EXIT_INTERNAL, state.exit_reason);
  }
}

void Runner::handle_io() {
  const auto& io = vcpu_.state().io;
  const auto data = vcpu_.io_data();
  const bool is_out = io.direction == KVM_EXIT_IO_OUT && io.count == 1;
  if (is_out && io.port == machine::fault_port && data.size() == 1) {
    end_with_fault();
  }
  if (!is_out || data.size() != sizeof(std::uint32_t)) {
    end(CASEMATE_EXIT_PROTOCOL, io.port);
  }
  std::uint32_t value;
  std::memcpy(&value, data.data(), sizeof value);
  handle_hypercall(io.port, value);
}

void Runner::handle_hypercall(std::uint16_t port, std::uint32_t value) {
  if (!doorbell_rung_) {
    ring_doorbell();
  }
  HypercallStatus status = hypercalls_.start(port, value);
  while (status == HypercallStatus::Interrupted) {
    // What interrupts a wait is a message on the socket, with or without its signal.
    obey_commands();
    status = hypercalls_.proceed();
  }
  if (status == HypercallStatus::Exit) {
    end(CASEMATE_EXIT_GUEST, hypercalls_.exit_code());
  }
  if (status == HypercallStatus::Violation) {
    end(CASEMATE_EXIT_PROTOCOL, port);
  }
}

void Runner::ring_doorbell() {
  doorbell_rung_ = true;
  timeline_.stamp(CASEMATE_STAMP_DOORBELL);
  casemate_doorbell doorbell{};
  std::memcpy(doorbell.stamps, timeline_.stamps, sizeof doorbell.stamps);
  send(doorbell, CASEMATE_EVENT_DOORBELL);
  if (start_paused_) {
    stay_paused();
  }
}

/// An exception handler reported. Which one, says its address; the rest is on its stack.
void Runner::end_with_fault() {
  casemate_exited exited{};
  read_registers(exited);
  const std::uint64_t offset = exited.registers.rip - machine::handlers_address;
  if (offset >= sizeof(machine::SystemPage::handlers)) {
    end(CASEMATE_EXIT_PROTOCOL, machine::fault_port); // a guest at CPL 0 that uses it itself
  }
  exited.vector = static_cast<std::uint32_t>(offset / sizeof(machine::Handler));
  machine::ExceptionFrame frame{};
  const std::uint64_t at = machine::exception_stack_top - sizeof frame;
  memory_.read(at, frame);
  if (machine::has_error_code(exited.vector)) {
    memory_.read(at - 8, exited.error_code);
  }
  exited.address = exited.registers.cr2;
  exited.registers.rip = frame.rip;
  exited.registers.rsp = frame.rsp;
  exited.registers.rflags = frame.rflags;
  finish(exited, CASEMATE_EXIT_FAULT);
}

void Runner::end(casemate_exit_reason reason, std::uint32_t code, std::uint64_t address) {
  casemate_exited exited{};
  exited.code = code;
  exited.address = address;
  if (reason != CASEMATE_EXIT_GUEST) {
    read_registers(exited);
  }
  finish(exited, reason);
}

void Runner::finish(casemate_exited& exited, casemate_exit_reason reason) {
  exited.reason = reason;
  exited.at = sys::monotonic_ns();
  send(exited, CASEMATE_EVENT_EXITED);
  exit_process(0);
}

void Runner::read_registers(casemate_exited& exited) const {
  kvm_regs regs{};
  kvm_sregs sregs{};
  if (vcpu_.get_regs(regs) || vcpu_.get_sregs(sregs)) {
    return;
  }
  exited.has_registers = 1;
  exited.registers = {regs.rax,  regs.rbx,  regs.rcx,  regs.rdx,  regs.rsi,  regs.rdi,
                      regs.rsp,  regs.rbp,  regs.r8,   regs.r9,   regs.r10,  regs.r11,
                      regs.r12,  regs.r13,  regs.r14,  regs.r15,  regs.rip,  regs.rflags,
                      sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer};
}

} // namespace casemate::vmm
