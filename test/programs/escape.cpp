// In the place of casemate-vmm: a monitor that its guest has taken over. It puts the very
// filters on itself that the monitor does, by the monitor's own code, and then tries to get
// out. What it tries are functions of escape-tries.hpp; what came of each is a line on its
// console: a group, a name, and `open`, `seccomp`, or the number of an error.
//
//   escape host <program> [argument...]   starts a program on a host with things to be reached,
//                                         which the variable CASEMATE_ESCAPE names
//   escape tries <target>...              tries without any jail: what all this is worth
//
// and as a monitor, by the first of its guest's arguments:
//
//   tries <target>...                     tries all
//   sweep <filter> <argument>             calls every number under a filter, all of its arguments
//                                         being that one, and then exits with code 7
//   foreign <abi>                         calls by the numbers of another architecture
//   wait                                  holds a secret
#include "escape-tries.hpp"

#include "vmm/confinement.cpp"

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <pthread.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/shm.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>

using namespace casemate;
using sys::call;

namespace {

thread_local volatile sig_atomic_t was_refused = 0;

extern "C" void refuse(int, siginfo_t*, void* context) {
  was_refused = 1;
  static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RAX] = -ENOSYS;
}

} // namespace

namespace casemate::vmm {

/// The monitor ends here, and says what was refused; this one goes on.
sys::SysError report_refused_calls() {
  struct sigaction action {};
  action.sa_sigaction = refuse;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSYS, &action, nullptr);
  return {};
}

void exit_process(int status) {
  call(__NR_exit_group, status);
  __builtin_trap();
}

} // namespace casemate::vmm

namespace {

using namespace escape;

struct Try {
  const char* group;
  const char* name;
  long (*run)();
};

constexpr Try tries[] = {
    {"files", "open a file of the host", open_host_file},
    {"files", "open /etc/passwd", open_etc_passwd},
    {"files", "open a path above the root", open_above_root},
    {"files", "open the root", open_root},
    {"files", "read the names in the root", read_names},
    {"files", "open its own binary", open_own_binary},
    {"files", "write to its own binary", write_own_binary},
    {"files", "look at a path's status", read_status_of_path},
    {"files", "make a file", create_file},
    {"files", "make a file without a name", open_temporary_file},
    {"files", "make a directory", create_directory},
    {"files", "make a device node", make_device_node},
    {"files", "open through a descriptor that it has", open_by_descriptor},
    {"files", "go to a descriptor that it has", change_to_descriptor},
    {"files", "open with openat2", open_with_openat2},
    {"files", "open a magic link", open_magic_link},
    {"files", "open by a file handle", open_by_handle},
    {"files", "watch a directory", watch_files},
    {"files", "watch all files", watch_file_system},

    {"mounts", "mount", mount_anything},
    {"mounts", "mount /proc", mount_proc},
    {"mounts", "unmount", unmount},
    {"mounts", "make a file system of its own", make_file_system},
    {"mounts", "clone the mounts", clone_mounts},
    {"mounts", "change a mount", change_mount},
    {"mounts", "move a mount", move_mount},
    {"mounts", "change its root", change_root},
    {"mounts", "pivot its root", pivot_root},
    {"mounts", "list the mounts", list_mounts},

    {"processes", "read memory of the host's process", read_host},
    {"processes", "read memory of a neighbour", read_neighbour},
    {"processes", "write memory of the host's process", write_host},
    {"processes", "trace the host's process", trace_host},
    {"processes", "trace a neighbour", trace_neighbour},
    {"processes", "be traced", trace_itself},
    {"processes", "open the host's process", open_host_process},
    {"processes", "take a descriptor of the host's process", take_descriptor_of_host},
    {"processes", "signal the host's process", signal_host},
    {"processes", "signal a thread of the host's process", signal_thread_of_host},
    {"processes", "signal a neighbour", signal_neighbour},
    {"processes", "signal all", signal_all},
    {"processes", "have a socket signal the host's process", signal_by_socket},
    {"processes", "read the limits of the host's process", limits_of_host},
    {"processes", "read the priority of the host's process", priority_of_host},
    {"processes", "read the processors of the host's process", processors_of_host},
    {"processes", "compare with the host's process", compare_with_host},
    {"processes", "find the locks of the host's process", locks_of_host},
    {"processes", "find the pages of the host's process", pages_of_host},
    {"processes", "fork", fork_itself},

    {"namespaces", "unshare mounts", unshare<CLONE_NEWNS>},
    {"namespaces", "unshare users", unshare<CLONE_NEWUSER>},
    {"namespaces", "unshare pids", unshare<CLONE_NEWPID>},
    {"namespaces", "unshare the network", unshare<CLONE_NEWNET>},
    {"namespaces", "unshare ipc", unshare<CLONE_NEWIPC>},
    {"namespaces", "unshare uts", unshare<CLONE_NEWUTS>},
    {"namespaces", "unshare cgroups", unshare<CLONE_NEWCGROUP>},
    {"namespaces", "unshare time", unshare<0x80>},
    {"namespaces", "clone into new mounts", clone_into<CLONE_NEWNS>},
    {"namespaces", "clone into new users", clone_into<CLONE_NEWUSER>},
    {"namespaces", "clone into new pids", clone_into<CLONE_NEWPID>},
    {"namespaces", "clone into a new network", clone_into<CLONE_NEWNET>},
    {"namespaces", "clone into new ipc", clone_into<CLONE_NEWIPC>},
    {"namespaces", "clone into new uts", clone_into<CLONE_NEWUTS>},
    {"namespaces", "clone into new cgroups", clone_into<CLONE_NEWCGROUP>},
    {"namespaces", "clone into new time", clone_into<0x80>},
    {"namespaces", "join one by a descriptor that it has", join_by_descriptor},
    {"namespaces", "join those of the host's process", join_host},
    {"namespaces", "learn the host's name", read_host_name},
    {"namespaces", "set the host's name", set_host_name},

    {"sockets", "a packet socket", packet_socket},
    {"sockets", "a raw socket", raw_socket},
    {"sockets", "a netlink socket", netlink_socket},
    {"sockets", "an internet socket", internet_socket},
    {"sockets", "a unix socket", unix_socket},
    {"sockets", "a socket of the kernel's crypto", crypto_socket},
    {"sockets", "a vsock socket", vsock_socket},
    {"sockets", "connect to a port of the host", connect_to_host_port},
    {"sockets", "connect to an abstract socket of the host", connect_to_abstract_socket},
    {"sockets", "attach shared memory of the host", attach_shared_memory},
    {"sockets", "ask for a message queue of the host", ask_message_queue},
    {"sockets", "open a POSIX message queue of the host", open_message_queue},
    {"sockets", "find a key of the host", find_key},

    {"kernel", "make a BPF map", load_bpf},
    {"kernel", "watch a processor", watch_processor},
    {"kernel", "handle page faults", handle_page_faults},
    {"kernel", "make an io_uring", make_io_uring},
    {"kernel", "add a key", add_key},
    {"kernel", "load another kernel", load_kernel},
    {"kernel", "load another kernel from a file", load_kernel_file},
    {"kernel", "load a module", load_module},
    {"kernel", "load a module from a file", load_module_file},
    {"kernel", "unload a module", unload_module},
    {"kernel", "read the kernel's log", read_kernel_log},
    {"kernel", "swap on", swap_on},
    {"kernel", "swap off", swap_off},
    {"kernel", "restart the machine", restart_machine},
    {"kernel", "ask for a quota", set_quota},
    {"kernel", "account processes", account},
    {"kernel", "set the time", set_time},
    {"kernel", "change its personality", change_personality},
    {"kernel", "change its segments", change_segments},
    {"kernel", "get all ports", all_ports},
    {"kernel", "get a port", some_ports},
    {"kernel", "hide memory", hide_memory},
    {"kernel", "set its label", set_label},

    {"rights", "become root", become_root},
    {"rights", "become root's group", become_root_group},
    {"rights", "set its groups", set_groups},
    {"rights", "raise its capabilities", raise_capabilities},
    {"rights", "keep capabilities", keep_capabilities},
    {"rights", "execute a shell", execute_shell},
    {"rights", "execute itself", execute_itself},
    {"rights", "execute a descriptor that it has", execute_given},
    {"rights", "execute memory", execute_memory},

    {"resources", "raise its limit of descriptors", raise_limit<RLIMIT_NOFILE>},
    {"resources", "raise its limit of processes", raise_limit<RLIMIT_NPROC>},
    {"resources", "raise its limit of file sizes", raise_limit<RLIMIT_FSIZE>},
    {"resources", "raise its limit of locked memory", raise_limit<RLIMIT_MEMLOCK>},
    {"resources", "take 300 descriptors", take_descriptors},
    {"resources", "take 100 processes", take_processes},
    {"resources", "map memory", take_memory},
    {"resources", "map memory for code", take_code},
    {"resources", "lock memory", lock_memory},
    {"resources", "run before all others", take_priority},
    {"resources", "write a file in memory", write_file},

    {"descriptors", "write to its guest's file", write_guest},
    {"descriptors", "truncate its guest's file", truncate_guest},
    {"descriptors", "allocate in its guest's file", allocate_in_guest},
    {"descriptors", "map its guest's file to write", map_guest},
    {"descriptors", "change the mode of its guest's file", mode_of_guest},
    {"descriptors", "own its guest's file", own_guest},
    {"descriptors", "label its guest's file", label_guest},
    {"descriptors", "change the flags of its guest's file", flags_of_guest},
    {"descriptors", "lock its guest's file", lock_guest},
    {"descriptors", "change the flags of /dev/null", flags_of_null},
    {"descriptors", "lock the user ids of others", take_lease},
    {"descriptors", "type into a terminal", steal_input_of_terminal},
    {"descriptors", "create another VM", another_vm},
    {"descriptors", "send a descriptor away", send_descriptor},

    {"checklists", "have a capability in any set", have_capabilities},
    {"checklists", "be root", be_root},
    {"checklists", "be without a filter", be_unfiltered},
    {"checklists", "have an environment", have_environment},
    {"checklists", "have a terminal", have_terminal},
    {"checklists", "reach a cloud's metadata", route_to_metadata},
    {"checklists", "/var/run/docker.sock", knock_at},
    {"checklists", "/run/containerd/containerd.sock", knock_at},
    {"checklists", "/run/crio/crio.sock", knock_at},
    {"checklists", "/run/podman/podman.sock", knock_at},
    {"checklists", "/run/dbus/system_bus_socket", knock_at},
    {"checklists", "/run/systemd/private", knock_at},
    {"checklists", "/.dockerenv", look_at},
    {"checklists", "/etc/shadow", look_at},
    {"checklists", "/root", look_at},
    {"checklists", "/home", look_at},
    {"checklists", "/var/log", look_at},
    {"checklists", "/var/run/secrets/kubernetes.io/serviceaccount/token", look_at},
    {"checklists", "/dev/mem", look_at},
    {"checklists", "/dev/kmsg", look_at},
    {"checklists", "/dev/fuse", look_at},
    {"checklists", "/dev/vda", look_at},
    {"checklists", "/dev/sda", look_at},
    {"checklists", "/proc", look_at},
    {"checklists", "/proc/self/mountinfo", look_at},
    {"checklists", "/proc/self/cgroup", look_at},
    {"checklists", "/proc/1/environ", look_at},
    {"checklists", "/proc/1/root", look_at},
    {"checklists", "/proc/kcore", look_at},
    {"checklists", "/proc/keys", look_at},
    {"checklists", "/proc/kallsyms", look_at},
    {"checklists", "/proc/sysrq-trigger", look_at},
    {"checklists", "/proc/sys/kernel/core_pattern", look_at},
    {"checklists", "/proc/sys/kernel/modprobe", look_at},
    {"checklists", "/proc/sys/vm/panic_on_oom", look_at},
    {"checklists", "/proc/sys/fs/binfmt_misc/register", look_at},
    {"checklists", "/sys", look_at},
    {"checklists", "/sys/firmware", look_at},
    {"checklists", "/sys/kernel/uevent_helper", look_at},
    {"checklists", "/sys/kernel/security", look_at},
    {"checklists", "/sys/kernel/debug", look_at},
    {"checklists", "/sys/fs/cgroup", look_at},
    {"checklists", "/sys/fs/cgroup/release_agent", look_at},
};

// ---- What it says ------------------------------------------------------------------------------

bool is_monitor = false;
char line[256];

/// On the console; nothing here may allocate, or ask the kernel for anything else.
void say() {
  const std::size_t size = std::strlen(line);
  if (is_monitor) {
    sys::call_retry(__NR_sendto, CASEMATE_FD_CONSOLE_OUT, line, size, MSG_NOSIGNAL, nullptr, 0);
  } else {
    sys::call_retry(__NR_write, STDOUT_FILENO, line, size);
  }
}

void send_event(const void* event, std::size_t size) {
  sys::call_retry(__NR_sendto, CASEMATE_FD_CONTROL, event, size, MSG_NOSIGNAL, nullptr, 0);
}

void send_doorbell() {
  casemate_doorbell doorbell{};
  doorbell.header = {CASEMATE_EVENT_DOORBELL, sizeof doorbell};
  send_event(&doorbell, sizeof doorbell);
}

// ---- Tries -------------------------------------------------------------------------------------

struct Outcome {
  long result;
  bool refused; // by a filter
};

/// Of tries in processes of their own; no number that a call has for a result.
constexpr long lost = -100'000;
Outcome* shared = nullptr;

Outcome attempt_here(const Try& one) {
  was_refused = 0;
  const long result = one.run();
  return {result, was_refused != 0};
}

/// In a process of its own, where there may be one: what it brings about, it takes along.
Outcome attempt(const Try& one) {
  *shared = {lost, false};
  const long child = call(__NR_fork);
  if (child < 0) {
    return attempt_here(one);
  }
  if (child == 0) {
    alarm(5);
    *shared = attempt_here(one);
    vmm::exit_process(0);
  }
  int status = 0;
  call(__NR_wait4, child, &status, __WALL, nullptr);
  return WIFEXITED(status) && WEXITSTATUS(status) == started ? Outcome{0, false} : *shared;
}

void try_all() {
  for (const Try& one : tries) {
    path = one.name;
    const auto [result, refused] = attempt(one);
    if (result >= 0) {
      std::snprintf(line, sizeof line, "%s\t%s\topen\n", one.group, one.name);
    } else if (refused) {
      std::snprintf(line, sizeof line, "%s\t%s\tseccomp\n", one.group, one.name);
    } else {
      std::snprintf(line, sizeof line, "%s\t%s\t%ld\n", one.group, one.name, -result);
    }
    say();
  }
}

/// "host=7", "port=80"...
void set_target(const char* text) {
  const char* value = std::strchr(text, '=') + 1;
  const auto is = [&](const char* name) { return std::strncmp(text, name, value - text - 1) == 0; };
  if (is("host")) {
    targets.host = std::atol(value);
  } else if (is("neighbour")) {
    targets.neighbour = std::atol(value);
  } else if (is("port")) {
    targets.port = static_cast<unsigned short>(std::atoi(value));
  } else if (is("shm")) {
    targets.shared_memory = std::atol(value);
  } else if (is("msq")) {
    targets.message_queue = std::atol(value);
  } else if (is("name")) {
    std::snprintf(targets.name, sizeof targets.name, "%s", value);
  } else if (is("path")) {
    std::snprintf(targets.path, sizeof targets.path, "%s", value);
  }
}

// ---- Sweeps ------------------------------------------------------------------------------------

/// Beyond the last one that any kernel has.
constexpr long last_number = 600;

struct Sweep {
  sys::SysError (*confine)(const vmm::Configuration&);
  const vmm::Configuration* configuration;
  long argument;
  std::array<bool, last_number + 1> passed{};
  std::atomic<int> stage{0}; // 1: begin; 2: done; 3: exit
};

Sweep sweep;

/// In a thread of its own, as the last filter has nothing left to tell the results by.
void* sweep_all(void*) {
  const auto await = [](int stage) {
    while (sweep.stage < stage) {
      // No system call: there may be none.
    }
  };
  await(1);
  if (vmm::confine_process(*sweep.configuration) || vmm::confine_setup(*sweep.configuration) ||
      sweep.confine(*sweep.configuration)) {
    std::abort();
  }
  for (long number = 0; number <= last_number; ++number) {
    // The one has been made to get here, after each one that was refused; the other is the last.
    if (number == __NR_rt_sigreturn || number == __NR_exit_group) {
      continue;
    }
    // The kernel's own, from pages that it made for probes: no filter is asked, and made from
    // elsewhere they are SIGILL.
    if (number == 335 /* uretprobe */ || number == 336 /* uprobe */) {
      continue;
    }
    was_refused = 0;
    const long a = sweep.argument;
    call(number, a, a, a, a, a, a);
    sweep.passed[number] = was_refused == 0;
  }
  sweep.stage = 2;
  await(3);
  vmm::exit_process(7);
  return nullptr;
}

sys::SysError no_more(const vmm::Configuration&) { return {}; }
sys::SysError confine_vcpu(const vmm::Configuration&) { return vmm::confine_vcpu(); }
sys::SysError confine_disk_thread(const vmm::Configuration&) { return vmm::confine_disk_thread(); }

void prepare_sweep(const vmm::Configuration& configuration, const char* filter,
                   const char* argument) {
  sweep.configuration = &configuration;
  sweep.argument = std::strtol(argument, nullptr, 0);
  sweep.confine = std::strcmp(filter, "guest") == 0  ? vmm::confine_guest
                  : std::strcmp(filter, "vcpu") == 0 ? confine_vcpu
                  : std::strcmp(filter, "disk") == 0 ? confine_disk_thread
                                                     : no_more;
  // What waits must not wait for good.
  struct sigaction action {};
  action.sa_handler = [](int) {};
  sigaction(SIGALRM, &action, nullptr);
  sigset_t alarms;
  sigemptyset(&alarms);
  sigaddset(&alarms, SIGALRM);
  pthread_t thread;
  pthread_create(&thread, nullptr, sweep_all, nullptr);
  pthread_sigmask(SIG_BLOCK, &alarms, nullptr);
  const itimerval often{{0, 5000}, {0, 5000}};
  setitimer(ITIMER_REAL, &often, nullptr);
}

void report_sweep() {
  sweep.stage = 1;
  while (sweep.stage < 2) {
    constexpr timespec moment{0, 1'000'000};
    call(__NR_ppoll, nullptr, 0, &moment, nullptr, 8);
  }
  for (long number = 0; number <= last_number; ++number) {
    if (sweep.passed[number]) {
      std::snprintf(line, sizeof line, "%ld\n", number);
      say();
    }
  }
  sweep.stage = 3;
}

/// Numbers that mean other calls elsewhere: getpid of i386, and of x32.
void call_foreign(const char* abi) {
  if (std::strcmp(abi, "i386") == 0) {
    int result = 20;
    asm volatile("int $0x80" : "+a"(result) : : "memory");
  } else {
    call(0x40000000 + __NR_getpid);
  }
}

// ---- As a monitor ------------------------------------------------------------------------------

alignas(8) unsigned char message[CASEMATE_MAX_MESSAGE];
const char* arguments[16];

/// The guest's arguments, behind its name; or of a kernel the words of its command line.
unsigned parse_arguments(const casemate_configure& head, char* text, bool is_linux) {
  unsigned count = 0;
  if (is_linux) {
    for (char* word = std::strtok(text, ","); word != nullptr; word = std::strtok(nullptr, ",")) {
      arguments[count++] = word;
    }
    return count;
  }
  for (unsigned i = 0; i < head.argument_count; ++i, text += std::strlen(text) + 1) {
    if (i > 0) {
      arguments[count++] = text;
    }
  }
  return count;
}

[[noreturn]] void be_monitor() {
  is_monitor = true;
  casemate_configure head;
  if (recv(CASEMATE_FD_CONTROL, message, sizeof message, 0) < static_cast<long>(sizeof head)) {
    vmm::exit_process(98);
  }
  std::memcpy(&head, message, sizeof head);
  vmm::Configuration configuration;
  configuration.flags = head.flags;
  configuration.format = head.format;
  configuration.cpl = head.cpl;
  configuration.memory_size = head.memory_size;
  char* text = reinterpret_cast<char*>(message) + sizeof head +
               head.cpuid_count * sizeof(kvm_cpuid_entry2) +
               head.device_count * sizeof(casemate_device);
  const unsigned count = parse_arguments(head, text, configuration.is_linux());
  const char* mode = arguments[0];

  shared = static_cast<Outcome*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  signal(SIGXFSZ, SIG_IGN);
  if (std::strcmp(mode, "sweep") == 0) {
    prepare_sweep(configuration, arguments[1], arguments[2]);
  } else if (std::strcmp(mode, "wait") == 0) {
    held = secret;
  } else {
    for (unsigned i = 1; i < count && std::strcmp(mode, "tries") == 0; ++i) {
      set_target(arguments[i]);
    }
  }

  if (vmm::confine_process(configuration) || vmm::confine_setup(configuration)) {
    vmm::exit_process(97);
  }
  const casemate_event jailed{CASEMATE_EVENT_JAILED, sizeof jailed};
  send_event(&jailed, sizeof jailed);
  casemate_command command;
  sys::call_retry(__NR_recvfrom, CASEMATE_FD_CONTROL, &command, sizeof command, 0, nullptr,
                  nullptr);
  if (std::strcmp(mode, "sweep") != 0 && vmm::confine_guest(configuration)) {
    vmm::exit_process(96);
  }
  send_doorbell();
  if (std::strcmp(mode, "tries") == 0) {
    try_all();
    vmm::exit_process(0);
  }
  if (std::strcmp(mode, "sweep") == 0) {
    report_sweep();
  } else if (std::strcmp(mode, "foreign") == 0) {
    call_foreign(arguments[1]);
    vmm::exit_process(0);
  }
  for (;;) {
    // Until Node hangs up.
    if (sys::call_retry(__NR_recvfrom, CASEMATE_FD_CONTROL, &command, sizeof command, 0, nullptr,
                        nullptr) <= 0) {
      vmm::exit_process(1);
    }
  }
}

// ---- Outside of any jail -----------------------------------------------------------------------

int try_without_jail(char** given) {
  // What a jailed one has not got is not to be changed for others, either.
  unshare(CLONE_NEWNS | CLONE_NEWUTS);
  call(__NR_mount, nullptr, "/", nullptr, 1ul << 18 /* MS_PRIVATE */ | 0x4000 /* MS_REC */,
       nullptr);
  shared = static_cast<Outcome*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  for (; *given != nullptr; ++given) {
    set_target(*given);
  }
  try_all();
  return 0;
}

int be_host(char** program) {
  utsname names;
  uname(&names);
  // What POSIX's message queues and the host are called.
  char* name = names.nodename;
  const int port = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  bind(port, reinterpret_cast<sockaddr*>(&address), size);
  listen(port, 128);
  getsockname(port, reinterpret_cast<sockaddr*>(&address), &size);

  const int abstract = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un where{};
  where.sun_family = AF_UNIX;
  std::strcpy(where.sun_path + 1, name);
  bind(abstract, reinterpret_cast<sockaddr*>(&where),
       offsetof(sockaddr_un, sun_path) + 1 + std::strlen(name));
  listen(abstract, 128);

  const int memory = shmget(IPC_PRIVATE, 4096, 0644);
  const int messages = msgget(IPC_PRIVATE, 0644);
  call(__NR_mq_open, name, O_CREAT | O_RDWR, 0644, nullptr);
  call(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, "casemate-escape", 0, 0, 0);
  call(__NR_add_key, "user", name, &secret, sizeof secret, KEY_SPEC_SESSION_KEYRING);
  held = secret;

  char text[512];
  std::snprintf(text, sizeof text, "host=%d,port=%d,shm=%d,msq=%d,name=%s", getpid(),
                ntohs(address.sin_port), memory, messages, name);
  setenv("CASEMATE_ESCAPE", text, 1);
  const pid_t child = fork();
  if (child == 0) {
    for (const int fd : {port, abstract}) {
      close(fd);
    }
    execvp(program[0], program);
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  shmctl(memory, IPC_RMID, nullptr);
  msgctl(messages, IPC_RMID, nullptr);
  call(__NR_mq_unlink, name);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

} // namespace

int main(int count, char** given) {
  const char* mode = count > 1 ? given[1] : "";
  if (std::strcmp(mode, "started") == 0) {
    return started;
  }
  if (std::strcmp(mode, "host") == 0 && count > 2) {
    return be_host(given + 2);
  }
  if (std::strcmp(mode, "tries") == 0) {
    return try_without_jail(given + 2);
  }
  be_monitor();
}
