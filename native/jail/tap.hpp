// A tap device, by ioctl and rtnetlink: what `ip tuntap add` and its sisters would do.
#pragma once

#include "jail/host.hpp"
#include "jail/plan.h"
#include "sys/result.hpp"

#include <cstddef>
#include <span>

namespace casemate::jail {

/// The descriptor of a tap as the checked step describes it, in the network namespace
/// `network`, or the calling task's own where that is -1. A tap file belongs to the
/// namespace it was opened in, so a task with this stack is cloned, goes there, and ends.
sys::Result<int> make_tap(const Host& host, const casemate_tap& wanted, int network,
                          std::span<std::byte> stack);

} // namespace casemate::jail
