#include "vmm/linux.hpp"

#include "machine/board.hpp"
#include "machine/console.hpp"
#include "machine/linux.hpp"
#include "vmm/confinement.hpp"
#include "vmm/control.hpp"
#include "vmm/report.hpp"
#include "vmm/signals.hpp"

#include <asm/errno.h>

#include <algorithm>

namespace casemate::vmm {

namespace {

using machine::ConsoleStatus;
using machine::Power;

/// Output that its guest does not end, a prompt for example, is shown after this time.
constexpr std::uint32_t flush_delay_us = 5000;

/// What firmware would have set: memory is cached (or a guest may take it for a device's),
/// and string instructions are fast.
sys::SysError set_msrs(const kvm::Vcpu& vcpu) {
  constexpr std::uint32_t misc_enable = 0x1a0;
  constexpr std::uint32_t mtrr_default_type = 0x2ff;
  kvm::Table<casemate_kvm_msrs, kvm_msr_entry, 2> msrs;
  msrs->nmsrs = 2;
  msrs->entries[0] = {misc_enable, 0, 1};
  msrs->entries[1] = {mtrr_default_type, 0, 1u << 11 | 6}; // enabled, write-back
  auto count = vcpu.set_msrs(msrs.get());
  if (!count) {
    return count.error();
  }
  return static_cast<std::uint32_t>(count.value()) == msrs->nmsrs
             ? sys::SysError{}
             : sys::SysError{"ioctl(KVM_SET_MSRS)", EINVAL};
}

machine::BootProtocol protocol_of(const Configuration& configuration) {
  return configuration.format == CASEMATE_IMAGE_PVH ? machine::BootProtocol::Pvh
                                                    : machine::BootProtocol::Linux;
}

std::uint64_t load(const Configuration& configuration, const machine::GuestMemory& memory) {
  machine::LinuxSource source;
  source.protocol = protocol_of(configuration);
  source.kernel = CASEMATE_FD_GUEST;
  source.kernel_size = configuration.image_size;
  source.initrd = CASEMATE_FD_INPUT;
  source.initrd_size = configuration.input_size;
  source.command_line = configuration.arguments;
  std::uint64_t entry = 0;
  if (const auto error = machine::load_linux(source, memory, entry)) {
    fail(CASEMATE_SETUP_GUEST, error.system, error.reason);
  }
  return entry;
}

/// Runs the vCPU until its guest ends, and says how it ended.
class LinuxRunner {
public:
  LinuxRunner(const kvm::VirtualMachine& vm, const kvm::Vcpu& vcpu, const machine::Console& console,
              Timeline& timeline, bool start_paused)
      : vm_(vm), vcpu_(vcpu), console_(console), timeline_(timeline), start_paused_(start_paused) {}

  [[noreturn]] void run() {
    for (;;) {
      if (take_control_signal()) {
        obey();
        has_input_ = true;
        flush();
      }
      receive_input();
      deliver_interrupts();
      const sys::SysError error = vcpu_.run();
      if (!error) {
        handle_exit();
      } else if (error.number != EINTR && error.number != EAGAIN) {
        report_crash(vcpu_, CASEMATE_EXIT_HOST, static_cast<std::uint32_t>(error.number));
      }
    }
  }

private:
  /// What Node has commanded; a guest that stood still meanwhile is told so, or its
  /// watchdogs would call it a fault of its own.
  void obey() {
    obey_commands();
    static_cast<void>(vcpu_.kvmclock_ctrl()); // EINVAL where it has no such clock
  }

  void handle_exit() {
    switch (vcpu_.state().exit_reason) {
    case KVM_EXIT_IO:
      ring_doorbell();
      handle_io();
      break;
    case KVM_EXIT_MMIO:
      ring_doorbell();
      handle_memory();
      break;
    case KVM_EXIT_INTR:
      break;
    default:
      flush();
      report_stopped(vcpu_);
    }
  }

  void ring_doorbell() {
    if (!doorbell_rung_) {
      doorbell_rung_ = true;
      report_doorbell(timeline_, start_paused_);
    }
  }

  /// One access, or those of a string instruction.
  void handle_io() {
    const auto& io = vcpu_.state().io;
    const std::size_t size = io.size;
    for (auto rest = vcpu_.io_data(); size > 0 && rest.size() >= size; rest = rest.subspan(size)) {
      const auto value = rest.first(size);
      if (io.direction == KVM_EXIT_IO_OUT) {
        end_unless_on(board_.write_port(io.port, value));
      } else {
        board_.read_port(io.port, value);
      }
      board_.update_interrupts();
      if (board_.serial().is_output_due()) {
        flush();
      }
    }
    if (!board_.serial().output().empty() && !is_flush_planned_) {
      is_flush_planned_ = true;
      raise_control_signal_in(flush_delay_us);
    }
  }

  void handle_memory() {
    auto& access = vcpu_.state().mmio;
    const std::span<std::uint8_t> data(access.data,
                                       std::min<std::size_t>(access.len, sizeof access.data));
    const auto value = std::as_writable_bytes(data);
    if (access.is_write != 0) {
      board_.write_memory(access.phys_addr, value);
    } else {
      board_.read_memory(access.phys_addr, value);
    }
  }

  void end_unless_on(Power power) {
    if (power == Power::On) {
      return;
    }
    flush();
    casemate_exited exited{};
    switch (power) {
    case Power::Off:
      report_end(exited, CASEMATE_EXIT_POWEROFF);
    case Power::Reset:
      report_end(exited, CASEMATE_EXIT_REBOOT);
    default:
      report_crash(vcpu_, CASEMATE_EXIT_PANIC, 0);
    }
  }

  /// Shows what the guest has written. A reader that does not keep pace stops the guest.
  void flush() {
    is_flush_planned_ = false;
    auto rest = board_.serial().output();
    while (console_.write(rest) == ConsoleStatus::Interrupted) {
      obey();
    }
    board_.serial().clear_output();
  }

  /// Hands on as much as there is room for. What is left stays in the socket.
  void receive_input() {
    auto& serial = board_.serial();
    while (has_input_ && serial.input_room() > 0) {
      std::byte bytes[64];
      std::size_t size = 0;
      // At the end of input there is nothing to be told: a line has none.
      has_input_ =
          console_.read(std::span(bytes).first(std::min(serial.input_room(), sizeof bytes)), false,
                        size) == ConsoleStatus::Done &&
          size > 0;
      serial.receive(std::span(bytes).first(size));
    }
    board_.update_interrupts();
  }

  void deliver_interrupts() {
    while (const auto message = board_.take_message()) {
      kvm_msi msi{};
      msi.address_lo = static_cast<std::uint32_t>(message->address);
      msi.data = message->data;
      // What the guest has set may be for a vCPU that is not, or no interrupt: its loss.
      static_cast<void>(vm_.signal_msi(msi));
    }
  }

  const kvm::VirtualMachine& vm_;
  const kvm::Vcpu& vcpu_;
  const machine::Console& console_;
  Timeline& timeline_;
  machine::Board board_;
  bool start_paused_;
  bool doorbell_rung_ = false;
  bool has_input_ = true; // there may be some
  bool is_flush_planned_ = false;
};

} // namespace

void run_linux(const Configuration& configuration, const kvm::VirtualMachine& vm,
               const kvm::Vcpu& vcpu, const machine::GuestMemory& memory, Timeline& timeline) {
  const machine::BootProtocol protocol = protocol_of(configuration);
  vcpu.stage_sregs(machine::linux_system_registers(protocol));
  check(CASEMATE_SETUP_VCPU, set_msrs(vcpu));
  timeline.stamp(CASEMATE_STAMP_VCPU);

  // The last filter: from here on everything comes from the guest. Its kernel is read
  // under it, too.
  check(CASEMATE_SETUP_JAIL, confine_guest(configuration));
  timeline.stamp(CASEMATE_STAMP_CONFINED);
  vcpu.stage_regs(machine::linux_registers(protocol, load(configuration, memory)));
  timeline.stamp(CASEMATE_STAMP_LOADED);

  await_run();
  timeline.stamp(CASEMATE_STAMP_RUN);
  start_control_signal();
  const bool has_console = configuration.has(CASEMATE_CONFIGURE_CONSOLE);
  if (has_console) {
    start_console_signal();
  }
  const machine::Console console(has_console ? CASEMATE_FD_CONSOLE_OUT : -1,
                                 has_console ? CASEMATE_FD_CONSOLE_IN : -1, CASEMATE_FD_CONTROL);
  LinuxRunner(vm, vcpu, console, timeline, configuration.has(CASEMATE_CONFIGURE_PAUSED)).run();
}

} // namespace casemate::vmm
