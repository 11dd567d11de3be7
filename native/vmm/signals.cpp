#include "vmm/signals.hpp"

#include "sys/syscall.hpp"
#include "vmm/control.hpp"

#include <linux/fcntl.h>

#include <atomic>
#include <csignal>
#include <ucontext.h>

// What a handler returns to: libc has this, and the kernel asks for it.
asm(R"(
  .text
  .type casemate_signal_return, @function
casemate_signal_return:
  mov $15, %eax
  syscall
  .size casemate_signal_return, . - casemate_signal_return
)");
static_assert(__NR_rt_sigreturn == 15);
extern "C" [[gnu::visibility("hidden")]] void casemate_signal_return();

namespace casemate::vmm {

namespace {

using Handler = void (*)(int, siginfo_t*, void*);

sys::SysError handle(int signal, Handler handler) {
  // struct sigaction as the kernel has it.
  const struct {
    Handler handler;
    unsigned long flags;
    void (*restorer)();
    std::uint64_t mask;
  } action{handler, SA_SIGINFO | 0x04000000 /* SA_RESTORER */, casemate_signal_return, 0};
  return sys::check("rt_sigaction",
                    sys::call(__NR_rt_sigaction, signal, &action, nullptr, sizeof action.mask));
}

// A handler has no argument of ours, so these two are the monitor's only globals.
std::atomic<bool> raised{false};
std::atomic<const kvm::Vcpu*> interrupted{nullptr};

void interrupt(int, siginfo_t*, void*) {
  raised = true;
  if (const kvm::Vcpu* vcpu = interrupted) {
    vcpu->set_immediate_exit(true);
  }
}

void report(int, siginfo_t* info, void* context) {
  casemate_blocked blocked{};
  blocked.number = static_cast<std::uint32_t>(info->si_syscall);
  blocked.arch = info->si_arch;
  const auto& registers = static_cast<const ucontext_t*>(context)->uc_mcontext.gregs;
  blocked.argument = static_cast<std::uint64_t>(registers[REG_RSI]);
  send(blocked, CASEMATE_EVENT_BLOCKED);
  exit_process(128 + SIGSYS);
}

} // namespace

sys::SysError prepare_control_signal() {
  if (auto error = handle(SIGIO, interrupt)) {
    return error;
  }
  const long self = sys::call(__NR_getpid);
  return sys::check("fcntl", sys::call(__NR_fcntl, CASEMATE_FD_CONTROL, F_SETOWN, self));
}

sys::SysError start_control_signal() {
  raised = true; // for what comes before, and raises no signal
  return sys::check("fcntl", sys::call(__NR_fcntl, CASEMATE_FD_CONTROL, F_SETFL, O_RDWR | FASYNC));
}

void interrupt_on_control(const kvm::Vcpu& vcpu) { interrupted = &vcpu; }

bool take_control_signal() {
  // In this order: a signal between the two leaves both set behind.
  if (const kvm::Vcpu* vcpu = interrupted) {
    vcpu->set_immediate_exit(false);
  }
  return raised.exchange(false);
}

sys::SysError report_refused_calls() { return handle(SIGSYS, report); }

} // namespace casemate::vmm
