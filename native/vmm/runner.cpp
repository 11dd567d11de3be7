#include "vmm/runner.hpp"

#include "machine/boot.hpp"
#include "machine/cpuid.hpp"
#include "machine/paging.hpp"
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
      if (!doorbell_rung_) {
        // Whether it is that is seen on pages that have yet to be touched.
        timeline_.stamp(CASEMATE_STAMP_DOORBELL);
      }
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
    handle_exception();
    return;
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
  send_doorbell(timeline_);
  if (start_paused_) {
    stay_paused();
  }
}

/// An exception handler reported. Which one, says its address; the rest is on its stack.
void Runner::handle_exception() {
  kvm_regs regs{};
  kvm_sregs sregs{};
  const bool has_registers = !vcpu_.get_regs(regs) && !vcpu_.get_sregs(sregs);
  const std::uint64_t offset = regs.rip - machine::handlers_address;
  if (!has_registers || offset >= sizeof(machine::SystemPage::handlers)) {
    // A guest at CPL 0 that uses it itself.
    report_crash(vcpu_, CASEMATE_EXIT_PROTOCOL, machine::fault_port);
  }
  casemate_exited exited{};
  exited.reason = CASEMATE_EXIT_FAULT;
  exited.vector = static_cast<std::uint32_t>(offset / sizeof(machine::Handler));
  exited.address = sregs.cr2;
  machine::ExceptionFrame frame{};
  const std::uint64_t at = machine::exception_stack_top - sizeof frame;
  memory_.read(at, frame);
  if (machine::has_error_code(exited.vector)) {
    memory_.read(at - 8, exited.error_code);
  }
  machine::return_from_exception(frame, machine::is_amd(cpuid_), regs, sregs);

  const auto extent = machine::extent_of(memory_, sregs.cr2);
  if (exited.vector == machine::page_fault && extent && !slots_.has(*extent)) {
    const sys::SysError error = provide(*extent);
    if (!error) {
      // The instruction has done nothing yet, or as much of it as its registers say.
      vcpu_.stage_regs(regs);
      vcpu_.stage_sregs(sregs);
      return;
    }
    exited.reason = CASEMATE_EXIT_HOST;
    exited.code = static_cast<std::uint32_t>(error.number);
  }
  set_registers(exited, regs, sregs);
  report_end(exited);
}

/// Gives the guest memory that it has touched for the first time. Its tables have no entries for
/// that before, so a page fault tells of it, whatever the instruction: KVM, which would have to
/// emulate those that find no memory behind their addresses, knows no SSE and no code there.
sys::SysError Runner::provide(const machine::Extent& extent) {
  if (auto error = slots_.add(extent)) {
    return error;
  }
  machine::map_memory(memory_, extent.start, extent.end, machine::no_guard,
                      machine::has_huge_pages(cpuid_));
  return {};
}

} // namespace casemate::vmm
