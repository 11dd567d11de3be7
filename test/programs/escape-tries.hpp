// What a monitor in somebody else's hands might try. Each try is one function: what it gives is
// 0 or more where nothing stopped it, or -errno.
//
// None of them does harm where nothing stops it, so that it can be shown there, too: what
// would be harmful is asked for in a way that is refused for another reason once it is allowed.
#pragma once

#include "sys/syscall.hpp"
#include "vmm/wire.h"

#include <arpa/inet.h>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/if_alg.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/kvm.h>
#include <linux/mount.h>
#include <linux/netlink.h>
#include <linux/openat2.h>
#include <linux/perf_event.h>
#include <linux/vm_sockets.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

namespace escape {

using casemate::sys::call;

/// What there is to be reached, as the test says.
struct Targets {
  long host = 0;      // a process of the host that holds a secret
  long neighbour = 0; // another VM's monitor
  unsigned short port = 0;
  long shared_memory = 0;
  long message_queue = 0;
  char name[64] = {}; // of a key, an abstract socket, a POSIX message queue, and the host
  char path[256] = {};
};

inline Targets targets;

/// In every process of this program at the same address; only those that are to be reached have it.
inline constexpr std::uint64_t secret = 0x5ec2e75ec2e75ec2;
inline volatile std::uint64_t held = 0;

/// How a copy of this program ends that a try has started.
inline constexpr int started = 42;

/// Allowed, but refused for what it was asked for.
inline long allowed(long result, std::initializer_list<long> reasons) {
  for (const long reason : reasons) {
    if (result == -reason) {
      return 0;
    }
  }
  return result;
}

inline long closed(long fd) {
  if (fd >= 0) {
    call(__NR_close, fd);
  }
  return fd;
}

inline long open_path(const char* path, int flags = O_RDONLY) {
  return closed(call(__NR_openat, AT_FDCWD, path, flags | O_NONBLOCK | O_NOCTTY, 0));
}

/// The first of these that works for a descriptor that was given, or what the last one failed with.
template <typename Use> long through_descriptors(Use use) {
  long result = -EBADF;
  for (int fd = 0; fd < 64; ++fd) {
    const long one = use(fd);
    if (one != -EBADF) {
      result = one;
    }
    if (result >= 0) {
      return result;
    }
  }
  return result;
}

// ---- Files -----------------------------------------------------------------------------------

inline long open_host_file() { return open_path(targets.path); }
inline long open_etc_passwd() { return open_path("/etc/passwd"); }
inline long open_root() { return open_path("/", O_RDONLY | O_DIRECTORY); }
inline long open_above_root() { return open_path("/../../../../etc/passwd"); }
inline long open_own_binary() {
  const long read = open_path("/casemate-vmm");
  return read == -ENOENT ? open_path("/proc/self/exe") : read; // where there is no jail
}
inline long write_own_binary() {
  const long fd = open_path("/casemate-vmm", O_WRONLY);
  return fd == -ENOENT ? allowed(open_path("/proc/self/exe", O_WRONLY), {ETXTBSY})
                       : allowed(fd, {ETXTBSY});
}
inline long create_file() {
  const char* path =
      call(__NR_access, "/tmp", 0) == 0 ? "/tmp/casemate-escape" : "/casemate-escape";
  const long fd = closed(call(__NR_openat, AT_FDCWD, path, O_CREAT | O_WRONLY, 0600));
  if (fd >= 0) {
    call(__NR_unlink, path);
  }
  return fd;
}
inline long create_directory() {
  const char* path =
      call(__NR_access, "/tmp", 0) == 0 ? "/tmp/casemate-escape.d" : "/casemate-escape";
  const long made = call(__NR_mkdir, path, 0700);
  call(__NR_rmdir, path);
  return made;
}
inline long open_temporary_file() {
  const char* path = call(__NR_access, "/tmp", 0) == 0 ? "/tmp" : "/";
  return closed(call(__NR_openat, AT_FDCWD, path, O_TMPFILE | O_RDWR, 0600));
}
inline long make_device_node() {
  const char* path =
      call(__NR_access, "/tmp", 0) == 0 ? "/tmp/casemate-escape.n" : "/casemate-escape";
  const long made = call(__NR_mknod, path, S_IFCHR | 0600, makedev(1, 5));
  call(__NR_unlink, path);
  return made;
}
inline long open_by_descriptor() {
  return through_descriptors(
      [](int fd) { return closed(call(__NR_openat, fd, "../../../etc/passwd", O_RDONLY, 0)); });
}
inline long change_to_descriptor() {
  return through_descriptors([](int fd) { return call(__NR_fchdir, fd); });
}
inline long open_with_openat2() {
  open_how how{};
  how.flags = O_RDONLY;
  return closed(call(437, AT_FDCWD, "/etc/passwd", &how, sizeof how));
}
inline long open_magic_link() {
  open_how how{};
  how.flags = O_RDONLY;
  return closed(call(437, AT_FDCWD, "/proc/self/fd/0", &how, sizeof how));
}
inline long open_by_handle() {
  struct {
    unsigned bytes = 8;
    int type = 1;
    unsigned char handle[128] = {};
  } handle;
  return allowed(through_descriptors([&](int fd) {
                   return closed(call(__NR_open_by_handle_at, fd, &handle, O_RDONLY));
                 }),
                 {ESTALE, ENODEV, EOPNOTSUPP});
}
inline long read_names() {
  const long fd = call(__NR_openat, AT_FDCWD, "/", O_RDONLY | O_DIRECTORY, 0);
  if (fd < 0) {
    return fd;
  }
  char entries[1024];
  const long read = call(__NR_getdents64, fd, entries, sizeof entries);
  closed(fd);
  return read;
}
inline long read_status_of_path() {
  struct stat status {};
  return call(__NR_newfstatat, AT_FDCWD, "/etc/passwd", &status, 0);
}
inline long watch_files() {
  const long fd = call(__NR_inotify_init1, 0);
  if (fd < 0) {
    return fd;
  }
  const long watch = call(__NR_inotify_add_watch, fd, "/etc", 2 /* IN_MODIFY */);
  closed(fd);
  return watch;
}
inline long watch_file_system() { return closed(call(__NR_fanotify_init, 0, O_RDONLY)); }

// ---- Mounts ----------------------------------------------------------------------------------

inline long mount_anything() {
  return allowed(call(__NR_mount, "none", "/", "casemate-none", 0, nullptr), {ENODEV});
}
inline long mount_proc() {
  const long fd = call(430 /* fsopen */, "proc", 0);
  if (fd < 0) {
    return fd;
  }
  const long made = call(431 /* fsconfig */, fd, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0);
  closed(fd);
  return made;
}
inline long unmount() {
  return allowed(call(__NR_umount2, "/", 4 /* MNT_EXPIRE */ | 1 /* MNT_FORCE */), {EINVAL});
}
inline long make_file_system() {
  const long fd = call(430 /* fsopen */, "tmpfs", 0);
  if (fd < 0) {
    return fd;
  }
  long mount = call(431 /* fsconfig */, fd, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0);
  mount = mount < 0 ? mount : call(432 /* fsmount */, fd, 0, 0);
  closed(fd);
  return closed(mount);
}
inline long clone_mounts() {
  return closed(call(428 /* open_tree */, AT_FDCWD, "/", 1u /* OPEN_TREE_CLONE */ | O_CLOEXEC));
}
inline long change_mount() {
  const std::uint64_t attributes[4] = {~std::uint64_t{0}, 0, 0, 0};
  return allowed(call(442 /* mount_setattr */, AT_FDCWD, "/", 0, attributes, sizeof attributes),
                 {EINVAL});
}
inline long move_mount() {
  return allowed(call(429 /* move_mount */, AT_FDCWD, "/", AT_FDCWD, "/", 0), {EINVAL, ELOOP});
}
inline long change_root() { return call(__NR_chroot, "/"); }
inline long pivot_root() { return allowed(call(__NR_pivot_root, ".", "."), {EBUSY, EINVAL}); }
inline long list_mounts() {
  struct {
    std::uint32_t size = 24;
    std::uint32_t spare = 0;
    std::uint64_t mount = ~std::uint64_t{0}; // LSMT_ROOT
    std::uint64_t parameter = 0;
  } request;
  std::uint64_t ids[16];
  return call(458 /* listmount */, &request, ids, 16, 0);
}

// ---- Processes -------------------------------------------------------------------------------

inline long read_memory_of(long pid) {
  std::uint64_t read = 0;
  const iovec here{&read, sizeof read};
  const iovec there{const_cast<std::uint64_t*>(&held), sizeof read};
  const long size = call(__NR_process_vm_readv, pid, &here, 1, &there, 1, 0);
  return size < 0 ? size : read == secret ? 0 : -ENODATA;
}
inline long read_host() { return read_memory_of(targets.host); }
inline long read_neighbour() { return read_memory_of(targets.neighbour); }
inline long write_host() {
  std::uint64_t written = secret;
  const iovec here{&written, sizeof written};
  const iovec there{const_cast<std::uint64_t*>(&held), sizeof written};
  return call(__NR_process_vm_writev, targets.host, &here, 1, &there, 1, 0);
}
inline long trace(long pid) { return call(__NR_ptrace, PTRACE_SEIZE, pid, 0, 0); }
inline long trace_host() { return trace(targets.host); }
inline long trace_neighbour() { return trace(targets.neighbour); }
inline long trace_itself() { return call(__NR_ptrace, PTRACE_TRACEME, 0, 0, 0); }
inline long open_host_process() { return closed(call(434 /* pidfd_open */, targets.host, 0)); }
inline long take_descriptor_of_host() {
  const long process = call(434 /* pidfd_open */, targets.host, 0);
  if (process < 0) {
    return process;
  }
  const long fd = closed(call(438 /* pidfd_getfd */, process, 0, 0));
  closed(process);
  return fd;
}
inline long signal_host() { return call(__NR_kill, targets.host, 0); }
inline long signal_neighbour() { return call(__NR_kill, targets.neighbour, 0); }
inline long signal_all() { return call(__NR_kill, -1, 0); }
inline long signal_thread_of_host() { return call(__NR_tgkill, targets.host, targets.host, 0); }
inline long signal_by_socket() {
  // Whoever owns a socket gets its SIGIO.
  return call(__NR_fcntl, CASEMATE_FD_CONTROL, F_SETOWN, targets.host);
}
inline long limits_of_host() {
  rlimit64 limit{};
  return call(__NR_prlimit64, targets.host, RLIMIT_NOFILE, nullptr, &limit);
}
inline long priority_of_host() { return call(__NR_getpriority, PRIO_PROCESS, targets.host); }
inline long processors_of_host() {
  unsigned long mask[128];
  return call(__NR_sched_getaffinity, targets.host, sizeof mask, mask);
}
inline long compare_with_host() {
  return call(__NR_kcmp, targets.host, targets.host, 0 /* KCMP_FILE */, 0, 0);
}
inline long locks_of_host() {
  void* head = nullptr;
  std::size_t length = 0;
  return call(__NR_get_robust_list, targets.host, &head, &length);
}
inline long pages_of_host() {
  void* page = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(&held) & ~4095ul);
  int status = 0;
  return call(__NR_move_pages, targets.host, 1, &page, nullptr, &status, 0);
}
inline long fork_itself() {
  const long child = call(__NR_fork);
  if (child == 0) {
    call(__NR_exit_group, 0);
  }
  if (child > 0) {
    call(__NR_wait4, child, nullptr, __WALL, nullptr);
  }
  return child;
}

// ---- Namespaces ------------------------------------------------------------------------------

template <unsigned long Kind> long unshare() { return call(__NR_unshare, Kind); }
template <unsigned long Kind> long clone_into() {
  // struct clone_args; without CLONE_VM, so that it has a stack.
  std::uint64_t arguments[11] = {Kind};
  const long child = call(__NR_clone3, arguments, sizeof arguments);
  if (child == 0) {
    call(__NR_exit_group, 0);
  }
  if (child > 0) {
    call(__NR_wait4, child, nullptr, __WALL, nullptr);
  }
  return child;
}
inline long join_by_descriptor() {
  return through_descriptors([](int fd) { return call(__NR_setns, fd, 0); });
}
inline long join_host() {
  const long process = call(434 /* pidfd_open */, targets.host, 0);
  if (process < 0) {
    return process;
  }
  const long joined = call(__NR_setns, process, CLONE_NEWUTS | CLONE_NEWIPC);
  closed(process);
  return joined;
}
/// They are the host's while nobody has given it others.
inline long read_host_name() {
  utsname names{};
  const long read = call(__NR_uname, &names);
  return read < 0 ? read : std::strcmp(names.nodename, targets.name) == 0 ? 0 : -ENODATA;
}
inline long set_host_name() {
  utsname names{};
  const long read = call(__NR_uname, &names);
  return read < 0 ? read : call(__NR_sethostname, names.nodename, std::strlen(names.nodename));
}

// ---- Sockets and other ways to talk ----------------------------------------------------------

inline long socket_of(int family, int type, int protocol = 0) {
  return closed(call(__NR_socket, family, type, protocol));
}
inline long packet_socket() { return socket_of(AF_PACKET, SOCK_RAW, htons(3)); }
inline long raw_socket() { return socket_of(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
inline long netlink_socket() { return socket_of(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE); }
inline long internet_socket() { return socket_of(AF_INET6, SOCK_STREAM); }
inline long unix_socket() { return socket_of(AF_UNIX, SOCK_STREAM); }
inline long crypto_socket() { return socket_of(AF_ALG, SOCK_SEQPACKET); }
inline long vsock_socket() { return socket_of(AF_VSOCK, SOCK_STREAM); }

template <typename Address> long connect_to(int type, const Address& address, std::size_t size) {
  const long fd = call(__NR_socket, reinterpret_cast<const sockaddr*>(&address)->sa_family,
                       type | SOCK_NONBLOCK, 0);
  if (fd < 0) {
    return fd;
  }
  const long connected = call(__NR_connect, fd, &address, size);
  closed(fd);
  return allowed(connected, {EINPROGRESS});
}
inline long connect_to_host_port() {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(targets.port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return connect_to(SOCK_STREAM, address, sizeof address);
}
inline long route_to_metadata() {
  // A datagram socket sends nothing when it is connected: there is a way, or there is none.
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(80);
  address.sin_addr.s_addr = htonl(0xa9fea9fe); // 169.254.169.254
  return connect_to(SOCK_DGRAM, address, sizeof address);
}
inline long connect_to_abstract_socket() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path + 1, targets.name);
  return connect_to(SOCK_STREAM, address,
                    offsetof(sockaddr_un, sun_path) + 1 + std::strlen(targets.name));
}
inline long connect_to_path(const char* path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path);
  return connect_to(SOCK_STREAM, address, sizeof address);
}
inline long attach_shared_memory() {
  const long address = call(__NR_shmat, targets.shared_memory, nullptr, 010000 /* SHM_RDONLY */);
  if (address < 0 && address > -4096) {
    return address;
  }
  call(__NR_shmdt, address);
  return 0;
}
inline long ask_message_queue() {
  char status[256];
  return call(__NR_msgctl, targets.message_queue, 2 /* IPC_STAT */, status);
}
inline long open_message_queue() {
  return closed(call(__NR_mq_open, targets.name, O_RDONLY, 0, nullptr));
}
inline long find_key() {
  const long key =
      call(__NR_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user", targets.name, 0);
  if (key < 0) {
    return key;
  }
  std::uint64_t read = 0;
  return call(__NR_keyctl, KEYCTL_READ, key, &read, sizeof read);
}

// ---- The kernel ------------------------------------------------------------------------------

inline long load_bpf() {
  bpf_attr attributes{};
  attributes.map_type = BPF_MAP_TYPE_ARRAY;
  attributes.key_size = 4;
  attributes.value_size = 4;
  attributes.max_entries = 1;
  return closed(call(__NR_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes));
}
inline long watch_processor() {
  perf_event_attr attributes{};
  attributes.type = PERF_TYPE_SOFTWARE;
  attributes.size = sizeof attributes;
  attributes.config = PERF_COUNT_SW_CPU_CLOCK;
  return closed(call(__NR_perf_event_open, &attributes, -1, 0, -1, 0));
}
inline long handle_page_faults() { return closed(call(__NR_userfaultfd, O_CLOEXEC)); }
inline long make_io_uring() {
  io_uring_params parameters{};
  return closed(call(425 /* io_uring_setup */, 1, &parameters));
}
inline long add_key() {
  return call(__NR_add_key, "user", "casemate-escape", "x", 1, KEY_SPEC_PROCESS_KEYRING);
}
inline long load_kernel() {
  return allowed(call(__NR_kexec_load, 0, 0, nullptr, 0x8000ul /* no flag */), {EINVAL});
}
inline long load_kernel_file() {
  return allowed(call(320 /* kexec_file_load */, -1, -1, 0, nullptr, ~0ul), {EINVAL});
}
inline long load_module() { return allowed(call(__NR_init_module, "", 0, ""), {ENOEXEC, EFAULT}); }
inline long load_module_file() { return allowed(call(__NR_finit_module, -1, "", 0), {EBADF}); }
inline long unload_module() {
  return allowed(call(__NR_delete_module, "casemate_none", O_NONBLOCK), {ENOENT});
}
inline long read_kernel_log() {
  char text[16];
  return call(__NR_syslog, 3 /* SYSLOG_ACTION_READ_ALL */, text, sizeof text);
}
inline long swap_on() { return allowed(call(__NR_swapon, "", 0), {ENOENT}); }
inline long swap_off() { return allowed(call(__NR_swapoff, ""), {ENOENT}); }
inline long restart_machine() { return allowed(call(__NR_reboot, 0, 0, 0, nullptr), {EINVAL}); }
inline long set_quota() {
  return allowed(call(__NR_quotactl, 0x80000400u /* Q_GETFMT */, "/dev/null", 0, held),
                 {ENOTBLK, ENODEV, EFAULT});
}
inline long account() { return allowed(call(__NR_acct, "/dev/null"), {EACCES}); }
inline long set_time() {
  timex time{};
  time.modes = ADJ_TICK;
  return allowed(call(__NR_adjtimex, &time), {EINVAL});
}
inline long change_personality() {
  return call(__NR_personality, 0x0040000 /* no random addresses */);
}
inline long change_segments() {
  char table[8];
  return call(__NR_modify_ldt, 0, table, sizeof table);
}
inline long all_ports() { return call(__NR_iopl, 3); }
inline long some_ports() { return call(__NR_ioperm, 0x80, 1, 1); }
inline long hide_memory() { return closed(call(447 /* memfd_secret */, 0)); }
inline long set_label() {
  return allowed(call(460 /* lsm_set_self_attr */, 100, nullptr, 0, 0),
                 {EINVAL, EOPNOTSUPP, EFAULT});
}

// ---- Rights ----------------------------------------------------------------------------------

inline long become_root() { return call(__NR_setresuid, 0, 0, 0); }
inline long become_root_group() { return call(__NR_setresgid, 0, 0, 0); }
inline long set_groups() {
  const gid_t groups[] = {0};
  return call(__NR_setgroups, 1, groups);
}
inline long raise_capabilities() {
  const __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  data[0].effective = data[0].permitted = 1u << CAP_SYS_ADMIN;
  return call(__NR_capset, &header, data);
}
inline long have_capabilities() {
  const __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  const long read = call(__NR_capget, &header, data);
  if (read < 0) {
    return read;
  }
  for (const auto& half : data) {
    if ((half.effective | half.permitted | half.inheritable) != 0) {
      return 0;
    }
  }
  for (int capability = 0; capability < 41; ++capability) {
    if (call(__NR_prctl, PR_CAPBSET_READ, capability, 0, 0, 0) > 0) {
      return 0;
    }
  }
  return -ENODATA;
}
inline long keep_capabilities() { return call(__NR_prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0); }
inline long execute(const char* path) {
  const char* const arguments[] = {"escape", "started", nullptr};
  return call(__NR_execve, path, arguments, arguments + 2);
}
inline long execute_shell() {
  const char* const arguments[] = {"sh", "-c", "exit 42", nullptr};
  return call(__NR_execve, "/bin/sh", arguments, arguments + 3);
}
inline long execute_itself() {
  const long result = execute("/casemate-vmm");
  return result == -ENOENT ? execute("/proc/self/exe") : result;
}
inline long execute_descriptor(long fd) {
  const char* const arguments[] = {"escape", "started", nullptr};
  return call(__NR_execveat, fd, "", arguments, arguments + 2, AT_EMPTY_PATH);
}
inline long execute_given() { return allowed(through_descriptors(execute_descriptor), {ENOEXEC}); }
inline long execute_memory() {
  const long fd = call(__NR_memfd_create, "", 0);
  if (fd < 0) {
    return fd;
  }
  constexpr char script[] = "#!/bin/sh\nexit 42\n";
  const long wrote = call(__NR_write, fd, script, sizeof script - 1);
  return wrote < 0 ? wrote : execute_descriptor(fd);
}

// ---- Resources -------------------------------------------------------------------------------

template <int Resource> long raise_limit() {
  rlimit64 limit{};
  long result = call(__NR_prlimit64, 0, Resource, nullptr, &limit);
  if (result < 0) {
    return result;
  }
  limit.rlim_cur = limit.rlim_max =
      limit.rlim_max == RLIM64_INFINITY ? limit.rlim_max : limit.rlim_max + 1;
  return call(__NR_prlimit64, 0, Resource, &limit, nullptr);
}
inline long take_descriptors() {
  long fd = 0;
  for (int i = 0; i < 300 && fd >= 0; ++i) {
    fd = call(__NR_dup, 0);
  }
  return fd; // they go with the process of this try
}
inline long take_processes() {
  long children[100];
  int count = 0;
  long child = 0;
  while (count < 100 && (child = call(__NR_fork)) > 0) {
    children[count++] = child;
  }
  if (child == 0) {
    for (;;) {
      call(__NR_pause);
    }
  }
  for (int i = 0; i < count; ++i) {
    call(__NR_kill, children[i], 9);
    call(__NR_wait4, children[i], nullptr, __WALL, nullptr);
  }
  return child;
}
inline long take_memory() {
  const long address =
      call(__NR_mmap, nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return address < 0 && address > -4096 ? address : 0;
}
inline long take_code() {
  const long address = call(__NR_mmap, nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return address < 0 && address > -4096 ? address : 0;
}
inline long lock_memory() {
  return call(__NR_mlock,
              reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(&held) & ~4095ul), 4096);
}
inline long take_priority() {
  const int priority = 1;
  return call(__NR_sched_setscheduler, 0, 1 /* SCHED_FIFO */, &priority);
}
inline long write_file() {
  const long fd = call(__NR_memfd_create, "", 0);
  if (fd < 0) {
    return fd;
  }
  const long wrote = call(__NR_write, fd, "x", 1);
  closed(fd);
  return wrote;
}

// ---- Descriptors that it was given -------------------------------------------------------------

inline long write_guest() { return call(__NR_pwrite64, CASEMATE_FD_GUEST, "x", 1, 0); }
inline long truncate_guest() { return call(__NR_ftruncate, CASEMATE_FD_GUEST, 1ul << 30); }
inline long allocate_in_guest() { return call(__NR_fallocate, CASEMATE_FD_GUEST, 0, 1ul << 30, 1); }
inline long map_guest() {
  const long address =
      call(__NR_mmap, nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, CASEMATE_FD_GUEST, 0);
  return address < 0 && address > -4096 ? address : 0;
}
inline long mode_of_guest() { return call(__NR_fchmod, CASEMATE_FD_GUEST, 0500); }
inline long own_guest() { return call(__NR_fchown, CASEMATE_FD_GUEST, 0, 0); }
inline long label_guest() {
  return call(__NR_fsetxattr, CASEMATE_FD_GUEST, "trusted.casemate", "x", 1, 0);
}
/// Others may have the same open file: another VM that gets O_DIRECT cannot read it.
inline long flags_of_guest() { return call(__NR_fcntl, CASEMATE_FD_GUEST, F_SETFL, O_APPEND); }
inline long lock_guest() { return call(__NR_flock, CASEMATE_FD_GUEST, 1 /* LOCK_SH */); }
inline long flags_of_null() { return call(__NR_fcntl, 0, F_SETFL, O_NONBLOCK); }
inline long take_lease() {
  flock64 lock{};
  lock.l_type = F_WRLCK;
  lock.l_start = 1ul << 40;
  lock.l_len = 1;
  return call(__NR_fcntl, CASEMATE_FD_LEASE, F_OFD_SETLK, &lock);
}
inline long steal_input_of_terminal() { return call(__NR_ioctl, 0, 0x5412 /* TIOCSTI */, "x"); }
inline long another_vm() { return closed(call(__NR_ioctl, CASEMATE_FD_KVM, KVM_CREATE_VM, 0)); }
inline long send_descriptor() {
  int fd = 0;
  char data = '\n';
  iovec part{&data, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  auto* header = reinterpret_cast<cmsghdr*>(control);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fd);
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  return call(__NR_sendmsg, CASEMATE_FD_CONSOLE_OUT, &message, MSG_NOSIGNAL);
}

// ---- What auditors of containers look for -------------------------------------------------------

/// What the next two are about.
inline const char* path = nullptr;
inline long look_at() { return open_path(path); }
inline long knock_at() { return connect_to_path(path); }
inline long have_environment() { return environ != nullptr && *environ != nullptr ? 0 : -ENODATA; }
inline long have_terminal() { return open_path("/dev/tty", O_RDWR); }
inline long be_root() {
  const long uid = call(__NR_geteuid);
  return uid < 0 ? uid : uid == 0 ? 0 : -ENODATA;
}
inline long be_unfiltered() {
  const long mode = call(__NR_prctl, PR_GET_SECCOMP, 0, 0, 0, 0);
  return mode < 0 ? mode : mode == 0 ? 0 : -ENODATA;
}

} // namespace escape
