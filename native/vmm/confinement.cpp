#include "vmm/confinement.hpp"

#include "jail/landlock.hpp"
#include "jail/seccomp.hpp"
#include "kvm/abi.h"
#include "sys/syscall.hpp"
#include "vmm/control.hpp"
#include "vmm/signals.hpp"

#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <linux/ioctl.h>
#include <linux/mman.h>
#include <linux/poll.h>
#include <linux/prctl.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <tuple>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace casemate::vmm {

namespace {

using jail::seccomp::Rule;

// Refused calls raise SIGSYS, so that Node is told which one it was.
constexpr std::uint32_t refused = SECCOMP_RET_TRAP;

constexpr std::uint32_t control[] = {CASEMATE_FD_CONTROL};
constexpr std::uint32_t sent_to[] = {CASEMATE_FD_CONTROL, CASEMATE_FD_CONSOLE_OUT};
constexpr std::uint32_t received_from[] = {CASEMATE_FD_CONTROL, CASEMATE_FD_CONSOLE_IN};
constexpr std::uint32_t guest_files[] = {CASEMATE_FD_GUEST, CASEMATE_FD_INPUT};
constexpr std::uint32_t linux_files[] = {
    CASEMATE_FD_GUEST,       CASEMATE_FD_INPUT,        CASEMATE_FD_INITRDS,
    CASEMATE_FD_INITRDS + 1, CASEMATE_FD_INITRDS + 2,  CASEMATE_FD_INITRDS + 3,
    CASEMATE_FD_INITRDS + 4, CASEMATE_FD_INITRDS_LAST,
};
static_assert(std::size(linux_files) == 1 + CASEMATE_MAX_INITRDS);
constexpr std::uint32_t no_address[] = {0};
constexpr std::uint32_t data_pages[] = {PROT_READ | PROT_WRITE};
constexpr std::uint32_t page_advice[] = {MADV_POPULATE_WRITE, MADV_NOHUGEPAGE};
constexpr std::uint32_t linux_page_advice[] = {MADV_HUGEPAGE, MADV_DONTNEED};
// F_SETOWN would let SIGIO hit others. Of the control socket alone: an open file that Node and
// other monitors have, too, would change for them all, and with O_DIRECT no guest can be read.
constexpr std::uint32_t set_flags[] = {F_SETFL};

constexpr std::uint32_t setup_ioctls[] = {
    KVM_CREATE_VM,   KVM_SET_USER_MEMORY_REGION, KVM_SET_TSS_ADDR, KVM_ENABLE_CAP,
    KVM_CREATE_VCPU, CASEMATE_KVM_SET_CPUID2,    KVM_RUN,          KVM_GET_REGS,
    KVM_GET_SREGS,   KVM_X86_SET_MSR_FILTER,
};
constexpr std::uint32_t guest_ioctls[] = {KVM_RUN, KVM_GET_REGS, KVM_GET_SREGS};
constexpr std::uint32_t on_demand_ioctls[] = {KVM_RUN, KVM_GET_REGS, KVM_GET_SREGS,
                                              KVM_SET_USER_MEMORY_REGION};

// Those of Linux guests stand apart: to install a filter costs with its length.
constexpr std::uint32_t vcpu_ioctls[] = {KVM_RUN, KVM_SIGNAL_MSI, KVM_KVMCLOCK_CTRL, KVM_GET_REGS,
                                         KVM_GET_SREGS};
constexpr std::uint32_t loop_ioctls[] = {KVM_SIGNAL_MSI, TUNSETOFFLOAD};
constexpr auto linux_setup_ioctls = [] {
  std::array<std::uint32_t, std::size(setup_ioctls) + 8> all{
      KVM_SIGNAL_MSI, KVM_KVMCLOCK_CTRL, CASEMATE_KVM_SET_MSRS, KVM_IOEVENTFD, BLKGETSIZE64,
      BLKSSZGET,      BLKPBSZGET,        TUNSETOFFLOAD};
  std::ranges::copy(setup_ioctls, all.begin() + 8);
  return all;
}();
/// A tap's frames are read and written, a stream's are sent. Configurations with a network
/// device of another number are refused.
constexpr std::uint32_t network[] = {CASEMATE_FD_DEVICES};
constexpr std::uint32_t wake[] = {wake_descriptor};
constexpr std::uint32_t disks[] = {disk_descriptor};
constexpr std::uint32_t told[] = {wake_descriptor, disk_descriptor};
constexpr auto device_files = [] {
  std::array<std::uint32_t, CASEMATE_MAX_DEVICE_DESCRIPTORS> all{};
  for (std::uint32_t i = 0; i < all.size(); ++i) {
    all[i] = CASEMATE_FD_DEVICES + i;
  }
  return all;
}();
constexpr std::uint32_t stack_pages[] = {PROT_READ | PROT_WRITE, PROT_NONE};
constexpr std::uint32_t interrupting[] = {SIGIO};

/// What both phases need: filters add up, so what the second allows, the first does too.
constexpr std::array common_rules{
    Rule{__NR_ppoll},        Rule{__NR_getrandom},  Rule{__NR_clock_gettime},
    Rule{__NR_rt_sigreturn}, Rule{__NR_exit_group},
};

template <typename... Own> constexpr auto with_common(Own... own) {
  return std::apply([&](auto... common) { return std::array{own..., common...}; }, common_rules);
}

template <typename... Own> constexpr auto with_bare_metal(Own... own) {
  return with_common(own..., Rule{__NR_sendto, 0, sent_to}, Rule{__NR_recvfrom, 0, received_from},
                     Rule{__NR_shutdown, 0, control}, Rule{__NR_fcntl, 0, control, 1, set_flags});
}

/// Sockets of streams come while the guest runs, and have any number. All that there are have
/// been handed in, so what is left to be forbidden is an address.
template <typename... Own> constexpr auto with_linux(Own... own) {
  return with_common(own..., Rule{__NR_sendto, 4, no_address}, Rule{__NR_recvfrom, 4, no_address},
                     Rule{__NR_recvmsg, 0, control}, Rule{__NR_shutdown}, Rule{__NR_close});
}

/// While the VM is created.
constexpr auto setup_rules = [] {
  return with_bare_metal(Rule{__NR_pread64, 0, guest_files}, Rule{__NR_ioctl, 1, setup_ioctls},
                         Rule{__NR_mmap, 2, data_pages}, Rule{__NR_munmap}, Rule{__NR_close},
                         Rule{__NR_seccomp}, Rule{__NR_madvise, 2, page_advice});
};

/// From before the guest's image is read until the end.
constexpr auto guest_rules = [] {
  return with_bare_metal(Rule{__NR_pread64, 0, guest_files}, Rule{__NR_ioctl, 1, guest_ioctls},
                         Rule{__NR_madvise, 2, page_advice});
};

/// Likewise, of a guest that has not got all of its memory yet. The others do without.
constexpr auto on_demand_rules = [] {
  return with_bare_metal(Rule{__NR_pread64, 0, guest_files}, Rule{__NR_ioctl, 1, on_demand_ioctls},
                         Rule{__NR_madvise, 2, page_advice});
};

/// The main thread of a Linux guest, while the VM is created; its vCPUs' threads are born
/// with it.
constexpr auto linux_setup_rules = [] {
  return with_linux(
      Rule{__NR_pread64, 0, linux_files}, Rule{__NR_ioctl, 1, linux_setup_ioctls},
      Rule{__NR_mmap, 2, stack_pages}, Rule{__NR_munmap}, Rule{__NR_seccomp}, Rule{__NR_clone3},
      Rule{__NR_getpid}, Rule{__NR_epoll_create1}, Rule{__NR_eventfd2}, Rule{__NR_dup3, 1, told},
      Rule{__NR_futex}, Rule{__NR_tgkill, 2, interrupting}, Rule{__NR_epoll_ctl},
      Rule{__NR_epoll_wait}, Rule{__NR_read}, Rule{__NR_write, 0, told},
      Rule{__NR_madvise, 2, linux_page_advice}, Rule{__NR_fstat}, Rule{__NR_io_uring_setup},
      Rule{__NR_io_uring_register}, Rule{__NR_io_uring_enter, 0, disks},
      Rule{__NR_preadv2, 0, device_files}, Rule{__NR_pwritev2, 0, device_files},
      Rule{__NR_fdatasync, 0, device_files}, Rule{__NR_fallocate, 0, device_files},
      Rule{__NR_readv, 0, network}, Rule{__NR_writev, 0, network}, Rule{__NR_sendmsg, 0, network});
};

/// The main thread from before the kernel is read until the end: the event loop.
constexpr auto linux_loop_rules = [] {
  return with_linux(Rule{__NR_pread64, 0, linux_files}, Rule{__NR_ioctl, 1, loop_ioctls},
                    Rule{__NR_futex}, Rule{__NR_tgkill, 2, interrupting}, Rule{__NR_epoll_ctl},
                    Rule{__NR_epoll_wait}, Rule{__NR_read}, Rule{__NR_write, 0, wake},
                    Rule{__NR_io_uring_enter, 0, disks}, Rule{__NR_madvise, 2, linux_page_advice},
                    Rule{__NR_readv, 0, network}, Rule{__NR_writev, 0, network},
                    Rule{__NR_sendmsg, 0, network});
};

/// A thread that reads and writes disks, where there is no io_uring.
constexpr auto linux_disk_rules = [] {
  return std::array{
      Rule{__NR_preadv2, 0, device_files},
      Rule{__NR_pwritev2, 0, device_files},
      Rule{__NR_fdatasync, 0, device_files},
      Rule{__NR_fallocate, 0, device_files},
      Rule{__NR_futex},
      Rule{__NR_write, 0, disks},
      Rule{__NR_rt_sigreturn},
      Rule{__NR_sendto, 0, control},
      Rule{__NR_recvfrom, 0, control},
      Rule{__NR_shutdown, 0, control},
      Rule{__NR_exit_group},
  };
};

/// A vCPU's thread. Of the socket it has what a refused call is reported with, and no more.
constexpr auto linux_vcpu_rules = [] {
  return std::array{
      Rule{__NR_ioctl, 1, vcpu_ioctls},
      Rule{__NR_futex},
      Rule{__NR_write, 0, wake},
      Rule{__NR_clock_gettime},
      Rule{__NR_rt_sigreturn},
      Rule{__NR_sendto, 0, control},
      Rule{__NR_recvfrom, 0, control},
      Rule{__NR_shutdown, 0, control},
      Rule{__NR_exit_group},
  };
};

constexpr auto setup_filter = jail::seccomp::assemble<setup_rules, refused>();
constexpr auto guest_filter = jail::seccomp::assemble<guest_rules, refused>();
constexpr auto on_demand_filter = jail::seccomp::assemble<on_demand_rules, refused>();
constexpr auto linux_setup_filter = jail::seccomp::assemble<linux_setup_rules, refused>();
constexpr auto linux_loop_filter = jail::seccomp::assemble<linux_loop_rules, refused>();
constexpr auto linux_disk_filter = jail::seccomp::assemble<linux_disk_rules, refused>();
constexpr auto linux_vcpu_filter = jail::seccomp::assemble<linux_vcpu_rules, refused>();

sys::SysError install(const Configuration& configuration, std::span<const sock_filter> filter) {
  return configuration.has(CASEMATE_CONFIGURE_SECCOMP) ? jail::seccomp::install(filter)
                                                       : sys::SysError{};
}

/// Whether Node was gone before PDEATHSIG was set.
bool is_orphan() {
  pollfd socket{CASEMATE_FD_CONTROL, 0, 0};
  constexpr struct { long seconds, nanoseconds; } at_once{};
  return sys::call(__NR_ppoll, &socket, 1, &at_once, nullptr, 8) == 1 &&
         (socket.revents & POLLHUP) != 0;
}

} // namespace

sys::SysError confine_process(const Configuration& configuration) {
  if (configuration.has(CASEMATE_CONFIGURE_PARENT_DEATH)) {
    // Here, because an exec with a SELinux transition and a change of uid clear it.
    if (auto error = sys::check(
            "prctl", sys::call(__NR_prctl, PR_SET_PDEATHSIG, 9 /* SIGKILL */, 0, 0, 0))) {
      return error;
    }
    if (is_orphan()) {
      exit_process(1);
    }
  }
  if (configuration.has(CASEMATE_CONFIGURE_NO_NEW_PRIVS)) {
    if (auto error = sys::check("prctl", sys::call(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))) {
      return error;
    }
  }
  if (configuration.has(CASEMATE_CONFIGURE_LANDLOCK)) {
    if (auto error = jail::landlock_deny_all()) {
      return error;
    }
  }
  if (configuration.has(CASEMATE_CONFIGURE_SECCOMP)) {
    return report_refused_calls();
  }
  return {};
}

sys::SysError confine_setup(const Configuration& configuration) {
  return configuration.is_linux() ? install(configuration, linux_setup_filter)
                                  : install(configuration, setup_filter);
}

sys::SysError confine_guest(const Configuration& configuration) {
  if (configuration.is_linux()) {
    return install(configuration, linux_loop_filter);
  }
  return configuration.has_memory_on_demand() ? install(configuration, on_demand_filter)
                                              : install(configuration, guest_filter);
}

sys::SysError confine_disk_thread() { return jail::seccomp::install(linux_disk_filter); }

sys::SysError confine_vcpu() { return jail::seccomp::install(linux_vcpu_filter); }

} // namespace casemate::vmm
