// The launcher as several environments of one process use it: each from a thread of its
// own, with launches that are given up, and gone while some are under way. Under
// ThreadSanitizer, too: npm run test:races. Descriptors only by raw system calls, as the
// launcher has them: it would take a number that is used again for a race, where it has
// seen one half of its life.
#include "jail/clock.hpp"
#include "jail/launcher.hpp"
#include "jail/plan.hpp"
#include "test/unit.hpp"
#include "vmm/wire.h"

#include <cstring>
#include <fcntl.h>
#include <functional>
#include <optional>
#include <poll.h>
#include <sched.h>
#include <string>
#include <string_view>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace casemate;
using namespace casemate::jail;

namespace {

constexpr std::uint32_t network_slot = 0;
constexpr std::uint32_t user_slot = 1;
constexpr std::uint32_t lease_slot = 2;
constexpr std::uint32_t child_slot = 3;
constexpr std::uint32_t parent_slot = 4;

/// Encodes a plan, as src/jail/encode.ts does.
class Plan {
public:
  template <typename Payload>
  void add(std::uint32_t op, Payload payload,
           std::initializer_list<std::string_view> strings = {}) {
    std::string bytes(reinterpret_cast<const char*>(&payload), sizeof payload);
    for (std::string_view text : strings) {
      bytes.append(text).push_back('\0');
    }
    bytes.resize((bytes.size() + 7) / 8 * 8);
    auto& step = *reinterpret_cast<casemate_step*>(bytes.data());
    step.op = op;
    step.size = static_cast<std::uint32_t>(bytes.size());
    steps_ += bytes;
    ++(op < CASEMATE_OP_SETNS ? launcher_steps_ : child_steps_);
  }

  std::vector<std::byte> encode(std::uint64_t clone_flags) const {
    casemate_plan head{};
    head.magic = CASEMATE_PLAN_MAGIC;
    head.version = CASEMATE_PLAN_VERSION;
    head.size = static_cast<std::uint32_t>(sizeof head + steps_.size());
    head.launcher_steps = launcher_steps_;
    head.child_steps = child_steps_;
    head.cgroup_slot = CASEMATE_NO_SLOT;
    head.clone_flags = clone_flags;
    std::vector<std::byte> bytes(head.size);
    std::memcpy(bytes.data(), &head, sizeof head);
    std::memcpy(bytes.data() + sizeof head, steps_.data(), steps_.size());
    return bytes;
  }

private:
  std::string steps_;
  std::uint32_t launcher_steps_ = 0;
  std::uint32_t child_steps_ = 0;
};

/// A program in namespaces from the pools, with a socket and a lease. The monitor: without
/// a control socket it ends at once, which is all that is asked of it, and with one as soon as
/// it has seen that what it finds there is no configuration.
std::vector<std::byte> plan(bool has_control = false) {
  Plan plan;
  const std::uint32_t type = has_control ? SOCK_SEQPACKET : SOCK_STREAM;
  plan.add<casemate_socket_pair>(CASEMATE_OP_SOCKET_PAIR, {{}, type, child_slot, parent_slot, 0});
  plan.add<casemate_pooled>(CASEMATE_OP_POOLED, {{}, CASEMATE_POOL_USER, user_slot, lease_slot, 0});
  plan.add<casemate_pooled>(CASEMATE_OP_POOLED,
                            {{}, CASEMATE_POOL_NET, network_slot, CASEMATE_NO_SLOT, 0});
  plan.add<casemate_setns>(CASEMATE_OP_SETNS, {{}, network_slot, CLONE_NEWNET});
  plan.add<casemate_setns>(CASEMATE_OP_SETNS, {{}, user_slot, CLONE_NEWUSER});
  if (has_control) {
    struct OneDescriptor {
      casemate_descriptors head;
      casemate_descriptor control;
    };
    plan.add<OneDescriptor>(CASEMATE_OP_DESCRIPTORS,
                            {{{}, 1, 0}, {child_slot, CASEMATE_FD_CONTROL}});
  }
  plan.add<casemate_exec>(CASEMATE_OP_EXEC, {{}, 1, 0}, {"/casemate-vmm", "casemate-vmm"});
  return plan.encode(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS);
}

/// Where the monitor was built: beside these tests, or as users build it.
std::string monitor() {
  std::string self(4096, '\0');
  const ssize_t size = ::readlink("/proc/self/exe", self.data(), self.size());
  self.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
  const std::string folder = self.substr(0, self.rfind('/'));
  const std::string beside = folder + "/casemate-vmm";
  const std::string users = folder.substr(0, folder.rfind('/')) + "/Release/casemate-vmm";
  return ::access(beside.c_str(), X_OK) == 0 ? beside : users;
}

std::unique_ptr<Host> host(const std::string& monitor) {
  auto host = std::make_unique<Host>();
  if (host->open_proc() || host->open_dev()) {
    return nullptr;
  }
  host->monitor = monitor.c_str();
  host->first_user_id = 1'900'000'000;
  host->user_ids = 4096;
  host->leases.reset(
      static_cast<int>(sys::call(__NR_open, "/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)));
  return host->leases ? std::move(host) : nullptr;
}

/// What becomes of a launch belongs to whoever submitted it.
bool reap(Launch& launch) {
  const bool launched = launch.failed == Stage::none && launch.pid > 0;
  if (launch.pidfd >= 0) {
    ::siginfo_t info{};
    sys::call_retry(__NR_waitid, P_PIDFD, launch.pidfd, &info, WEXITED | __WALL, nullptr);
    sys::call(__NR_close, launch.pidfd);
  }
  for (int slot : launch.slots) {
    if (slot >= 0) {
      sys::call(__NR_close, slot);
    }
  }
  return launched;
}

struct Outcome {
  const char* failed = nullptr; // a call that the test itself needs
  int launched = 0;
  int refused = 0; // by their monitor, which said so
  int done = 0;
};

/// What an environment does with its launcher.
class Environment {
public:
  Environment(Launcher& launcher, const std::vector<std::byte>& plan, int epoll)
      : launcher_(launcher), plan_(plan), epoll_(epoll) {}

  Launcher& launcher() { return launcher_; }
  Outcome& outcome() { return outcome_; }
  std::vector<std::unique_ptr<Launch>>& launches() { return launches_; }

  /// To be submitted.
  Launch& another() {
    launches_.push_back(std::make_unique<Launch>());
    launches_.back()->plan = plan_;
    std::ranges::fill(launches_.back()->slots, -1);
    return *launches_.back();
  }

  /// Waits until so many are done; false where that fails.
  bool wait_for(int done) {
    while (outcome_.done < done) {
      ::epoll_event event;
      if (sys::call_retry(__NR_epoll_wait, epoll_, &event, 1, 30'000) <= 0) {
        outcome_.failed = "epoll_wait";
        return false;
      }
      launcher_.heard();
      for (Launch* launch = launcher_.take_done(); launch != nullptr; launch = launch->next) {
        ++outcome_.done;
      }
    }
    return true;
  }

private:
  Launcher& launcher_;
  const std::vector<std::byte>& plan_;
  int epoll_;
  Outcome outcome_;
  std::vector<std::unique_ptr<Launch>> launches_;
};

Outcome in_environment(const std::vector<std::byte>& plan, std::uint32_t pooled,
                       const std::function<void(Environment&)>& use) {
  const std::string program = monitor();
  if (check_plan(plan, 0)) {
    return {.failed = "check_plan"};
  }
  std::unique_ptr<Host> owned = host(program);
  sys::Fd epoll(static_cast<int>(sys::call(__NR_epoll_create1, EPOLL_CLOEXEC)));
  if (owned == nullptr || !epoll) {
    return {.failed = "host"};
  }
  std::optional<Launcher> launcher(
      std::in_place, std::move(owned),
      LauncherOptions{.tasks = 2, .pooled = pooled, .epoll = epoll.get()});
  if (auto error = launcher->start()) {
    return {.failed = error.call};
  }
  Environment environment(*launcher, plan, epoll.get());
  use(environment);
  launcher.reset(); // waits for what is under way
  Outcome outcome = environment.outcome();
  for (auto& launch : environment.launches()) {
    outcome.refused += launch->failed == Stage::monitor && launch->event_size > 0 ? 1 : 0;
    outcome.launched += reap(*launch) ? 1 : 0;
  }
  return outcome;
}

/// Submits launches, gives some of them up, and takes what is done, or leaves without.
Outcome all_at_once(int launches, bool leaves_early, std::uint32_t pooled) {
  return in_environment(plan(), pooled, [&](Environment& environment) {
    Launcher& launcher = environment.launcher();
    for (int i = 0; i < launches; ++i) {
      Launch& launch = environment.another();
      if (i % 2 == 0) {
        launcher.expect_launch();
      }
      launcher.submit(&launch);
      if (i % 5 == 4) {
        launcher.cancel(launch);
      }
      static_cast<void>(launcher.ready());
    }
    if (!leaves_early) {
      environment.wait_for(launches);
    }
  });
}

/// Submits a monitor's launch when the one before is done: nothing waits, and so each is handed
/// over to the task that checks it. Of each four one is given up at once, and one has as good as no
/// time.
Outcome one_by_one(int launches, bool leaves_early) {
  static constexpr std::byte message[8] = {};
  return in_environment(plan(true), 4, [&](Environment& environment) {
    Launcher& launcher = environment.launcher();
    for (int i = 0; i < launches; ++i) {
      Launch& launch = environment.another();
      launch.control_slot = parent_slot;
      launch.is_lean = i % 2 == 0;
      launch.configuration = launch.announcement = launch.release = message;
      launch.deadline = monotonic_ns() + (i % 4 == 3 ? 1'000'000 : 30'000'000'000);
      launcher.expect_launch();
      launcher.submit(&launch);
      if (i % 4 == 2) {
        launcher.cancel(launch);
      }
      const bool leaves = leaves_early && i == launches - 1;
      if (!leaves && !environment.wait_for(i + 1)) {
        return;
      }
    }
  });
}

/// Several environments at once, each in a thread of its own.
std::vector<Outcome> at_once(int count, const std::function<Outcome(int)>& body) {
  std::vector<Outcome> outcomes(static_cast<std::size_t>(count));
  std::vector<std::thread> threads;
  threads.reserve(outcomes.size());
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&, i] { outcomes[static_cast<std::size_t>(i)] = body(i); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return outcomes;
}

std::size_t descriptors() {
  std::size_t open = 0;
  for (int fd = 0; fd < 1024; ++fd) {
    open += sys::call(__NR_fcntl, fd, F_GETFD) >= 0 ? 1 : 0;
  }
  return open;
}

} // namespace

TEST("launchers of several environments launch at once, and end with nothing left open") {
  if (::geteuid() != 0) {
    SKIP("needs root: a user's launcher is processes that share this memory");
  }
  const std::size_t before = descriptors();
  for (const Outcome& outcome :
       at_once(3, [](int i) { return all_at_once(20, false, i == 0 ? 0 : 4); })) {
    CHECK_EQ(std::string(outcome.failed == nullptr ? "" : outcome.failed), "");
    CHECK_EQ(outcome.done, 20);
    CHECK(outcome.launched >= 16); // all that were not given up
  }
  CHECK_EQ(descriptors(), before);
}

TEST("monitors that are checked by a task of its own are told from those that were given up") {
  if (::geteuid() != 0) {
    SKIP("needs root: a user's launcher is processes that share this memory");
  }
  const std::size_t before = descriptors();
  for (const Outcome& outcome : at_once(3, [](int i) { return one_by_one(16, i == 0); })) {
    CHECK_EQ(std::string(outcome.failed == nullptr ? "" : outcome.failed), "");
    CHECK_EQ(outcome.launched, 0);
    CHECK(outcome.refused >= 8); // of each four the first two
  }
  CHECK_EQ(descriptors(), before);
}

TEST("a launcher that ends while launches are under way waits for them, and leaves nothing open") {
  if (::geteuid() != 0) {
    SKIP("needs root: a user's launcher is processes that share this memory");
  }
  const std::size_t before = descriptors();
  for (const Outcome& outcome : at_once(4, [](int i) { return all_at_once(i * 4, true, 4); })) {
    CHECK_EQ(std::string(outcome.failed == nullptr ? "" : outcome.failed), "");
  }
  CHECK_EQ(descriptors(), before);
}
