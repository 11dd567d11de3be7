// The child between clone3 and execve, top to bottom in the order of plan.h.
//
// It shares its memory with Node (CLONE_VM) and its launcher sleeps meanwhile
// (CLONE_VFORK). So: raw system calls only, no allocation, no errno, no libc, no
// destructor with an effect; what it writes is its own stack and the report.
// The plan was checked by check_plan() before the child existed.
#include "jail/steps.hpp"

#include "jail/clock.hpp"
#include "jail/landlock.hpp"
#include "jail/seccomp.hpp"
#include "sys/result.hpp"
#include "sys/syscall.hpp"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/keyctl.h>
#include <linux/mount.h>
#include <linux/prctl.h>
#include <linux/securebits.h>

namespace casemate::jail {

namespace {

using sys::call;
using sys::check;
using sys::SysError;

/// One call that is a step by itself; returned as an error only where it failed.
#define CASEMATE_TRY(name, expression)                                                             \
  if (long result_ = (expression); result_ < 0)                                                    \
  return check(name, result_)

SysError setns(const casemate_step* step, const int* slots) {
  const auto& setns = payload<casemate_setns>(step);
  // The type makes the kernel refuse a descriptor of another kind of namespace.
  return check("setns", call(__NR_setns, slots[setns.slot], setns.type));
}

SysError mount(const casemate_step* step) {
  const char* source = tail<casemate_mount>(step);
  const char* target = next_string(source);
  const char* type = next_string(target);
  const char* data = next_string(type);
  return check("mount", call(__NR_mount, source, target, type, payload<casemate_mount>(step).flags,
                             *data == '\0' ? nullptr : data));
}

SysError umount(const casemate_step* step) {
  return check("umount2",
               call(__NR_umount2, tail<casemate_flags>(step), payload<casemate_flags>(step).flags));
}

/// pivot_root(2) with both arguments ".": the old root ends up mounted on top of
/// the new one and is detached from there. No directory for the old root is needed
/// in the new one, so that may be empty and read-only.
SysError pivot_root(const casemate_step* step) {
  // Private first: pivot_root refuses a shared parent, and the unmount below must
  // not propagate to the host.
  CASEMATE_TRY("mount",
               call(__NR_mount, nullptr, "/", nullptr, 0x44000 /* MS_REC | MS_PRIVATE */, nullptr));
  CASEMATE_TRY("chdir", call(__NR_chdir, tail<casemate_none>(step)));
  CASEMATE_TRY("pivot_root", call(__NR_pivot_root, ".", "."));
  CASEMATE_TRY("umount2", call(__NR_umount2, ".", 2 /* MNT_DETACH */));
  return check("chdir", call(__NR_chdir, "/"));
}

SysError mount_setattr(const casemate_step* step) {
  const auto& setattr = payload<casemate_mount_setattr>(step);
  struct mount_attr attributes {};
  attributes.attr_set = setattr.set;
  attributes.attr_clr = setattr.clear;
  attributes.propagation = setattr.propagation;
  return check("mount_setattr",
               call(__NR_mount_setattr, AT_FDCWD, tail<casemate_mount_setattr>(step),
                    setattr.recursive != 0 ? AT_RECURSIVE : 0, &attributes, sizeof attributes));
}

SysError move_mount(const casemate_step* step, const int* slots) {
  return check("move_mount",
               call(__NR_move_mount, slots[payload<casemate_move_mount>(step).slot], "", AT_FDCWD,
                    tail<casemate_move_mount>(step), MOVE_MOUNT_F_EMPTY_PATH));
}

/// A working directory outside the root (a leaked directory descriptor, a mount
/// gone) reads as "(unreachable)/...": that was CVE-2024-21626.
SysError check_cwd() {
  char path[256];
  CASEMATE_TRY("getcwd", call(__NR_getcwd, path, sizeof path));
  return path[0] == '/' ? SysError{} : SysError{"getcwd", 2 /* ENOENT */};
}

SysError rlimit(const casemate_step* step) {
  const auto& limit = payload<casemate_rlimit>(step);
  const std::uint64_t pair[2] = {limit.soft, limit.hard};
  return check("prlimit64", call(__NR_prlimit64, 0, limit.resource, pair, nullptr));
}

/// Puts the descriptors at their numbers and lets execve close all others.
SysError descriptors(const casemate_step* step, const int* slots) {
  const auto& list = payload<casemate_descriptors>(step);
  const auto* pair = reinterpret_cast<const casemate_descriptor*>(tail<casemate_descriptors>(step));
  // First all sources out of the way of the targets, so that no dup3 below closes
  // a source that is still to come.
  int source[CASEMATE_SLOTS];
  int above = list.count == 0 ? 0 : static_cast<int>(pair[list.count - 1].number) + 1;
  for (std::uint32_t i = 0; i < list.count; ++i) {
    source[i] = slots[pair[i].slot];
    if (source[i] < 0) { // there is none: it could not be copied for this launch, and why
      return {"fcntl(F_DUPFD_CLOEXEC)", -source[i]};
    }
    if (source[i] < above) {
      long moved = call(__NR_fcntl, source[i], F_DUPFD_CLOEXEC, above);
      CASEMATE_TRY("fcntl(F_DUPFD_CLOEXEC)", moved);
      source[i] = static_cast<int>(moved);
    }
  }
  // All that is open now, and is not chosen below, ends at execve: also what a
  // library of Node's opened without O_CLOEXEC.
  CASEMATE_TRY("close_range", call(__NR_close_range, 0, ~0u, CLOSE_RANGE_CLOEXEC));
  for (std::uint32_t i = 0; i < list.count; ++i) {
    CASEMATE_TRY("dup3", call(__NR_dup3, source[i], pair[i].number, 0));
  }
  return {};
}

/// Never libc's set*id, which signal every thread of the process to follow.
SysError ids(const casemate_step* step) {
  const auto& ids = payload<casemate_ids>(step);
  if (ids.clear_groups != 0) {
    CASEMATE_TRY("setgroups", call(__NR_setgroups, 0, nullptr));
  }
  // Groups before users: afterwards the right to change them is gone.
  CASEMATE_TRY("setresgid", call(__NR_setresgid, ids.gid, ids.gid, ids.gid));
  return check("setresuid", call(__NR_setresuid, ids.uid, ids.uid, ids.uid));
}

/// After the user namespace, whose entry refills the set.
SysError drop_bounding() {
  for (int capability = 0; capability < 64; ++capability) {
    long result = call(__NR_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0);
    if (result == -22 /* EINVAL: past the kernel's last capability */) {
      return {};
    }
    CASEMATE_TRY("prctl(PR_CAPBSET_DROP)", result);
  }
  return {};
}

SysError capabilities(const casemate_step* step) {
  const auto& sets = payload<casemate_capabilities>(step);
  CASEMATE_TRY("prctl(PR_CAP_AMBIENT)",
               call(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
  // Explicitly, for setresuid keeps capabilities when the old uid had no mapping.
  struct __user_cap_header_struct head {
    _LINUX_CAPABILITY_VERSION_3, 0
  };
  struct __user_cap_data_struct data[2];
  for (unsigned half = 0; half < 2; ++half) {
    data[half].effective = static_cast<__u32>(sets.effective >> (32 * half));
    data[half].permitted = static_cast<__u32>(sets.permitted >> (32 * half));
    data[half].inheritable = static_cast<__u32>(sets.inheritable >> (32 * half));
  }
  return check("capset", call(__NR_capset, &head, data));
}

SysError install_filter(const casemate_step* step) {
  const auto& filter = payload<casemate_seccomp>(step);
  const auto* program = reinterpret_cast<const sock_filter*>(tail<casemate_seccomp>(step));
  return seccomp::install({program, filter.count}, filter.flags);
}

/// The one execve of a launch. The path lies inside this mount namespace: for a
/// descriptor from another one, or a memfd, the kernel treats the file as if on a
/// nosuid mount, and an SELinux transition would fail.
SysError exec(const casemate_step* step) {
  const auto& exec = payload<casemate_exec>(step);
  const char* path = tail<casemate_exec>(step);
  const char* arguments[513];
  const char* environment[513];
  const char* text = path;
  for (std::uint32_t i = 0; i < exec.argument_count; ++i) {
    text = next_string(text);
    arguments[i] = text;
  }
  arguments[exec.argument_count] = nullptr;
  for (std::uint32_t i = 0; i < exec.environment_count; ++i) {
    text = next_string(text);
    environment[i] = text;
  }
  environment[exec.environment_count] = nullptr;
  // What execve would pass on: signals that are ignored, as Node ignores SIGPIPE and
  // SIGXFSZ for itself (clone3 has reset handlers only), and the mask of the launcher,
  // which has them all blocked.
  const struct {
    void (*handler)(int);
    std::uint64_t flags;
    void (*restorer)();
    std::uint64_t mask;
  } by_default{};
  for (int ignored : {13 /* SIGPIPE */, 25 /* SIGXFSZ */}) {
    CASEMATE_TRY("rt_sigaction", call(__NR_rt_sigaction, ignored, &by_default, nullptr, 8));
  }
  const std::uint64_t none = 0;
  CASEMATE_TRY("rt_sigprocmask", call(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &none, nullptr, 8));
  return check("execve", call(__NR_execve, path, arguments, environment));
}

SysError run_step(const casemate_step* step, const int* slots) {
  switch (step->op) {
  case CASEMATE_OP_SETNS:
    return setns(step, slots);
  case CASEMATE_OP_UNSHARE:
    return check("unshare", call(__NR_unshare, payload<casemate_flags>(step).flags));
  case CASEMATE_OP_MOUNT:
    return mount(step);
  case CASEMATE_OP_UMOUNT:
    return umount(step);
  case CASEMATE_OP_PIVOT_ROOT:
    return pivot_root(step);
  case CASEMATE_OP_MOUNT_SETATTR:
    return mount_setattr(step);
  case CASEMATE_OP_MOVE_MOUNT:
    return move_mount(step, slots);
  case CASEMATE_OP_MKDIR:
    return check("mkdir",
                 call(__NR_mkdir, tail<casemate_mode>(step), payload<casemate_mode>(step).mode));
  case CASEMATE_OP_CHDIR:
    return check("chdir", call(__NR_chdir, tail<casemate_none>(step)));
  case CASEMATE_OP_CHECK_CWD:
    return check_cwd();
  case CASEMATE_OP_HOSTNAME:
    return check("sethostname", call(__NR_sethostname, tail<casemate_text>(step),
                                     payload<casemate_text>(step).length));
  case CASEMATE_OP_DOMAINNAME:
    return check("setdomainname", call(__NR_setdomainname, tail<casemate_text>(step),
                                       payload<casemate_text>(step).length));
  case CASEMATE_OP_RLIMIT:
    return rlimit(step);
  case CASEMATE_OP_SESSION:
    return check("setsid", call(__NR_setsid));
  case CASEMATE_OP_KEYRING:
    return check("keyctl(KEYCTL_JOIN_SESSION_KEYRING)",
                 call(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, nullptr));
  case CASEMATE_OP_CORE_SCHED:
    // A cookie of its own: no sibling hyperthread runs another VM at the same time.
    return check("prctl(PR_SCHED_CORE)",
                 call(__NR_prctl, PR_SCHED_CORE, PR_SCHED_CORE_CREATE, 0, 1 /* thread group */, 0));
  case CASEMATE_OP_DESCRIPTORS:
    return descriptors(step, slots);
  case CASEMATE_OP_IDS:
    return ids(step);
  case CASEMATE_OP_BOUNDING:
    return drop_bounding();
  case CASEMATE_OP_CAPABILITIES:
    return capabilities(step);
  case CASEMATE_OP_SECUREBITS:
    return check("prctl(PR_SET_SECUREBITS)",
                 call(__NR_prctl, PR_SET_SECUREBITS, payload<casemate_flags>(step).flags, 0, 0, 0));
  case CASEMATE_OP_NO_NEW_PRIVS:
    return check("prctl(PR_SET_NO_NEW_PRIVS)", call(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  case CASEMATE_OP_LANDLOCK:
    return landlock_deny_all();
  case CASEMATE_OP_SECCOMP:
    return install_filter(step);
  case CASEMATE_OP_PARENT_DEATH:
    return check("prctl(PR_SET_PDEATHSIG)",
                 call(__NR_prctl, PR_SET_PDEATHSIG, payload<casemate_flags>(step).flags, 0, 0, 0));
  case CASEMATE_OP_UMASK:
    call(__NR_umask, payload<casemate_mode>(step).mode);
    return {};
  case CASEMATE_OP_EXEC:
    return exec(step);
  default:
    return {"plan", 22 /* EINVAL */};
  }
}

#undef CASEMATE_TRY

} // namespace

void run_steps(const casemate_step* step, std::uint32_t count, const int* slots,
               StepReport& report) {
  for (std::uint32_t i = 0; i < count; ++i, step = next_step(step)) {
    if (SysError error = run_step(step, slots)) {
      report.call = error.call;
      report.error = error.number;
      return;
    }
    report.stamps[i] = monotonic_ns();
    report.done = i + 1;
  }
}

} // namespace casemate::jail
