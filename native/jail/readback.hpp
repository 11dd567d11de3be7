// What the kernel says of a monitor, read back before its guest may run.
#pragma once

#include "jail/host.hpp"
#include "jail/plan.hpp"

#include <cstdint>

namespace casemate::jail {

/// What the plan asked for, as /proc/<pid>/status will show it to the launcher.
struct Expected {
  std::uint32_t checks = 0; // enum casemate_check
  std::uint32_t user_id = 0;
  std::uint32_t group_id = 0;
  const char* label = nullptr; // SELinux context, without a trailing NUL or newline
};

/// What differed. `aspect` is the name of the layer, or null where nothing did.
struct Mismatch {
  const char* aspect = nullptr;
  sys::SysError error{}; // where the state could not be read at all

  explicit operator bool() const { return aspect != nullptr || error; }
};

Mismatch read_back(const Host& host, long pid, const Expected& expected);

} // namespace casemate::jail
