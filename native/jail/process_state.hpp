// What belongs to the whole of Node's process, and must be as it was when we are done.
#pragma once

#include "sys/futex.hpp"
#include "sys/result.hpp"
#include "sys/syscall.hpp"

#include <cstdint>
#include <linux/prctl.h>

namespace casemate::jail {

/// Blocks every signal while it lives: tasks started meanwhile keep them blocked,
/// so none of Node's handlers ever runs on a launcher's stack, and Ctrl-C does not
/// end a task that is a process of its own.
class AllSignalsBlocked {
public:
  AllSignalsBlocked() {
    const std::uint64_t all = ~std::uint64_t{0};
    sys::call(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &all, &before_, 8);
  }
  ~AllSignalsBlocked() { sys::call(__NR_rt_sigprocmask, 2, &before_, nullptr, 8); }
  AllSignalsBlocked(const AllSignalsBlocked&) = delete;
  AllSignalsBlocked& operator=(const AllSignalsBlocked&) = delete;

private:
  std::uint64_t before_ = 0;
};

/// Ends the calling task with the task that made it, `parent` being that one's process.
/// For tasks that share Node's descriptors: one that outlives Node keeps every control
/// socket open, and no monitor hears that Node is gone.
inline sys::SysError die_with_parent(long parent) {
  sys::SysError error = sys::check(
      "prctl(PR_SET_PDEATHSIG)", sys::call(__NR_prctl, PR_SET_PDEATHSIG, 9 /* SIGKILL */, 0, 0, 0));
  // It may have ended before it was asked to tell.
  if (sys::call(__NR_getppid) != parent) {
    sys::call(__NR_exit_group, 0);
  }
  return error;
}

/// The dumpable flag of Node's memory, while a child shares it.
///
/// A child that changes its credentials makes the memory non-dumpable, Node's too.
/// That is wanted while the child is in another user namespace (a process there
/// with CAP_SYS_PTRACE could otherwise read Node), so it is set beforehand rather
/// than left to happen, and what was there before is restored after execve.
///
/// The flag belongs to the process, hence the only global state of the addon. A
/// rootless caller's launches wait for each other here: files of /proc that a
/// rootless launcher writes (uid maps) belong to root while the flag is off.
class NotDumpable {
public:
  explicit NotDumpable(bool alone) : alone_(alone) {
    mutex_.lock();
    if (users_++ == 0) {
      before_ = sys::call(__NR_prctl, PR_GET_DUMPABLE, 0, 0, 0, 0);
      sys::call(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    }
    if (!alone_) {
      mutex_.unlock();
    }
  }
  ~NotDumpable() {
    if (!alone_) {
      mutex_.lock();
    }
    if (--users_ == 0) {
      sys::call(__NR_prctl, PR_SET_DUMPABLE, before_, 0, 0, 0);
    }
    mutex_.unlock();
  }
  NotDumpable(const NotDumpable&) = delete;
  NotDumpable& operator=(const NotDumpable&) = delete;

  /// Keeps launches that wait for each other away.
  static sys::TaskMutex& mutex() { return mutex_; }

private:
  bool alone_;
  static inline sys::TaskMutex mutex_;
  static inline int users_ = 0;
  static inline long before_ = 1;
};

} // namespace casemate::jail
