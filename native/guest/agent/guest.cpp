#include "guest/agent/guest.hpp"

#include "guest/agent-abi.h"
#include "sys/clock.hpp"
#include "sys/fd.hpp"
#include "sys/syscall.hpp"

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <linux/module.h>
#include <linux/reboot.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>

namespace casemate::agent {

namespace {

constexpr std::uint64_t millisecond = 1'000'000;

void sleep_ms(long milliseconds) {
  const struct {
    long seconds, nanoseconds;
  } time{milliseconds / 1000, milliseconds % 1000 * 1'000'000};
  sys::call(__NR_nanosleep, &time, nullptr);
}

/// linux_dirent64, as getdents64(2) has it.
struct DirectoryEntry {
  std::uint64_t inode;
  std::int64_t offset;
  std::uint16_t size;
  std::uint8_t type;
  char name[];
};

/// Whether it is loaded, or never will be. False: it lacks symbols, of modules that come later.
bool load_module(int folder, const char* name) {
  const sys::Fd file{static_cast<int>(sys::call(__NR_openat, folder, name, O_RDONLY | O_CLOEXEC))};
  if (!file) {
    return true;
  }
  const auto text = view(name);
  const bool compressed = text.ends_with(".xz") || text.ends_with(".zst") || text.ends_with(".gz");
  const long result =
      sys::call(__NR_finit_module, file.get(), "", compressed ? MODULE_INIT_COMPRESSED_FILE : 0);
  if (result == -ENOENT) {
    return false;
  }
  if (result < 0 && result != -EEXIST) {
    complain(text, result);
  }
  return true;
}

void mount_at(const char* what, const char* where, const char* type, unsigned long flags,
              const char* options, std::uint32_t mode) {
  sys::call(__NR_mkdir, where, mode);
  const long result = sys::call(__NR_mount, what, where, type, flags, options);
  // EBUSY: it is mounted there. The others: this kernel has no such thing, or the root is
  // read-only and has no such folder; what needs it will say so.
  if (result < 0 && result != -EBUSY && result != -ENODEV && result != -ENOENT) {
    complain(view(where), result);
  }
}

/// An unopened descriptor 0, 1 or 2 would become the first file that is opened.
void open_console() {
  if (sys::call(__NR_fcntl, 2, F_GETFD) >= 0) {
    return;
  }
  long console = sys::call(__NR_open, "/dev/console", O_RDWR | O_NOCTTY);
  if (console < 0) {
    console = sys::call(__NR_open, "/dev/null", O_RDWR);
  }
  for (int number = 0; number < 3; ++number) {
    if (number != console) {
      sys::call(__NR_dup2, console, number);
    }
  }
  if (console > 2) {
    sys::call(__NR_close, console);
  }
}

template <std::size_t size> std::string_view read_text(const char* path, char (&buffer)[size]) {
  const sys::Fd file{static_cast<int>(sys::call(__NR_open, path, O_RDONLY | O_CLOEXEC))};
  std::size_t used = 0;
  while (file && used < size) {
    const long got = sys::call_retry(__NR_read, file.get(), buffer + used, size - used);
    if (got <= 0) {
      break;
    }
    used += static_cast<std::size_t>(got);
  }
  return {buffer, used};
}

BootWords read_command_line() {
  char buffer[4096];
  std::string_view line = read_text("/proc/cmdline", buffer);
  if (line.ends_with('\n')) {
    line.remove_suffix(1);
  }
  BootWords words;
  while (!line.empty()) {
    std::string_view value = next(line, ' ');
    if (value == "--") {
      break; // what follows is init's
    }
    if (value == "ro" || value == "rw") {
      words.read_only = value == "ro";
      continue;
    }
    const auto name = next(value, '=');
    const auto set = [&](auto& word) {
      word.clear();
      word << value;
    };
    if (name == "root") {
      set(words.root);
    } else if (name == "rootfstype") {
      set(words.root_type);
    } else if (name == "rootflags") {
      set(words.root_flags);
    } else if (name == "init") {
      set(words.init);
    }
  }
  return words;
}

long mount_root_as(const BootWords& words, const char* where, const char* type) {
  const char* options = words.root_flags.length() > 0 ? words.root_flags.c_str() : nullptr;
  const long result = sys::call(__NR_mount, words.root.c_str(), where, type,
                                words.read_only ? MS_RDONLY : 0, options);
  // A disk that is read-only itself.
  return result == -EACCES || result == -EROFS
             ? sys::call(__NR_mount, words.root.c_str(), where, type, MS_RDONLY, options)
             : result;
}

/// As the type that the command line names, or as any that this kernel knows for disks.
long mount_root(const BootWords& words, const char* where) {
  if (words.root_type.length() > 0) {
    return mount_root_as(words, where, words.root_type.c_str());
  }
  char buffer[4096];
  std::string_view lines = read_text("/proc/filesystems", buffer);
  long result = -ENODEV;
  while (!lines.empty()) {
    std::string_view line = next(lines, '\n');
    if (!next(line, '\t').empty()) {
      continue; // "nodev": not for disks
    }
    Text<64> type;
    type << line;
    result = mount_root_as(words, where, type.c_str());
    if (result != -EINVAL) { // EINVAL: it is of another type
      break;
    }
  }
  return result;
}

/// Puts the disk in the place of the initial root. Disks may be found later than init starts.
void switch_root(const BootWords& words) {
  constexpr const char* where = "/casemate/root";
  sys::call(__NR_mkdir, where, 0755);
  const std::uint64_t end = sys::monotonic_ns() + 10'000 * millisecond;
  while (sys::call(__NR_access, words.root.c_str(), 0 /* F_OK */) < 0 &&
         sys::monotonic_ns() < end) {
    sleep_ms(5);
  }
  long result = mount_root(words, where);
  if (result >= 0) {
    result = sys::call(__NR_chdir, where);
  }
  if (result >= 0) {
    // The initial root cannot be unmounted (pivot_root(2) refuses it): it is covered.
    result = sys::call(__NR_mount, ".", "/", nullptr, MS_MOVE, nullptr);
  }
  if (result >= 0) {
    result = sys::call(__NR_chroot, ".");
  }
  if (result < 0) {
    complain(view(words.root.c_str()), result);
    sys::call(__NR_exit_group, 1);
  }
  sys::call(__NR_chdir, "/");
}

void bring_up_loopback() {
  const sys::Fd socket{
      static_cast<int>(sys::call(__NR_socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0))};
  ifreq request{};
  request.ifr_name[0] = 'l';
  request.ifr_name[1] = 'o';
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  sys::call(__NR_ioctl, socket.get(), SIOCSIFFLAGS, &request);
}

/// Reaps, for so long at most, until there is no process but this one.
bool all_ended_within(std::uint64_t nanoseconds) {
  const std::uint64_t end = sys::monotonic_ns() + nanoseconds;
  for (;;) {
    const long reaped = sys::call(__NR_wait4, -1, nullptr, WNOHANG, nullptr);
    if (reaped == -ECHILD) {
      return true;
    }
    if (reaped <= 0) {
      if (sys::monotonic_ns() >= end) {
        return false;
      }
      sleep_ms(2);
    }
  }
}

} // namespace

void complain(std::string_view what, long error) {
  Text<512> line;
  line << "casemate-agent: " << what << ": error " << static_cast<std::uint64_t>(-error) << "\n";
  sys::call(__NR_write, 2, line.c_str(), line.length());
}

void load_modules() {
  const sys::Fd folder{static_cast<int>(
      sys::call(__NR_open, CASEMATE_AGENT_MODULES, O_RDONLY | O_DIRECTORY | O_CLOEXEC))};
  if (!folder) {
    return;
  }
  // Each module needs some of the others, and says so only by failing: again and again, as
  // long as that brings in any. What is done with is removed, so a pass has all that are left.
  for (bool progress = true; progress;) {
    progress = false;
    sys::call(__NR_lseek, folder.get(), 0, SEEK_SET);
    alignas(DirectoryEntry) std::array<std::byte, 4096> entries;
    long size;
    while ((size = sys::call(__NR_getdents64, folder.get(), entries.data(), entries.size())) > 0) {
      for (long at = 0; at < size;) {
        const auto* entry = reinterpret_cast<const DirectoryEntry*>(entries.data() + at);
        at += entry->size;
        if (entry->name[0] != '.' && load_module(folder.get(), entry->name)) {
          sys::call(__NR_unlinkat, folder.get(), entry->name, 0);
          progress = true;
        }
      }
    }
  }
}

BootWords set_up_guest() {
  mount_at("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755", 0755);
  mount_at("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr, 0555);
  open_console();
  const BootWords words = read_command_line();
  const bool has_disk = words.root.length() > 0;
  if (has_disk) {
    switch_root(words);
    mount_at("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755", 0755);
    mount_at("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr, 0555);
  }
  constexpr unsigned long data = MS_NOSUID | MS_NODEV;
  mount_at("sysfs", "/sys", "sysfs", data | MS_NOEXEC, nullptr, 0555);
  mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", data | MS_NOEXEC, nullptr, 0755);
  mount_at("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=620,ptmxmode=666", 0755);
  mount_at("tmpfs", "/dev/shm", "tmpfs", data, "mode=1777", 01777);
  if (has_disk) { // which may be read-only
    mount_at("tmpfs", "/tmp", "tmpfs", data, "mode=1777", 01777);
    mount_at("tmpfs", "/run", "tmpfs", data, "mode=755", 0755);
  } else { // memory it is already
    sys::call(__NR_mkdir, "/tmp", 01777);
    sys::call(__NR_chmod, "/tmp", 01777); // whatever the umask
    sys::call(__NR_mkdir, "/run", 0755);
  }
  bring_up_loopback();
  return words;
}

void end_guest(Ending ending) {
  // To everything but this process.
  sys::call(__NR_kill, -1, SIGTERM);
  if (!all_ended_within(2'000 * millisecond)) {
    sys::call(__NR_kill, -1, SIGKILL);
    all_ended_within(2'000 * millisecond);
  }
  sys::call(__NR_sync);
  // A file system that is not being written to is left clean.
  sys::call(__NR_mount, nullptr, "/", nullptr, MS_REMOUNT | MS_RDONLY, nullptr);
  sys::call(__NR_sync);
  for (;;) {
    sys::call(__NR_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2,
              ending == Ending::PowerOff ? LINUX_REBOOT_CMD_POWER_OFF : LINUX_REBOOT_CMD_RESTART,
              nullptr);
  }
}

} // namespace casemate::agent
