// Landlock with rules for nothing: no path can be opened, listed, made or run, no
// TCP port bound or connected, no abstract socket or signal leaves the domain.
// Descriptors that are open already go on working: they are all a monitor needs.
// landlock(7)
#pragma once

#include "sys/result.hpp"
#include "sys/syscall.hpp"

#include <cstddef>
#include <cstdint>

namespace casemate::jail {

/// The Landlock ABI of this kernel, or 0 where it has none or has it switched off.
inline int landlock_abi() {
  long abi = sys::call(444 /* landlock_create_ruleset */, nullptr, 0, 1 /* ..._VERSION */);
  return abi < 0 ? 0 : static_cast<int>(abi);
}

/// Restricts the calling thread, and what it starts from here on, to nothing.
/// Needs no_new_privs, or CAP_SYS_ADMIN in the user namespace.
inline sys::SysError landlock_deny_all() {
  int abi = landlock_abi();
  if (abi < 1) {
    return {"landlock_create_ruleset", 95 /* EOPNOTSUPP */};
  }
  // struct landlock_ruleset_attr, by its size in ABI 6; an older kernel takes the
  // shorter one. Every right that the ABI knows is handled and none is granted.
  struct {
    std::uint64_t filesystem;
    std::uint64_t network;
    std::uint64_t scoped;
  } handled{};
  // ABI 1 has 13 rights, 2 adds refer, 3 truncate, 5 the device ioctls.
  handled.filesystem = (std::uint64_t{1} << (abi >= 5   ? 16
                                             : abi >= 3 ? 15
                                             : abi >= 2 ? 14
                                                        : 13)) -
                       1;
  handled.network = abi >= 4 ? 3 : 0; // TCP bind and connect
  handled.scoped = abi >= 6 ? 3 : 0;  // abstract Unix sockets and signals
  std::size_t size = abi >= 6 ? 24 : abi >= 4 ? 16 : 8;
  long ruleset = sys::call(444, &handled, size, 0);
  if (ruleset < 0) {
    return sys::check("landlock_create_ruleset", ruleset);
  }
  long result = sys::call(446 /* landlock_restrict_self */, ruleset, 0);
  sys::call(__NR_close, ruleset);
  return sys::check("landlock_restrict_self", result);
}

} // namespace casemate::jail
