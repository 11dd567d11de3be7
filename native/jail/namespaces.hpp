// The namespaces that are dear to make, made ahead of the launches.
#pragma once

#include "jail/host.hpp"
#include "sys/result.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace casemate::jail {

/// The path of the monitor inside a prepared mount namespace.
inline constexpr const char* monitor_path = "/casemate-vmm";

/// Inside a pooled user namespace the one user and the one group that exist.
inline constexpr std::uint32_t inside_id = 1000;

/// Gives the calling task a mount namespace of two read-only mounts: an empty
/// tmpfs as its root, and in it the monitor. A launch copies these two instead of
/// the host's mounts. The functions below need a stack for the task they clone.
sys::SysError enter_prepared_mount_namespace(const Host& host);

/// A fresh network namespace; its loopback device is down and stays so.
sys::Result<int> make_network_namespace(const Host& host, std::span<std::byte> stack);

/// What a user namespace is made of; user_namespaces(7).
struct UserMaps {
  std::string_view users;  // the text of uid_map
  std::string_view groups; // the text of gid_map
  bool deny_setgroups;     // what a caller without CAP_SETGID must do first
  bool forbid_namespaces;  // in it no namespace of any kind can be made
};

/// `proc`: a descriptor of the host's /proc.
sys::Result<int> make_user_namespace(int proc, const UserMaps& maps, std::span<std::byte> stack);

struct UserNamespace {
  int fd = -1;
  int lease = -1;            // of the user id, or none
  std::uint32_t user_id = 0; // as the launcher sees it
  std::uint32_t group_id = 0;
};

/// A user namespace in which only inside_id exists, mapped to a user id that no
/// other VM has, and in which no namespace of any kind can be made.
sys::Result<UserNamespace> make_monitor_user_namespace(Host& host, std::span<std::byte> stack);

/// The launchers' own user namespace of a rootless caller: root inside is the caller.
sys::Result<int> make_launcher_user_namespace(const Host& host, std::span<std::byte> stack);

} // namespace casemate::jail
