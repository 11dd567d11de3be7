// The rights that the monitor gives up by itself: what must come after exec. The rest
// of the jail was built around it by its launcher.
#pragma once

#include "sys/result.hpp"
#include "vmm/configuration.hpp"

namespace casemate::vmm {

/// What a vCPU's thread tells the event loop by: an eventfd in the place of standard input,
/// which nobody needs, for a filter can only name a number that is known before.
inline constexpr int wake_descriptor = 0;

/// Likewise what disks are read and written by: an io_uring, or the eventfd of the threads
/// that do that.
inline constexpr int disk_descriptor = 1;

/// PDEATHSIG, no_new_privs, Landlock.
sys::SysError confine_process(const Configuration& configuration);

/// seccomp for creating the VM.
sys::SysError confine_setup(const Configuration& configuration);

/// seccomp for reading the guest's image and running it.
sys::SysError confine_guest(const Configuration& configuration);

/// seccomp of a thread that reads and writes disks, likewise.
sys::SysError confine_disk_thread();

/// seccomp of a Linux guest's vCPU, by its own thread, which has that of the set-up already.
sys::SysError confine_vcpu();

} // namespace casemate::vmm
