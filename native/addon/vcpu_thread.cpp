#include "addon/vcpu_thread.hpp"

#include "sys/futex.hpp"
#include "sys/syscall.hpp"

#include <cerrno>
#include <csignal>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <system_error>
#include <unistd.h>

namespace casemate::addon {

namespace {

constexpr std::uint64_t bit(int signal) { return std::uint64_t{1} << (signal - 1); }

/// A signal that nothing sends any more: it never meets a handler, nor its default
/// action (see the class). Not a real-time signal: those are refused with EAGAIN when
/// the user's queue of signals is full, and then the guest would go on for ever.
constexpr int kick_signal = SIGSTKFLT;

/// glibc's own signals (for pthread_cancel and setuid) reach every thread at any time:
/// setuid waits for all threads to answer.
constexpr std::uint64_t libc_signals = bit(32) | bit(33);

constexpr std::uint64_t blocked_always = ~libc_signals;
constexpr std::uint64_t blocked_in_guest = blocked_always & ~bit(kick_signal);

// Raw system calls: glibc's wrappers of these came with new symbol versions when its
// libpthread ended, and the addon would not load with an older glibc.
std::uint64_t exchange_signal_mask(std::uint64_t mask) {
  std::uint64_t old = 0;
  sys::call(__NR_rt_sigprocmask, SIG_SETMASK, &mask, &old, sizeof mask);
  return old;
}

/// Takes what interrupt() sent too late for the run that it was meant for.
void drop_pending_kick() {
  constexpr std::uint64_t kick = bit(kick_signal);
  constexpr long no_wait[2] = {0, 0};
  sys::call(__NR_rt_sigtimedwait, &kick, nullptr, no_wait, sizeof kick);
}

} // namespace

sys::Result<std::unique_ptr<VcpuThread>> VcpuThread::create(const kvm::Vcpu& vcpu) {
  std::unique_ptr<VcpuThread> self(new VcpuThread(vcpu));
  const long eventfd = sys::call(__NR_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (eventfd < 0) {
    return sys::check("eventfd", eventfd);
  }
  self->completion_.reset(static_cast<int>(eventfd));
  if (auto error = vcpu.set_signal_mask(blocked_in_guest)) {
    return error;
  }
  // The new thread is born with this mask: no signal of Node's finds it unprepared.
  const std::uint64_t old = exchange_signal_mask(blocked_always);
  try {
    self->thread_ = std::thread(&VcpuThread::loop, self.get());
  } catch (const std::system_error& error) {
    exchange_signal_mask(old);
    return sys::SysError{"clone", error.code().value()};
  }
  exchange_signal_mask(old);
  return self;
}

VcpuThread::~VcpuThread() {
  if (!thread_.joinable()) {
    return;
  }
  command_.store(stop);
  sys::futex_wake(command_, 1);
  interrupt();
  thread_.join();
}

void VcpuThread::run(bool immediate) {
  vcpu_.set_immediate_exit(immediate);
  command_.store(run_vcpu);
  sys::futex_wake(command_, 1);
}

void VcpuThread::interrupt() {
  // The flag first: a thread that has not told its id yet has not entered KVM_RUN
  // either, and will find the flag there.
  vcpu_.set_immediate_exit(true);
  if (const int id = id_.load(); id != 0) {
    sys::call(__NR_tgkill, getpid(), id, kick_signal);
  }
}

std::optional<sys::SysError> VcpuThread::take() {
  std::uint64_t count = 0;
  const long result = sys::call(__NR_read, completion(), &count, sizeof count);
  if (result < 0 || command_.load() == run_vcpu) {
    return std::nullopt;
  }
  return result_;
}

void VcpuThread::loop() {
  sys::call(__NR_prctl, PR_SET_NAME, "casemate-vcpu");
  id_.store(static_cast<int>(sys::call(__NR_gettid)));
  for (;;) {
    std::uint32_t command = command_.load();
    if (command == stop) {
      return;
    }
    if (command == idle) {
      sys::futex_wait(command_, idle);
      continue;
    }
    result_ = run_to_exit();
    // Unless it says stop by now.
    command_.compare_exchange_strong(command, idle);
    constexpr std::uint64_t one = 1;
    sys::call(__NR_write, completion(), &one, sizeof one);
  }
}

sys::SysError VcpuThread::run_to_exit() {
  drop_pending_kick();
  for (;;) {
    const sys::SysError error = vcpu_.run();
    // EAGAIN: an application processor got its start-up IPI; it runs next time. EINTR
    // that nobody asked for: a debugger, the freezer, glibc's own signals.
    const bool again = error.number == EAGAIN || error.number == EINTR;
    if (!again || vcpu_.immediate_exit()) {
      return error;
    }
  }
}

} // namespace casemate::addon
