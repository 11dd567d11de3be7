// A mutex and a wake-up counter on futexes. Not std::mutex: launcher tasks of
// rootless callers share this memory without being threads that libc knows.
#pragma once

#include "sys/syscall.hpp"

#include <atomic>
#include <cstdint>

namespace casemate::sys {

inline void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t expected) {
  // Private futexes are keyed by the address space, which all waiters share.
  call(__NR_futex, &word, 128 /* FUTEX_WAIT_PRIVATE */, expected, nullptr);
}

inline void futex_wake(std::atomic<std::uint32_t>& word, int waiters) {
  call(__NR_futex, &word, 129 /* FUTEX_WAKE_PRIVATE */, waiters);
}

class Mutex {
public:
  void lock() {
    std::uint32_t state = 0;
    if (word_.compare_exchange_strong(state, held, std::memory_order_acquire)) {
      return;
    }
    while (word_.exchange(contended, std::memory_order_acquire) != 0) {
      futex_wait(word_, contended);
    }
  }
  void unlock() {
    if (word_.exchange(0, std::memory_order_release) == contended) {
      futex_wake(word_, 1);
    }
  }

private:
  static constexpr std::uint32_t held = 1;
  static constexpr std::uint32_t contended = 2;
  std::atomic<std::uint32_t> word_{0};
};

class Lock {
public:
  explicit Lock(Mutex& mutex) : mutex_(mutex) { mutex_.lock(); }
  ~Lock() { mutex_.unlock(); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

private:
  Mutex& mutex_;
};

/// Tells tasks that something changed. A waiter reads count() first, then looks at
/// what it waits for, then calls wait() with that count: no wake-up is lost.
class Changed {
public:
  std::uint32_t count() const { return word_.load(std::memory_order_acquire); }
  void wait(std::uint32_t seen) { futex_wait(word_, seen); }
  void notify() {
    word_.fetch_add(1, std::memory_order_release);
    futex_wake(word_, 1 << 30);
  }

private:
  std::atomic<std::uint32_t> word_{0};
};

} // namespace casemate::sys
