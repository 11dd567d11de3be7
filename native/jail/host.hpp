#pragma once

#include "sys/fd.hpp"
#include "sys/result.hpp"

#include <atomic>
#include <cstdint>

namespace casemate::jail {

/// What launcher tasks use of the host once they no longer see it. Opened before
/// any of them starts; descriptors, because their root is another one.
struct Host {
  sys::Fd proc;                  // the host's /proc, checked to be a procfs
  sys::Fd dev;                   // the host's /dev
  sys::Fd leases;                // file of leased user ids, or none; see lease_user_id()
  const char* monitor = nullptr; // absolute path of the monitor
  bool rootless = false;         // the caller may create namespaces only inside a user namespace
  std::uint32_t uid = 0;         // of the caller
  std::uint32_t gid = 0;
  std::uint32_t first_user_id = 0; // range for the monitors' own user ids (not rootless)
  std::uint32_t user_ids = 0;
  std::atomic<std::uint32_t> next_user_id{0};
  sys::Fd user_namespace; // rootless: the launchers' own

  /// Opens /proc. A procfs that is not one could feed us labels and read-backs of
  /// its own making (CVE-2019-16884 and its successors).
  sys::SysError open_proc();
  sys::SysError open_dev();
};

/// "<pid>/<name>" relative to Host::proc, without libc.
struct ProcPath {
  char text[64];
  ProcPath(long pid, const char* name);
};

} // namespace casemate::jail
