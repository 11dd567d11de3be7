// Mutexes and a wake-up counter on futexes. Not std::mutex: launcher tasks of rootless
// callers share this memory without being threads that libc knows, and the monitor has
// no libc.
#pragma once

#include "sys/syscall.hpp"

#include <atomic>
#include <cstdint>

namespace casemate::sys {

/// Until woken, until a signal, or for `nanoseconds` at most (0: no limit). Returns
/// false where the time passed.
inline bool futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t expected,
                       long nanoseconds = 0) {
  const struct {
    long seconds;
    long nanoseconds;
  } limit{nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000};
  // Private futexes are keyed by the address space, which all waiters share.
  return call(__NR_futex, &word, 128 /* FUTEX_WAIT_PRIVATE */, expected,
              nanoseconds == 0 ? nullptr : &limit) != -110 /* ETIMEDOUT */;
}

inline void futex_wake(std::atomic<std::uint32_t>& word, int waiters) {
  call(__NR_futex, &word, 129 /* FUTEX_WAKE_PRIVATE */, waiters);
}

/// For tasks that may be killed while they wait.
class TaskMutex {
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

/// Given in the order in which it is asked for: who takes it again and again, as a busy
/// event loop does, keeps nobody waiting for long, whatever a guest has its vCPUs do. Only
/// for threads that end together: one that is gone while it waits is waited for by all
/// behind it.
class Mutex {
public:
  void lock() {
    const std::uint32_t mine = next_.fetch_add(1);
    for (int spins = 0;; ++spins) {
      const std::uint32_t served = served_.load();
      if (served == mine) {
        return;
      }
      if (spins < max_spins) {
        asm volatile("pause");
      } else {
        call(__NR_futex, &served_, 137 /* FUTEX_WAIT_BITSET_PRIVATE */, served, nullptr, nullptr,
             bit_of(mine));
      }
    }
  }
  void unlock() {
    const std::uint32_t following = served_.load(std::memory_order_relaxed) + 1;
    served_.store(following);
    if (next_.load() != following) {
      call(__NR_futex, &served_, 138 /* FUTEX_WAKE_BITSET_PRIVATE */, 1 << 30, nullptr, nullptr,
           bit_of(following));
    }
  }

private:
  /// What a short section takes, rather than to sleep and be woken.
  static constexpr int max_spins = 50;

  /// Of who is woken: the one whose turn it is, and those 32 behind it and so on.
  static std::uint32_t bit_of(std::uint32_t ticket) { return 1u << ticket % 32; }

  std::atomic<std::uint32_t> next_{0};
  std::atomic<std::uint32_t> served_{0};
};

template <typename Kind> class LockOf {
public:
  explicit LockOf(Kind& mutex) : mutex_(mutex) { mutex_.lock(); }
  ~LockOf() { mutex_.unlock(); }
  LockOf(const LockOf&) = delete;
  LockOf& operator=(const LockOf&) = delete;

private:
  Kind& mutex_;
};

using Lock = LockOf<Mutex>;
using TaskLock = LockOf<TaskMutex>;

/// Tells tasks that something changed. A waiter reads count() first, then looks at
/// what it waits for, then calls wait() with that count: no wake-up is lost.
class Changed {
public:
  std::uint32_t count() const { return word_.load(std::memory_order_acquire); }
  void wait(std::uint32_t seen) { futex_wait(word_, seen); }
  /// For what is looked at with `held`, which is let go of meanwhile: look again behind it.
  void wait(Mutex& held) {
    const std::uint32_t seen = count();
    held.unlock();
    wait(seen);
    held.lock();
  }
  /// False where nothing changed for so long.
  bool wait_for(std::uint32_t seen, long nanoseconds) {
    return futex_wait(word_, seen, nanoseconds);
  }
  /// Wakes one waiter: for a change that one task sees to.
  void notify_one() { notify(1); }
  /// The two halves of notify_one(), for who knows that nobody sleeps.
  void change() { word_.fetch_add(1); }
  void wake_one() { futex_wake(word_, 1); }
  void notify_all() { notify(1 << 30); }

private:
  void notify(int waiters) {
    word_.fetch_add(1, std::memory_order_release);
    futex_wake(word_, waiters);
  }

  std::atomic<std::uint32_t> word_{0};
};

} // namespace casemate::sys
