// Raw system calls: the kernel's answer as it is, -errno for an error.
//
// Three kinds of code need exactly this and nothing from libc: the child
// between clone3 and execve, which shares Node's memory and its thread-local
// errno; the monitor, which has no libc at all, for its start-up alone would
// cost more than the rest of the launch; and launcher tasks of rootless callers,
// which share Node's memory without being one of its threads.
#pragma once

#include <asm/unistd.h>

#include <type_traits>

namespace casemate::sys {

#if !defined(__x86_64__)
#error "casemate supports x86-64 only"
#endif

namespace detail {

template <typename T> inline long as_register(T value) {
  if constexpr (std::is_null_pointer_v<T>) {
    return 0;
  } else if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<long>(value);
  } else {
    static_assert(std::is_integral_v<T> || std::is_enum_v<T>);
    return static_cast<long>(value);
  }
}

inline long invoke(long number, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

} // namespace detail

template <typename A = long, typename B = long, typename C = long, typename D = long,
          typename E = long, typename F = long>
inline long call(long number, A a = 0, B b = 0, C c = 0, D d = 0, E e = 0, F f = 0) {
  return detail::invoke(number, detail::as_register(a), detail::as_register(b),
                        detail::as_register(c), detail::as_register(d), detail::as_register(e),
                        detail::as_register(f));
}

/// Repeats a call that a signal interrupted (-EINTR).
template <typename... Args> inline long call_retry(long number, Args... args) {
  long result;
  do {
    result = call(number, args...);
  } while (result == -4 /* EINTR */);
  return result;
}

} // namespace casemate::sys
