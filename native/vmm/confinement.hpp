// The rights that the monitor gives up by itself: what must come after exec. The rest
// of the jail was built around it by its launcher.
#pragma once

#include "sys/result.hpp"
#include "vmm/configuration.hpp"

namespace casemate::vmm {

/// PDEATHSIG, no_new_privs, Landlock.
sys::SysError confine_process(const Configuration& configuration);

/// seccomp for creating the VM.
sys::SysError confine_setup(const Configuration& configuration);

/// seccomp for reading the guest's image and running it.
sys::SysError confine_guest(const Configuration& configuration);

} // namespace casemate::vmm
