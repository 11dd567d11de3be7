/*
 * The floor: what a launch costs at least. Launches floor-vmm into the jail of our strict
 * profile, by the same kernel work in the same order, in the cheapest way known and with
 * nothing else: no plan, no options, no threads, no error that says what went wrong.
 * README.md next to this holds it against one of our launches, system call by system call.
 *
 *   floor [--no-jail] [--cold] [--trials N] [--memory MIB] [--exec-only PROGRAM]
 *
 * One line of JSON per trial, times in nanoseconds since t0: t1, the doorbell's exit in the
 * monitor; t2, the launcher has its message; exec, from the execve call to the program's first
 * instruction; steps, when each ended, by the names of our timeline.
 *
 * Warm (the default): pools filled, one launch done before the first that is measured.
 * --cold: nothing is prepared, and each trial is a process of its own.
 */
#define _GNU_SOURCE
#include "floor.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/keyctl.h>
#include <linux/mman.h>
#include <linux/mount.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void die(const char* what) {
  perror(what);
  exit(1);
}

static long must(const char* what, long result) {
  if (result < 0) {
    die(what);
  }
  return result;
}

/* What the kernel puts off while a VM is made (callbacks of SRCU) runs on processor 0: there
 * is no waiting for it across processors. EINVAL where this process may not be there. */
static void onto_processor_0(void) {
  cpu_set_t processors;
  CPU_ZERO(&processors);
  CPU_SET(0, &processors);
  sched_setaffinity(0, sizeof processors, &processors);
}

/* ---- What a launch is given --------------------------------------------------- */

static struct {
  int jailed, cold, trials, program_is_monitor;
  long memory_mib;
  char program[4096];
} options = {.jailed = 1, .trials = 1, .program_is_monitor = 1, .memory_mib = 16};

static int proc, null, kvm, user_namespace, network_namespace;
static unsigned user_id;
static struct configuration configuration;
static size_t configuration_size;
static char child_stack[65536] __attribute__((aligned(4096)));

/* The user and the group in the user namespace. */
enum { INSIDE_ID = 1000 };

/* ---- The filters: the rules of native/vmm/confinement.cpp, by number ---------- */

/* Filters add up: what the guest phase needs, both allow. */
enum phase { BOTH, SETUP, GUEST };

struct rule {
  uint32_t number;
  enum phase phase;
  uint32_t argument, count, values[12];
};

/* In the order of their numbers. */
static const struct rule rules[] = {
    {__NR_close, SETUP},
    {__NR_mmap, SETUP, 2, 1, {PROT_READ | PROT_WRITE}},
    {__NR_munmap, SETUP},
    {__NR_rt_sigreturn, BOTH},
    {__NR_ioctl,
     SETUP,
     1,
     9,
     {KVM_CREATE_VM, KVM_SET_USER_MEMORY_REGION, KVM_SET_TSS_ADDR, KVM_ENABLE_CAP, KVM_CREATE_VCPU,
      KVM_SET_CPUID2, KVM_RUN, KVM_GET_REGS, KVM_GET_SREGS}},
    {__NR_ioctl, GUEST, 1, 3, {KVM_RUN, KVM_GET_REGS, KVM_GET_SREGS}},
    {__NR_pread64, BOTH, 0, 2, {5, 8}},
    {__NR_madvise, BOTH, 2, 2, {MADV_POPULATE_WRITE, MADV_NOHUGEPAGE}},
    {__NR_sendto, BOTH, 0, 2, {CONTROL, CONSOLE_OUT}},
    {__NR_recvfrom, BOTH, 0, 2, {CONTROL, CONSOLE_IN}},
    {__NR_shutdown, BOTH, 0, 1, {CONTROL}},
    {__NR_fcntl, BOTH, 1, 1, {F_SETFL}},
    {__NR_clock_gettime, BOTH},
    {__NR_exit_group, BOTH},
    {__NR_ppoll, BOTH},
    {__NR_seccomp, SETUP},
    {__NR_getrandom, BOTH},
};

/* Numbers from `first` on; no rule: refused. */
struct interval {
  uint32_t first;
  const struct rule* rule;
};

/* A binary search over intervals: its depth is what an installation costs. */
static struct sock_filter* search(struct sock_filter* out, const struct interval* list, int count) {
  if (count > 1) {
    struct sock_filter* right = search(out + 1, list, count / 2);
    *out = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, list[count / 2].first,
                                        (uint8_t)(right - out - 1), 0);
    return search(right, list + count / 2, count - count / 2);
  }
  const struct rule* rule = list->rule;
  if (rule != NULL && rule->count > 0) {
    *out++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                                          offsetof(struct seccomp_data, args) + 8 * rule->argument);
    for (uint32_t i = 0; i < rule->count; ++i) {
      *out++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, rule->values[i],
                                            (uint8_t)(rule->count - i), 0);
    }
    *out++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
  }
  *out++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, rule != NULL ? SECCOMP_RET_ALLOW
                                                                      : SECCOMP_RET_KILL_PROCESS);
  return out;
}

static struct sock_filter* filter(struct sock_filter* out, enum phase phase) {
  struct interval list[64];
  int intervals = 0;
  uint32_t next = 0;
  for (const struct rule* rule = rules; rule < rules + sizeof rules / sizeof *rules; ++rule) {
    if (rule->phase != BOTH && rule->phase != phase) {
      continue;
    }
    if (rule->number > next) {
      list[intervals++] = (struct interval){next, NULL};
    }
    /* Neighbours that are allowed whatever their arguments are one interval. */
    const struct rule* last = intervals > 0 ? list[intervals - 1].rule : NULL;
    if (last == NULL || last->count > 0 || rule->count > 0) {
      list[intervals++] = (struct interval){rule->number, rule};
    }
    next = rule->number + 1;
  }
  list[intervals++] = (struct interval){next, NULL};
  list[intervals++] = (struct interval){0x40000000, NULL}; /* x32: of another verdict in ours */
  *out++ =
      (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
  *out++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
  *out++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
  *out++ =
      (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
  return search(out, list, intervals);
}

/* ---- Before a launch ---------------------------------------------------------- */

static void write_proc(const char* path, const char* text) {
  int fd = (int)must(path, openat(proc, path, O_WRONLY | O_CLOEXEC));
  must(path, write(fd, text, strlen(text)));
  close(fd);
}

/* Those of src/vm/kvm-device.ts: KVM takes longer for more. */
static void keep_program_leaves(struct kvm_cpuid2* cpuid) {
  static const uint32_t leaves[] = {
      0x0,        0x1,        0x4,        0x7,        0xb,        0xd,        0x15,
      0x16,       0x40000000, 0x40000001, 0x80000000, 0x80000001, 0x80000002, 0x80000003,
      0x80000004, 0x80000005, 0x80000006, 0x80000007, 0x80000008, 0x8000001d, 0x8000001e};
  uint32_t kept = 0;
  for (uint32_t i = 0; i < cpuid->nent; ++i) {
    const struct kvm_cpuid_entry2* entry = &cpuid->entries[i];
    for (size_t leaf = 0; leaf < sizeof leaves / sizeof *leaves; ++leaf) {
      if (entry->function == leaves[leaf] && (entry->function != 0xd || entry->index == 0)) {
        cpuid->entries[kept++] = *entry;
        break;
      }
    }
  }
  cpuid->nent = kept;
}

/* What the monitor is told: everything it would otherwise have to ask the kernel for. */
static void configure(void) {
  configuration.jailed = (uint64_t)options.jailed;
  configuration.memory_size = (uint64_t)options.memory_mib << 20;

  long abi = must("Landlock", syscall(__NR_landlock_create_ruleset, NULL, 0, 1 /* ..._VERSION */));
  configuration.landlock_size = abi >= 6 ? 24 : abi >= 4 ? 16 : 8;
  configuration.landlock[0] = (1u << (abi >= 5 ? 16 : abi >= 3 ? 15 : abi >= 2 ? 14 : 13)) - 1;
  configuration.landlock[1] = abi >= 4 ? 3 : 0;
  configuration.landlock[2] = abi >= 6 ? 3 : 0;

  struct sock_filter* first = (struct sock_filter*)configuration.rest;
  struct sock_filter* second = filter(first, SETUP);
  struct sock_filter* end = filter(second, GUEST);
  configuration.filter_length[0] = (uint64_t)(second - first);
  configuration.filter_length[1] = (uint64_t)(end - second);

  struct kvm_cpuid2* cpuid = (struct kvm_cpuid2*)end;
  configuration.cpuid_offset = (uint64_t)((char*)cpuid - (char*)&configuration);
  cpuid->nent = MAX_CPUID;
  must("KVM_GET_SUPPORTED_CPUID", ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid));
  keep_program_leaves(cpuid);
  configuration_size =
      configuration.cpuid_offset + sizeof *cpuid + cpuid->nent * sizeof *cpuid->entries;
}

/* Leaves this process a read-only tmpfs with the program bound into it for a root. A
 * CLONE_NEWNS of these two mounts is far cheaper than one of the host's. */
static void enter_prepared_mount_namespace(void) {
  must("unshare(mounts)", unshare(CLONE_NEWNS));
  must("mount", mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
  int program = (int)must("open_tree", syscall(__NR_open_tree, AT_FDCWD, options.program,
                                               OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
  struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV};
  must("mount_setattr",
       syscall(__NR_mount_setattr, program, "", AT_EMPTY_PATH, &read_only, sizeof read_only));
  must("mount(tmpfs)", mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
                             "mode=0555,size=4k,nr_inodes=4"));
  must("chdir", chdir("/tmp"));
  close((int)must("open", open("program", O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0)));
  must("move_mount",
       syscall(__NR_move_mount, program, "", AT_FDCWD, "program", MOVE_MOUNT_F_EMPTY_PATH));
  close(program);
  must("pivot_root", syscall(__NR_pivot_root, ".", "."));
  must("umount2", umount2(".", MNT_DETACH));
  must("chdir", chdir("/"));
  must("remount", mount(NULL, "/", NULL,
                        MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
  strcpy(options.program, "/program");
}

static int make_network_namespace(void) {
  int ours = (int)must("net", openat(proc, "self/ns/net", O_RDONLY | O_CLOEXEC));
  must("unshare(net)", unshare(CLONE_NEWNET));
  int made = (int)must("net", openat(proc, "self/ns/net", O_RDONLY | O_CLOEXEC));
  must("setns(net)", setns(ours, CLONE_NEWNET));
  close(ours);
  return made;
}

/* One user and one group in it, nobody else's; nothing in it can make namespaces. */
static int make_user_namespace(void) {
  int mapped[2];
  must("pipe", pipe2(mapped, O_CLOEXEC));
  struct clone_args arguments = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
  int holder = (int)must("clone3(user)", syscall(__NR_clone3, &arguments, sizeof arguments));
  if (holder == 0) {
    static const char* const kinds[] = {"user", "mnt", "pid",    "net",
                                        "ipc",  "uts", "cgroup", "time"};
    char path[64];
    must("read", read(mapped[0], path, 1));
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; ++i) {
      snprintf(path, sizeof path, "sys/user/max_%s_namespaces", kinds[i]);
      write_proc(path, "0");
    }
    _exit(0);
  }
  /* Far from any account, and beyond the range that launches of ours take their ids from. */
  user_id = 0x70000000u + (1u << 20) + (unsigned)holder;
  char path[32], map[32];
  snprintf(map, sizeof map, "%d %u 1", INSIDE_ID, user_id);
  snprintf(path, sizeof path, "%d/gid_map", holder);
  write_proc(path, map);
  snprintf(path, sizeof path, "%d/uid_map", holder);
  write_proc(path, map);
  snprintf(path, sizeof path, "%d/ns/user", holder);
  int made = (int)must(path, openat(proc, path, O_RDONLY | O_CLOEXEC));
  must("write", write(mapped[1], "", 1));
  must("waitpid", waitpid(holder, NULL, 0));
  close(mapped[0]);
  close(mapped[1]);
  return made;
}

static void prepare(void) {
  proc = (int)must("/proc", open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC));
  null = (int)must("/dev/null", open("/dev/null", O_RDWR | O_CLOEXEC));
  kvm = (int)must("/dev/kvm", open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!options.cold) {
    /* Stays open: the first VM of a host has KVM switch a static key, which interrupts every
     * processor. */
    must("KVM_CREATE_VM", ioctl(kvm, KVM_CREATE_VM, 0));
  }
  configure();
  if (options.jailed) {
    enter_prepared_mount_namespace();
  }
}

static void fill_pools(void) {
  if (options.jailed) {
    network_namespace = make_network_namespace();
    user_namespace = make_user_namespace();
  }
}

/* ---- The child, between clone3 and execve ------------------------------------- */

/* In the order in which they happen; those of the monitor are in floor.h. */
enum {
  PREPARED,
  SOCKET_PAIRS,
  CLONE,
  SETNS,
  UTS,
  RLIMITS,
  SESSION,
  KEYRING,
  DESCRIPTORS,
  CWD,
  USER,
  IDS,
  SECUREBITS,
  BOUNDING,
  CAPABILITIES,
  LAUNCHER_STAMPS,
  ANNOUNCED = LAUNCHER_STAMPS,
  READ_BACK,
  RELEASE,
  ALL_STAMPS
};

static const char* const names[] = {
    "prepare",    "socketPair",   "clone3",       "setns",    "hostname",  "rlimit",
    "session",    "keyring",      "descriptors",  "checkCwd", "setnsUser", "ids",
    "securebits", "dropBounding", "capabilities", "jailed",   "readBack",  "release"};
static const char* const monitor_names[] = {"exec",   "configure", "jail", "createVm",
                                            "memory", "irqchip",   "vcpu", "confine",
                                            "load",   "awaitRun",  "guest"};

static uint64_t stamps[ALL_STAMPS];
static int control[2], console_out[2], console_in[2];
static volatile long failed; /* line of the child's call that failed */

static void execute(void) {
  const uint64_t no_signals = 0;
  CALL(__NR_rt_sigprocmask, SIG_SETMASK, &no_signals, 0, 8);
  const char* arguments[] = {"program", NULL};
  stamps[CAPABILITIES] = stamp();
  CALL(__NR_execve, options.program, arguments, arguments + 1);
}

#define TRY(...)                                                                                   \
  if (CALL(__VA_ARGS__) < 0)                                                                       \
  return (void)(failed = __LINE__)

static void unjailed_child(void) {
  stamps[CLONE] = stamp();
  TRY(__NR_dup3, control[0], CONTROL, 0);
  TRY(__NR_dup3, kvm, KVM, 0);
  execute();
  failed = __LINE__;
}

/* The steps of monitorPlan() in src/jail/profiles.ts. It runs in the launcher's memory:
 * raw system calls only. */
static void jailed_child(void) {
  stamps[CLONE] = stamp();
  TRY(__NR_setns, network_namespace, CLONE_NEWNET);
  stamps[SETNS] = stamp();
  TRY(__NR_sethostname, "casemate", 8);
  TRY(__NR_setdomainname, "", 0);
  stamps[UTS] = stamp();

  static const struct {
    int resource;
    uint64_t limit;
  } limits[] = {{RLIMIT_NOFILE, 256}, {RLIMIT_NPROC, 64},  {RLIMIT_FSIZE, 0},
                {RLIMIT_CORE, 0},     {RLIMIT_MEMLOCK, 0}, {RLIMIT_MSGQUEUE, 0}};
  for (size_t i = 0; i < sizeof limits / sizeof *limits; ++i) {
    const uint64_t pair[2] = {limits[i].limit, limits[i].limit};
    TRY(__NR_prlimit64, 0, limits[i].resource, pair);
  }
  stamps[RLIMITS] = stamp();
  TRY(__NR_setsid);
  stamps[SESSION] = stamp();
  TRY(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0);
  stamps[KEYRING] = stamp();

  TRY(__NR_close_range, 0, ~0u, CLOSE_RANGE_CLOEXEC);
  for (int i = 0; i <= 2; ++i) {
    TRY(__NR_dup3, null, i, 0);
  }
  TRY(__NR_dup3, control[0], CONTROL, 0);
  TRY(__NR_dup3, kvm, KVM, 0);
  TRY(__NR_dup3, console_out[0], CONSOLE_OUT, 0);
  TRY(__NR_dup3, console_in[0], CONSOLE_IN, 0);
  stamps[DESCRIPTORS] = stamp();
  TRY(__NR_chdir, "/");
  char cwd[256];
  TRY(__NR_getcwd, cwd, sizeof cwd);
  stamps[CWD] = stamp();

  /* Last, so that the user namespace owns none of the others. */
  TRY(__NR_setns, user_namespace, CLONE_NEWUSER);
  stamps[USER] = stamp();
  TRY(__NR_setgroups, 0, 0);
  TRY(__NR_setresgid, INSIDE_ID, INSIDE_ID, INSIDE_ID);
  TRY(__NR_setresuid, INSIDE_ID, INSIDE_ID, INSIDE_ID);
  stamps[IDS] = stamp();
  /* Entering it has refilled the bounding set and all others. */
  TRY(__NR_prctl, PR_SET_SECUREBITS, 0xef);
  stamps[SECUREBITS] = stamp();
  for (int capability = 0; capability <= CAP_LAST_CAP; ++capability) {
    TRY(__NR_prctl, PR_CAPBSET_DROP, capability);
  }
  stamps[BOUNDING] = stamp();
  TRY(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL);
  struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
  const struct __user_cap_data_struct nothing[2] = {{0}};
  TRY(__NR_capset, &head, nothing);
  execute();
  failed = __LINE__;
}

/* On a stack of its own: what it does on the launcher's would be lost to the compiler. */
static int clone_and_exec(void (*child)(void), int* pidfd) {
  struct clone_args arguments = {.flags =
                                     CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
                                 .pidfd = (uint64_t)pidfd,
                                 .stack = (uint64_t)child_stack,
                                 .stack_size = sizeof child_stack};
  if (options.jailed) {
    arguments.flags |= CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
  }
  long pid;
  register void (*entry)(void) __asm__("r12") = child;
  __asm__ volatile("syscall\n\t"
                   "test %%rax, %%rax\n\t"
                   "jnz 1f\n\t"
                   "call *%%r12\n\t"
                   "mov %[exit], %%eax\n\t"
                   "mov $127, %%edi\n\t"
                   "syscall\n"
                   "1:"
                   : "=a"(pid)
                   : "a"(__NR_clone3), "D"(&arguments), "S"(sizeof arguments),
                     "r"(entry), [exit] "i"(__NR_exit_group)
                   : "rcx", "r11", "memory");
  if (pid < 0 || failed != 0) {
    fprintf(stderr, "floor: clone3 gave %ld; the child's line that failed: %ld\n", pid, failed);
    exit(1);
  }
  return (int)pid;
}

/* ---- A launch ----------------------------------------------------------------- */

/* The monitor's credentials as the kernel has them, before its guest may run. */
static void read_back(int pid) {
  char path[32], status[4096], expected[64];
  snprintf(path, sizeof path, "%d/status", pid);
  int fd = (int)must(path, openat(proc, path, O_RDONLY | O_CLOEXEC));
  status[must(path, read(fd, status, sizeof status - 1))] = '\0';
  close(fd);
  snprintf(expected, sizeof expected, "\nUid:\t%u\t%u\t%u\t%u\nGid:\t%u\t", user_id, user_id,
           user_id, user_id, user_id);
  if (strstr(status, expected) == NULL ||
      strstr(status, "\nNoNewPrivs:\t1\nSeccomp:\t2\n") == NULL ||
      strstr(status,
             "\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"
             "CapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\n") == NULL) {
    fprintf(stderr, "floor: the monitor is not jailed:\n%s", status);
    exit(1);
  }
}

static uint64_t monotonic(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void receive(void* message, size_t size) {
  /* A monitor that fails hangs up. */
  if (recv(control[1], message, size, 0) != (ssize_t)size) {
    fprintf(stderr, "floor: the monitor ended too soon\n");
    exit(1);
  }
}

static void trial(int print) {
  if (!options.cold) {
    fill_pools();
  }
  /* Pools are filled long before a launch, not so that it finds the caches warm from it; and
   * the end of the launch before goes on in the kernel for a while. */
  usleep(20000);
  uint64_t t0 = monotonic(), t0_stamp = stamp();
  if (options.cold) {
    prepare();
    fill_pools();
    stamps[PREPARED] = stamp();
  }
  must("socketpair", socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control));
  if (options.jailed) {
    must("socketpair", socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console_out));
    must("socketpair", socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console_in));
  }
  stamps[SOCKET_PAIRS] = stamp();
  if (options.program_is_monitor) {
    must("send", send(control[1], &configuration, configuration_size, 0));
  }
  /* The memory that the child shares is to be read by nobody in its user namespace. */
  CALL(__NR_prctl, PR_SET_DUMPABLE, 0);
  int pidfd = -1;
  int pid = clone_and_exec(options.jailed ? jailed_child : unjailed_child, &pidfd);
  CALL(__NR_prctl, PR_SET_DUMPABLE, 1);
  close(control[0]);

  struct doorbell doorbell = {0};
  uint64_t t1 = 0;
  if (!options.program_is_monitor) {
    receive(&doorbell.stamps[MAIN], sizeof doorbell.stamps[MAIN]);
  } else {
    if (options.jailed) {
      uint32_t announcement;
      receive(&announcement, sizeof announcement);
      stamps[ANNOUNCED] = stamp();
      read_back(pid);
      stamps[READ_BACK] = stamp();
      must("send", send(control[1], &announcement, sizeof announcement, 0));
      stamps[RELEASE] = stamp();
    }
    receive(&doorbell, sizeof doorbell);
    t1 = doorbell.t1;
  }
  uint64_t t2 = monotonic(), t2_stamp = stamp();

  must("waitid", waitid(P_PIDFD, (id_t)pidfd, &(siginfo_t){0}, WEXITED | __WALL));
  close(pidfd);
  close(control[1]);
  if (options.jailed) {
    const int made[] = {console_out[0], console_out[1],    console_in[0],
                        console_in[1],  network_namespace, user_namespace};
    for (size_t i = 0; i < sizeof made / sizeof *made; ++i) {
      close(made[i]);
    }
  }
  if (!print) {
    return;
  }
  double scale = (double)(t2 - t0) / (double)(t2_stamp - t0_stamp);
#define SINCE_T0(at) ((long)((double)((at)-t0_stamp) * scale))
  long main_at = SINCE_T0(doorbell.stamps[MAIN]);
  printf("{\"t1\":%ld,\"t2\":%ld,\"exec\":%ld,\"steps\":{", t1 != 0 ? (long)(t1 - t0) : main_at,
         (long)(t2 - t0), main_at - SINCE_T0(stamps[CAPABILITIES]));
  for (int i = 0; i < ALL_STAMPS; ++i) {
    if (stamps[i] != 0) {
      printf("\"%s\":%ld,", names[i], SINCE_T0(stamps[i]));
    }
  }
  for (int i = 0; i < MONITOR_STAMPS; ++i) {
    if (doorbell.stamps[i] != 0) {
      printf("%s\"%s\":%ld", i == MAIN ? "" : ",", monitor_names[i], SINCE_T0(doorbell.stamps[i]));
    }
  }
  printf("}}\n");
  fflush(stdout);
}

static void usage(void) {
  fprintf(
      stderr,
      "floor [--no-jail] [--warm | --cold] [--trials N] [--memory MIB] [--exec-only PROGRAM]\n");
  exit(2);
}

static long number(const char* text) {
  char* end;
  long value = strtol(text, &end, 10);
  if (end == text || *end != '\0') {
    usage();
  }
  return value;
}

/* The monitor lies next to this program. */
static void find_monitor(void) {
  ssize_t length = readlink("/proc/self/exe", options.program, sizeof options.program - 8);
  must("readlink", length);
  memcpy(options.program + length, "-vmm", sizeof "-vmm");
}

int main(int count, char** arguments) {
  find_monitor();
  onto_processor_0();
  for (int i = 1; i < count; ++i) {
    const char* name = arguments[i];
    if (strcmp(name, "--no-jail") == 0) {
      options.jailed = 0;
    } else if (strcmp(name, "--cold") == 0) {
      options.cold = 1;
    } else if (strcmp(name, "--warm") == 0) {
      options.cold = 0;
    } else if (i + 1 < count && strcmp(name, "--trials") == 0) {
      options.trials = (int)number(arguments[++i]);
    } else if (i + 1 < count && strcmp(name, "--memory") == 0) {
      options.memory_mib = number(arguments[++i]);
    } else if (i + 1 < count && strcmp(name, "--exec-only") == 0) {
      options.program_is_monitor = 0;
      if (realpath(arguments[++i], options.program) == NULL) {
        die(arguments[i]);
      }
    } else {
      usage();
    }
  }
  /* So that every descriptor from here on lies above the numbers that the child gives out. */
  for (int fd = open("/dev/null", O_RDONLY | O_CLOEXEC); fd <= CONSOLE_IN; fd = dup(fd)) {
    must("dup", fcntl(fd, F_SETFD, FD_CLOEXEC));
  }
  if (!options.cold) {
    prepare();
    trial(0);
  }
  for (int i = 0; i < options.trials; ++i) {
    if (!options.cold) {
      trial(1);
      continue;
    }
    pid_t process = fork();
    if (must("fork", process) == 0) {
      trial(1);
      _exit(0);
    }
    waitpid(process, NULL, 0);
  }
}
