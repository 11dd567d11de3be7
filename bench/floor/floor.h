/*
 * What the programs of the floor have in common: raw system calls, and the two messages
 * between the launcher (floor.c) and the monitor (floor-vmm.c).
 */
#ifndef CASEMATE_FLOOR_H
#define CASEMATE_FLOOR_H

#include <asm/unistd.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>

/* The kernel's own answer. The monitor has no libc, and the child between clone3 and execve
 * shares the launcher's memory, its errno included. */
static inline long raw_call(long number, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}
#define PADDED(number, a, b, c, d, e, f, ...)                                                      \
  raw_call(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define CALL(...) PADDED(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)

/* A stamp costs 8 ns this way and 170 ns as a clock_gettime of a program without vDSO. The
 * launcher turns them into CLOCK_MONOTONIC. */
static inline uint64_t stamp(void) { return __builtin_ia32_rdtsc(); }

/* Descriptors the monitor is born with; 0 to 2 are /dev/null. */
enum { CONTROL = 3, KVM = 4, CONSOLE_OUT = 6, CONSOLE_IN = 7 };

#define MAX_FILTERS 256
#define MAX_CPUID 128

/* Launcher to monitor, the first message. All that can be known before a launch is found out
 * before it: the monitor asks the kernel nothing. */
struct configuration {
  uint64_t jailed; /* or no_new_privs, Landlock, the filters and the release are left out */
  uint64_t memory_size;
  uint64_t landlock_size; /* of struct landlock_ruleset_attr in the ABI of this kernel */
  uint64_t landlock[3];
  uint64_t filter_length[2]; /* while the VM is made; while the guest runs */
  uint64_t cpuid_offset;
  /* Both filters, then struct kvm_cpuid2: as much as there is, for each page costs a fault. */
  char rest[MAX_FILTERS * sizeof(struct sock_filter) + 8 +
            MAX_CPUID * sizeof(struct kvm_cpuid_entry2)];
};

/* When a step of the monitor ended; named as in the timeline of a launch of ours. */
enum {
  MAIN,
  CONFIGURED,
  JAILED,
  VM,
  MEMORY,
  IRQCHIP,
  VCPU,
  CONFINED,
  LOADED,
  RELEASED,
  RUN,
  MONITOR_STAMPS
};

/* Monitor to launcher: the guest has rung. */
struct doorbell {
  uint64_t t1; /* CLOCK_MONOTONIC, ns */
  uint64_t stamps[MONITOR_STAMPS];
};

#define DOORBELL_PORT 0xe0

#endif
