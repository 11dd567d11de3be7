#include "sys/clock.hpp"
#include "sys/fd.hpp"
#include "sys/futex.hpp"
#include "sys/mapping.hpp"
#include "sys/result.hpp"
#include "sys/syscall.hpp"
#include "test/unit.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <fcntl.h>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <unistd.h>
#include <vector>

using namespace casemate::sys;

namespace {

int open_null() { return static_cast<int>(call(__NR_openat, AT_FDCWD, "/dev/null", O_CLOEXEC)); }
bool is_open(int number) { return call(__NR_fcntl, number, F_GETFD) >= 0; }

} // namespace

static_assert(!std::is_copy_constructible_v<Fd> && !std::is_copy_assignable_v<Fd>);
static_assert(!std::is_copy_constructible_v<Mapping> && !std::is_copy_assignable_v<Mapping>);

TEST("call returns the kernel's own answer, -errno for an error") {
  CHECK_EQ(call(__NR_getpid), getpid());
  CHECK_EQ(call(__NR_close, -1), -EBADF);
}

TEST("call hands over all six arguments") {
  // mmap takes six, and refuses each of these for another one of them.
  CHECK_EQ(call(__NR_mmap, nullptr, 4096, PROT_READ, MAP_PRIVATE, -1, 0), -EBADF);
  CHECK_EQ(call(__NR_mmap, nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 1), -EINVAL);
  CHECK_EQ(call(__NR_mmap, nullptr, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), -EINVAL);
}

TEST("an Fd closes its descriptor once, when it goes") {
  int number = open_null();
  REQUIRE(number >= 0);
  {
    Fd fd(number);
    CHECK(static_cast<bool>(fd));
    CHECK_EQ(fd.get(), number);
    CHECK(is_open(number));
  }
  CHECK(!is_open(number));
}

TEST("a moved-from Fd owns nothing, a released one is the caller's") {
  int number = open_null();
  REQUIRE(number >= 0);
  Fd first(number);
  Fd second(std::move(first));
  CHECK_EQ(first.get(), -1);
  CHECK(!first);
  CHECK_EQ(second.get(), number);

  int other = open_null();
  second = Fd(other);
  CHECK(!is_open(number));
  CHECK_EQ(second.release(), other);
  CHECK(!second);
  CHECK(is_open(other));
  call(__NR_close, other);
}

TEST("assigning an Fd to itself keeps it open") {
  Fd fd(open_null());
  REQUIRE(static_cast<bool>(fd));
  Fd& same = fd;
  fd = std::move(same);
  CHECK(is_open(fd.get()));
}

TEST("a Mapping unmaps its memory when it goes") {
  std::byte* address = nullptr;
  {
    auto result = Mapping::map(8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    REQUIRE(result.ok());
    Mapping mapping = std::move(result).value();
    address = mapping.data();
    CHECK_EQ(mapping.size(), 8192u);
    address[8191] = std::byte{1};
    CHECK_EQ(call(__NR_msync, address, 8192, MS_ASYNC), 0);
  }
  CHECK_EQ(call(__NR_msync, address, 8192, MS_ASYNC), -ENOMEM);
}

TEST("a moved-from Mapping is empty, a released one stays mapped") {
  auto result = Mapping::map(4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS);
  REQUIRE(result.ok());
  Mapping first = std::move(result).value();
  Mapping second(std::move(first));
  CHECK(!first);
  CHECK_EQ(first.size(), 0u);
  std::byte* address = second.release();
  CHECK(!second);
  CHECK_EQ(call(__NR_msync, address, 4096, MS_ASYNC), 0);
  call(__NR_munmap, address, 4096);
}

TEST("a mapping that the kernel refuses is an error with its call and errno") {
  auto result = Mapping::map(0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS);
  CHECK(!result);
  CHECK_EQ(std::string_view(result.error().call), "mmap");
  CHECK_EQ(result.error().number, EINVAL);
}

TEST("a Result carries values that can only be moved") {
  Result<std::unique_ptr<int>> result(std::make_unique<int>(7));
  REQUIRE(result.ok());
  CHECK(!result.error());
  std::unique_ptr<int> value = std::move(result).value();
  CHECK_EQ(*value, 7);
}

TEST("check tells an error from a value") {
  CHECK(!check("read", 3));
  CHECK(!check("read", 0));
  SysError error = check("read", -EIO);
  CHECK(static_cast<bool>(error));
  CHECK_EQ(error.number, EIO);
}

TEST("the clock is CLOCK_MONOTONIC and never goes back") {
  std::uint64_t before = monotonic_ns();
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  auto libc = static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000u +
              static_cast<std::uint64_t>(now.tv_nsec);
  std::uint64_t after = monotonic_ns();
  CHECK(before <= libc);
  CHECK(libc <= after);
}

namespace {

/// Whether a thread of this process sleeps; proc_pid_stat(5).
bool sleeps(long thread) {
  std::ifstream file("/proc/self/task/" + std::to_string(thread) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return text.substr(text.rfind(')') + 2, 1) == "S";
}

} // namespace

TEST("a mutex is given in the order in which it was asked for, also to more than 32") {
  Mutex mutex;
  std::vector<int> order;
  std::vector<std::thread> threads;
  mutex.lock();
  for (int i = 0; i < 40; ++i) {
    std::atomic<long> id{0};
    threads.emplace_back([&, i] {
      id = call(__NR_gettid);
      const LockOf held(mutex);
      order.push_back(i);
    });
    while (id == 0 || !sleeps(id)) {
      std::this_thread::yield();
    }
  }
  mutex.unlock();
  mutex.lock(); // behind all of them
  CHECK_EQ(order.size(), 40u);
  CHECK(std::ranges::is_sorted(order));
  mutex.unlock();
  for (auto& thread : threads) {
    thread.join();
  }
}

template <typename Kind> static void check_exclusion() {
  Kind mutex;
  long count = 0; // not atomic
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 20'000; ++round) {
        const LockOf held(mutex);
        ++count;
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  CHECK_EQ(count, 80'000);
}

TEST("only one at a time has a mutex") {
  check_exclusion<Mutex>();
  check_exclusion<TaskMutex>();
}

TEST("what is waited for with a mutex is seen, whoever brings it about") {
  Mutex mutex;
  Changed changed;
  int turn = 0;
  const auto play = [&](int mine) {
    mutex.lock();
    for (int round = 0; round < 1000; ++round) {
      while (turn % 2 != mine) {
        changed.wait(mutex);
      }
      ++turn;
      changed.notify_all();
    }
    mutex.unlock();
  };
  std::thread other(play, 1);
  play(0);
  other.join();
  CHECK_EQ(turn, 2000);
}
