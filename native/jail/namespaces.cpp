#include "jail/namespaces.hpp"

#include "jail/process_state.hpp"
#include "sys/clone.hpp"
#include "sys/fd.hpp"
#include "sys/futex.hpp"
#include "sys/syscall.hpp"

#include <atomic>
#include <cerrno>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <sys/stat.h>
#include <utility>

namespace casemate::jail {

using sys::call;
using sys::check;
using sys::Fd;
using sys::Result;
using sys::SysError;

namespace {

SysError configure(int context, unsigned command, const char* key, const char* value) {
  return check("fsconfig", call(__NR_fsconfig, context, command, key, value, 0));
}

/// A tmpfs, not mounted anywhere yet.
Result<int> make_root() {
  long context = call(__NR_fsopen, "tmpfs", FSOPEN_CLOEXEC);
  if (context < 0) {
    return check("fsopen(tmpfs)", context);
  }
  Fd owned(static_cast<int>(context));
  // Room for the one file that the monitor is bound to, and its directory. Its owner may write
  // there as long as the mount is writable: without CAP_DAC_OVERRIDE this takes the mode, too.
  for (auto [key, value] : {std::pair{"mode", "0755"}, {"size", "4k"}, {"nr_inodes", "4"}}) {
    if (SysError error = configure(owned.get(), FSCONFIG_SET_STRING, key, value)) {
      return error;
    }
  }
  if (SysError error = configure(owned.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr)) {
    return error;
  }
  long mount = call(__NR_fsmount, owned.get(), FSMOUNT_CLOEXEC,
                    MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
  return mount < 0 ? Result<int>(check("fsmount", mount)) : static_cast<int>(mount);
}

SysError set_attributes(int directory, const char* path, std::uint64_t attributes) {
  struct mount_attr set {};
  set.attr_set = attributes;
  return check("mount_setattr", call(__NR_mount_setattr, directory, path,
                                     *path == '\0' ? AT_EMPTY_PATH : 0, &set, sizeof set));
}

/// Writes a file of /proc; `name` is what an error calls it.
SysError write_proc(const char* name, int proc, const char* path, const char* text,
                    std::size_t size) {
  long fd = call(__NR_openat, proc, path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) {
    return check(name, fd);
  }
  Fd owned(static_cast<int>(fd));
  return check(name, call(__NR_write, owned.get(), text, size));
}

/// "<inside> <outside> 1", the one line of a uid or gid map.
struct MapLine {
  char text[40];
  std::size_t size = 0;

  MapLine(std::uint32_t inside, std::uint32_t outside) {
    number(inside);
    text[size++] = ' ';
    number(outside);
    text[size++] = ' ';
    text[size++] = '1';
  }

  std::string_view view() const { return {text, size}; }

private:
  void number(std::uint32_t value) {
    char digits[10];
    int count = 0;
    do {
      digits[count++] = static_cast<char>('0' + value % 10);
      value /= 10;
    } while (value > 0);
    while (count > 0) {
      text[size++] = digits[--count];
    }
  }
};

/// The task whose only purpose is to be in the new user namespace while its maps
/// are written. It shares our memory; nobody else is in its namespace.
struct Holder {
  std::atomic<std::uint32_t> go{0};
  long parent = sys::call(__NR_getpid);
  int proc = -1;
  bool forbid_namespaces = false;
  SysError error{};
};

void hold(void* argument) {
  auto* holder = static_cast<Holder*>(argument);
  holder->error = die_with_parent(holder->parent);
  while (holder->go.load(std::memory_order_acquire) == 0) {
    sys::futex_wait(holder->go, 0);
  }
  if (holder->forbid_namespaces) {
    // These limits belong to the user namespace of whoever opens them: ours, the
    // new one. Raising them again takes CAP_SYS_RESOURCE in it.
    static constexpr const char* limits[] = {
        "sys/user/max_user_namespaces",   "sys/user/max_mnt_namespaces",
        "sys/user/max_pid_namespaces",    "sys/user/max_net_namespaces",
        "sys/user/max_ipc_namespaces",    "sys/user/max_uts_namespaces",
        "sys/user/max_cgroup_namespaces", "sys/user/max_time_namespaces",
    };
    for (const char* limit : limits) {
      if (SysError error = write_proc("write(/proc/sys/user)", holder->proc, limit, "0", 1)) {
        holder->error = error;
        break;
      }
    }
  }
  call(__NR_exit_group, 0);
}

} // namespace

Result<int> make_user_namespace(int proc, const UserMaps& maps, std::span<std::byte> stack) {
  Holder holder;
  holder.proc = proc;
  sys::CloneArguments arguments;
  arguments.flags = CLONE_VM | CLONE_FILES | CLONE_NEWUSER;
  arguments.stack = reinterpret_cast<std::uint64_t>(stack.data());
  arguments.stack_size = stack.size();
  long pid = sys::clone3(arguments, hold, &holder);
  if (pid < 0) {
    return check("clone3(CLONE_NEWUSER)", pid);
  }
  SysError error{};
  if (maps.deny_setgroups) {
    error = write_proc("write(setgroups)", proc, ProcPath(pid, "setgroups").text, "deny", 4);
  }
  if (!error) {
    error = write_proc("write(gid_map)", proc, ProcPath(pid, "gid_map").text, maps.groups.data(),
                       maps.groups.size());
  }
  if (!error) {
    error = write_proc("write(uid_map)", proc, ProcPath(pid, "uid_map").text, maps.users.data(),
                       maps.users.size());
  }
  Fd space;
  if (!error) {
    long fd = call(__NR_openat, proc, ProcPath(pid, "ns/user").text, O_RDONLY | O_CLOEXEC);
    error = check("open(/proc/pid/ns/user)", fd);
    space.reset(fd < 0 ? -1 : static_cast<int>(fd));
  }
  holder.forbid_namespaces = maps.forbid_namespaces && !error;
  holder.go.store(1, std::memory_order_release);
  sys::futex_wake(holder.go, 1);
  sys::reap(pid);
  if (!error) {
    error = holder.error;
  }
  return error ? Result<int>(error) : Result<int>(space.release());
}

namespace {

struct Lease {
  Fd fd;
  std::uint32_t index = 0;
};

/// A user id that no other VM on this host has: a lock on one byte of one file,
/// held by an open file description that the monitor inherits. So it lasts exactly
/// as long as the monitor, across processes and crashes, without a daemon.
/// fcntl_locking(2), F_OFD_SETLK
Result<Lease> lease_user_id(Host& host) {
  char path[64] = "thread-self/fd/";
  ProcPath number(host.leases.get(), "");
  char* to = path + 15;
  for (const char* from = number.text; *from != '/'; ++from) {
    *to++ = *from;
  }
  *to = '\0';
  // Opened anew: the lock belongs to the open file description, and each VM needs its own.
  long fd = call(__NR_openat, host.proc.get(), path, O_RDWR | O_CLOEXEC);
  if (fd < 0) {
    return check("open(user id leases)", fd);
  }
  Lease lease{Fd(static_cast<int>(fd)), 0};
  for (std::uint32_t tries = 0; tries < host.user_ids; ++tries) {
    lease.index = host.next_user_id.fetch_add(1, std::memory_order_relaxed) % host.user_ids;
    struct flock lock {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = lease.index;
    lock.l_len = 1;
    long result = call(__NR_fcntl, lease.fd.get(), F_OFD_SETLK, &lock);
    if (result == 0) {
      return lease;
    }
    if (result != -EAGAIN && result != -EACCES) {
      return check("fcntl(F_OFD_SETLK)", result);
    }
  }
  return SysError{"fcntl(F_OFD_SETLK)", EAGAIN};
}

} // namespace

SysError enter_prepared_mount_namespace(const Host& host) {
  if (SysError error = check("unshare(CLONE_NEWNS)", call(__NR_unshare, CLONE_NEWNS))) {
    return error;
  }
  // Nothing that happens here may reach the host's mounts.
  if (SysError error = check("mount(MS_PRIVATE)", call(__NR_mount, nullptr, "/", nullptr,
                                                       MS_REC | MS_PRIVATE, nullptr))) {
    return error;
  }
  // The monitor's file as a mount of its own, while its path can still be seen.
  long monitor = call(__NR_open_tree, AT_FDCWD, host.monitor, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  if (monitor < 0) {
    return check("open_tree(monitor)", monitor);
  }
  Fd monitor_mount(static_cast<int>(monitor));
  // Not nosuid: that would forbid the SELinux transition at execve.
  if (SysError error =
          set_attributes(monitor_mount.get(), "", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV)) {
    return error;
  }
  Result<int> root = make_root();
  if (!root) {
    return root.error();
  }
  Fd root_mount(root.value());
  // Not opened for it: a child of another launch, cloned meanwhile, would hold a copy of a
  // descriptor that can write until its execve, and the root could not become read-only (EBUSY).
  if (SysError error = check("mknod(monitor's mount point)",
                             call(__NR_mknodat, root_mount.get(), monitor_path + 1, S_IFREG, 0))) {
    return error;
  }
  // The root goes on top of the old one, then they change places, and the old one,
  // now on top, is detached with everything below it.
  if (SysError error = check("move_mount(root)", call(__NR_move_mount, root_mount.get(), "",
                                                      AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH))) {
    return error;
  }
  // Only now: before Linux 6.15 nothing can be mounted below a mount that is itself detached.
  if (SysError error = check("move_mount(monitor)",
                             call(__NR_move_mount, monitor_mount.get(), "", root_mount.get(),
                                  monitor_path + 1, MOVE_MOUNT_F_EMPTY_PATH))) {
    return error;
  }
  if (SysError error = check("fchdir", call(__NR_fchdir, root_mount.get()))) {
    return error;
  }
  if (SysError error = check("pivot_root", call(__NR_pivot_root, ".", "."))) {
    return error;
  }
  if (SysError error = check("umount2", call(__NR_umount2, ".", 2 /* MNT_DETACH */))) {
    return error;
  }
  if (SysError error = check("chdir", call(__NR_chdir, "/"))) {
    return error;
  }
  return set_attributes(
      AT_FDCWD, "/", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
}

Result<int> make_network_namespace(const Host& host, std::span<std::byte> stack) {
  // Born in a task of its own: a launcher that moved into the new namespace itself
  // could not return to Node's without rights over that.
  struct Birth {
    int proc;
    long fd;
  } birth{host.proc.get(), -EOWNERDEAD};
  sys::CloneArguments arguments;
  arguments.flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_NEWNET;
  arguments.stack = reinterpret_cast<std::uint64_t>(stack.data());
  arguments.stack_size = stack.size();
  long pid = sys::clone3(
      arguments,
      [](void* argument) {
        auto* born = static_cast<Birth*>(argument);
        born->fd = call(__NR_openat, born->proc, "thread-self/ns/net", O_RDONLY | O_CLOEXEC);
        call(__NR_exit_group, 0);
      },
      &birth);
  if (pid < 0) {
    return check("clone3(CLONE_NEWNET)", pid);
  }
  sys::reap(pid);
  return birth.fd < 0 ? Result<int>(check("open(/proc/thread-self/ns/net)", birth.fd))
                      : static_cast<int>(birth.fd);
}

Result<UserNamespace> make_monitor_user_namespace(Host& host, std::span<std::byte> stack) {
  UserNamespace made;
  Lease lease;
  if (!host.rootless) {
    Result<Lease> leased = lease_user_id(host);
    if (!leased) {
      return leased.error();
    }
    lease = std::move(leased).value();
    made.user_id = host.first_user_id + lease.index;
    made.group_id = made.user_id;
  }
  // Rootless: 0 is the caller, in the launchers' own user namespace.
  const MapLine users(inside_id, made.user_id);
  const MapLine groups(inside_id, made.group_id);
  Result<int> space = make_user_namespace(
      host.proc.get(), {users.view(), groups.view(), host.rootless, true}, stack);
  if (!space) {
    return space.error();
  }
  made.fd = space.value();
  made.lease = lease.fd.release();
  return made;
}

Result<int> make_launcher_user_namespace(const Host& host, std::span<std::byte> stack) {
  const MapLine users(0, host.uid);
  const MapLine groups(0, host.gid);
  return make_user_namespace(host.proc.get(), {users.view(), groups.view(), true, false}, stack);
}

} // namespace casemate::jail
