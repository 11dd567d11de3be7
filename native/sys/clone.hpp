#pragma once

#include "sys/syscall.hpp"

#include <cstddef>
#include <cstdint>

namespace casemate::sys {

/// struct clone_args of clone3(2), version 2.
struct CloneArguments {
  std::uint64_t flags = 0;
  std::uint64_t pidfd = 0;
  std::uint64_t child_tid = 0;
  std::uint64_t parent_tid = 0;
  std::uint64_t exit_signal = 0;
  std::uint64_t stack = 0; // lowest address
  std::uint64_t stack_size = 0;
  std::uint64_t tls = 0;
  std::uint64_t set_tid = 0;
  std::uint64_t set_tid_size = 0;
  std::uint64_t cgroup = 0;
};

/// clone3(2) onto a stack of its own: the child calls `entry(argument)`, which must
/// not return. In assembly, for after the system call the child has none of the
/// caller's frame. Returns the child's pid, or a negative errno.
inline long clone3(const CloneArguments& arguments, void (*entry)(void*), void* argument) {
  long result;
  register void (*child_entry)(void*) asm("r12") = entry;
  register void* child_argument asm("r13") = argument;
  asm volatile("syscall\n\t"
               "test %%rax, %%rax\n\t"
               "jnz 1f\n\t"
               "xor %%ebp, %%ebp\n\t" // ends every backtrace here
               "mov %%r13, %%rdi\n\t"
               "call *%%r12\n\t"
               "ud2\n"
               "1:"
               : "=a"(result)
               : "a"(__NR_clone3), "D"(&arguments), "S"(sizeof arguments), "r"(child_entry),
                 "r"(child_argument)
               : "rcx", "r11", "memory");
  return result;
}

/// Waits for the end of a task that shares our memory, whatever becomes of the waiting. __WALL: it
/// has no exit signal, so that nobody but us hears of its end. wait4(2)
inline void reap(long pid) {
  constexpr long no_child = -10; // ECHILD
  for (long result = 0; result != pid && result != no_child;) {
    result = call(__NR_wait4, pid, nullptr, 0x40000000 /* __WALL */, nullptr);
  }
}

} // namespace casemate::sys
