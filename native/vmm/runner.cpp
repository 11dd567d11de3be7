#include "vmm/runner.hpp"

#include "machine/system_page.hpp"
#include "vmm/control.hpp"
#include "vmm/report.hpp"
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
    } else if (error.number != EINTR) {
      report_crash(vcpu_, CASEMATE_EXIT_HOST, static_cast<std::uint32_t>(error.number));
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
    report_crash(vcpu_, CASEMATE_EXIT_PROTOCOL, 0, state.mmio.phys_addr);
  default:
    report_end(stop_of(vcpu_));
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
    report_crash(vcpu_, CASEMATE_EXIT_PROTOCOL, io.port);
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
    casemate_exited exited{};
    exited.reason = CASEMATE_EXIT_GUEST;
    exited.code = hypercalls_.exit_code();
    report_end(exited);
  }
  if (status == HypercallStatus::Violation) {
    report_crash(vcpu_, CASEMATE_EXIT_PROTOCOL, port);
  }
}

void Runner::ring_doorbell() {
  doorbell_rung_ = true;
  timeline_.stamp(CASEMATE_STAMP_DOORBELL);
  send_doorbell(timeline_);
  if (start_paused_) {
    stay_paused();
  }
}

/// An exception handler reported. Which one, says its address; the rest is on its stack.
void Runner::end_with_fault() {
  casemate_exited exited{};
  exited.reason = CASEMATE_EXIT_FAULT;
  read_registers(vcpu_, exited);
  const std::uint64_t offset = exited.registers.rip - machine::handlers_address;
  if (offset >= sizeof(machine::SystemPage::handlers)) {
    // A guest at CPL 0 that uses it itself.
    report_crash(vcpu_, CASEMATE_EXIT_PROTOCOL, machine::fault_port);
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
  report_end(exited);
}

} // namespace casemate::vmm
