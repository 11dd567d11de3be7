// What becomes of one launch: the plan's launcher steps, the child's, its monitor.
#include "jail/clock.hpp"
#include "jail/launcher.hpp"
#include "jail/tap.hpp"
#include "sys/clone.hpp"

#include <algorithm>
#include <bitset>
#include <cerrno>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>

namespace casemate::jail {

using sys::call;
using sys::check;
using sys::Fd;
using sys::Result;
using sys::SysError;

namespace {

constexpr std::uint64_t clone_clear_sighand = 0x1'0000'0000;
constexpr std::uint64_t clone_into_cgroup = 0x2'0000'0000;

/// Writes an SELinux label attribute of the calling task; one of NUL alone clears it.
/// By the host's procfs and not through libselinux, which caches the last label in
/// a thread-local and then skips the write: the next process would start unlabelled.
SysError write_label(const Host& host, const char* path, std::string_view label) {
  if (label.empty()) {
    return {"label", EINVAL}; // of a plan that leaves it to launches, and a launch that has none
  }
  long fd = call(__NR_openat, host.proc.get(), path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) {
    return check("open(/proc/thread-self/attr)", fd);
  }
  Fd owned(static_cast<int>(fd));
  return check("write(/proc/thread-self/attr)",
               call(__NR_write, owned.get(), label.data(), label.size()));
}

/// A label that clears is written as its NUL, without which nothing would be.
constexpr std::string_view no_label("\0", 1);

constexpr const char* exec_label = "thread-self/attr/exec";
constexpr const char* socket_label = "thread-self/attr/sockcreate";

template <typename Visit> void each_launcher_step(const Launch& launch, Visit visit) {
  const std::byte* plan = launch.plan.data();
  const casemate_step* step = first_step(plan);
  for (std::uint32_t i = 0; i < header(plan).launcher_steps; ++i, step = next_step(step)) {
    visit(step);
  }
}

/// What the plan says the monitor will be. A pooled user namespace changes its ids.
Expected expectation(const Launch& launch) {
  const casemate_plan& plan = header(launch.plan.data());
  Expected expected;
  expected.checks = plan.check;
  const casemate_step* step = first_step(launch.plan.data());
  for (std::uint32_t i = 0; i < plan.launcher_steps + plan.child_steps; ++i) {
    if (step->op == CASEMATE_OP_IDS) {
      expected.user_id = payload<casemate_ids>(step).uid;
      expected.group_id = payload<casemate_ids>(step).gid;
    }
    step = next_step(step);
  }
  return expected;
}

/// The step's own, or the launch's.
std::string_view label_of(const casemate_step* step, const Launch& launch) {
  const std::size_t length = payload<casemate_text>(step).length;
  return length == 0 ? launch.label : std::string_view(tail<casemate_text>(step), length);
}

/// By slot: our ends of the socket pairs.
std::bitset<CASEMATE_SLOTS> our_ends(const Launch& launch) {
  std::bitset<CASEMATE_SLOTS> ours;
  each_launcher_step(launch, [&](const casemate_step* step) {
    if (step->op == CASEMATE_OP_SOCKET_PAIR) {
      ours.set(payload<casemate_socket_pair>(step).parent_slot);
    }
  });
  return ours;
}

/// Closes what the launcher steps made: the child has its copies. Our ends of the
/// socket pairs stay open for a launch that succeeded.
void close_made(Launch& launch, bool keep_our_ends) {
  const auto ours = our_ends(launch);
  for (std::size_t i = launch.given; i < CASEMATE_SLOTS; ++i) {
    if (launch.slots[i] >= 0 && !(keep_our_ends && ours[i])) {
      call(__NR_close, launch.slots[i]);
      launch.slots[i] = -1;
    }
  }
}

/// Of a child whose execve, or whose end, is known to be behind it.
bool has_executed(Launch& launch) {
  const casemate_plan& plan = header(launch.plan.data());
  if (launch.report.error != 0) {
    launch.error = {launch.report.call, launch.report.error};
  } else if (plan.child_steps == 0 || launch.report.done != plan.child_steps - 1) {
    // All steps but the execve that succeeded, or a signal came first.
    launch.error = {"execve", EOWNERDEAD};
  } else {
    return true;
  }
  launch.failed = Stage::child;
  return false;
}

} // namespace

void Launcher::run(Launch& launch, Task& task) {
  launch.moments[moment_taken] = monotonic_ns();
  if (launch.cancelled.load(std::memory_order_relaxed)) {
    // While it waited for its turn: it need not be born to be killed.
    launch.failed = Stage::prepare;
    launch.error = {"launch", ECANCELED};
    return finish(&launch);
  }
  if (SysError error = clear_labels(task)) {
    // Those of another launch, which could not be cleared: this one would start under them.
    launch.failed = Stage::prepare;
    launch.error = error;
    return finish(&launch);
  }
  task.expected = expectation(launch);
  bool launched =
      run_launcher_steps(launch, task) && send_configuration(launch) && start_process(launch, task);
  if (launched && launch.control_slot != CASEMATE_NO_SLOT) {
    if (hand_over(launch, task)) {
      return;
    }
    launched = await_monitor(launch, task);
  }
  conclude(launch, task, launched);
}

/// From clone3 until it need not be waited for: a monitor announces itself, another program's
/// execve is behind it.
bool Launcher::start_process(Launch& launch, Task& task) {
  // While the child shares Node's memory. A rootless launch has others wait for that, so it
  // does not wait for its monitor's announcement in it.
  task.not_dumpable.emplace(host_->rootless);
  bool launched = clone(launch, task);
  if (host_->rootless) {
    task.not_dumpable.reset();
  }
  if (SysError error = clear_labels(task); error && launched) {
    // Whatever else this task started would have them.
    launched = false;
    launch.failed = Stage::launcher;
    launch.error = error;
  }
  launch.user_id = task.expected.user_id;
  return launched;
}

/// What the launch made is closed but for what is Node's from here on, and Node is told.
void Launcher::conclude(Launch& launch, Task& task, bool launched) {
  if (!launched && launch.pidfd >= 0) {
    // It may be anywhere between clone3 and its guest. Whoever submitted it reaps it.
    call(__NR_pidfd_send_signal, launch.pidfd, 9 /* SIGKILL */, nullptr, 0);
    // Before its execve it has our memory, and this launch's report in it: whatever becomes of
    // the waiting, there is no going on before its end.
    struct pollfd ended {
      launch.pidfd, POLLIN, 0
    };
    while (call(__NR_ppoll, &ended, 1, nullptr, nullptr, 8) < 0) {
      constexpr struct { long seconds, nanoseconds; } pause{0, 1'000'000};
      call(__NR_nanosleep, &pause, nullptr);
    }
  }
  task.not_dumpable.reset();
  vacate(task);
  close_made(launch, launched);
  if (launched && task.others.size != 0) {
    // It was born with the processors of the task that started it. Here, as nobody reaps it
    // before Node is told: its pid is its own.
    const long result =
        call(__NR_sched_setaffinity, launch.pid, task.allowed.size, task.allowed.mask.data());
    if (result == -EPERM || result == -EACCES) {
      may_move_ = false;
    }
  }
  finish(&launch);
}

bool Launcher::run_launcher_steps(Launch& launch, Task& task) {
  const casemate_plan& plan = header(launch.plan.data());
  const casemate_step* step = first_step(launch.plan.data());
  for (std::uint32_t i = 0; i < plan.launcher_steps; ++i, step = next_step(step)) {
    if (SysError error = run_launcher_step(step, launch, task)) {
      launch.failed = Stage::launcher;
      launch.error = error;
      launch.report.done = i;
      return false;
    }
    launch.launcher_stamps[i] = monotonic_ns();
  }
  launch.moments[moment_prepared] = monotonic_ns();
  return true;
}

SysError Launcher::run_launcher_step(const casemate_step* step, Launch& launch, Task& task) {
  switch (step->op) {
  case CASEMATE_OP_EXEC_LABEL: {
    std::string_view label = label_of(step, launch);
    task.expected.label = label.data();
    SysError error = write_label(*host_, exec_label, label);
    task.labels_exec = !error;
    return error;
  }
  case CASEMATE_OP_SOCKET_LABEL: {
    SysError error = write_label(*host_, socket_label, label_of(step, launch));
    task.labels_sockets = !error;
    return error;
  }
  case CASEMATE_OP_SOCKET_PAIR: {
    const auto& pair = payload<casemate_socket_pair>(step);
    int ends[2];
    SysError error = take_socket_pair(pair, task, ends);
    if (!error) {
      launch.slots[pair.child_slot] = ends[0];
      launch.slots[pair.parent_slot] = ends[1];
    }
    return error;
  }
  case CASEMATE_OP_POOLED: {
    const auto& pooled = payload<casemate_pooled>(step);
    if (pooled.pool == CASEMATE_POOL_NET) {
      Result<int> network = take_network_namespace(task);
      if (network) {
        launch.slots[pooled.slot] = network.value();
      }
      return network.error();
    }
    Result<UserNamespace> user = take_user_namespace(task);
    if (user) {
      launch.slots[pooled.slot] = user.value().fd;
      task.expected.user_id = user.value().user_id;
      task.expected.group_id = user.value().group_id;
      if (pooled.lease_slot != CASEMATE_NO_SLOT) {
        launch.slots[pooled.lease_slot] = user.value().lease;
      } else if (user.value().lease >= 0) {
        call(__NR_close, user.value().lease);
      }
    }
    return user.error();
  }
  case CASEMATE_OP_TAP: {
    const auto& wanted = payload<casemate_tap>(step);
    const bool is_here = wanted.network_slot == CASEMATE_NO_SLOT;
    Result<int> tap =
        make_tap(*host_, wanted, is_here ? -1 : launch.slots[wanted.network_slot], task.stack());
    if (tap) {
      launch.slots[wanted.slot] = tap.value();
    }
    return tap.error();
  }
  default:
    return {"plan", EINVAL};
  }
}

/// The labels of a launch are its task's, and would stay for the task's next one.
SysError Launcher::clear_labels(Task& task) {
  SysError error{};
  if (task.labels_exec) {
    error = write_label(*host_, exec_label, no_label);
    task.labels_exec = static_cast<bool>(error);
  }
  if (task.labels_sockets && !error) {
    error = write_label(*host_, socket_label, no_label);
    task.labels_sockets = static_cast<bool>(error);
  }
  return error;
}

bool Launcher::send_configuration(Launch& launch) {
  if (launch.control_slot == CASEMATE_NO_SLOT || launch.configuration.empty()) {
    return true;
  }
  // Before it is born, so that it never waits for it.
  long sent = call(__NR_sendto, launch.slots[launch.control_slot], launch.configuration.data(),
                   launch.configuration.size(), MSG_NOSIGNAL | MSG_DONTWAIT, nullptr, 0);
  if (sent < 0) {
    launch.failed = Stage::launcher;
    launch.error = check("sendto(configuration)", sent);
  }
  return sent >= 0;
}

/// The child, in our memory: the plan's steps up to its execve.
void Launcher::run_child(void* argument) {
  auto& task = *static_cast<Task*>(argument);
  Launch& launch = *task.launch;
  launch.report.started = monotonic_ns();
  if (task.shares_table) {
    // Before anything else: until here its descriptors are Node's.
    const long result = call(__NR_close_range, task.parking_end, ~0u, CLOSE_RANGE_UNSHARE);
    if (result < 0) {
      launch.report.call = "close_range";
      launch.report.error = static_cast<std::int32_t>(-result);
      call(__NR_exit_group, 127);
    }
    task.has_own_table = true;
  }
  const casemate_plan& plan = header(launch.plan.data());
  const casemate_step* step = first_step(launch.plan.data());
  for (std::uint32_t i = 0; i < plan.launcher_steps; ++i) {
    step = next_step(step);
  }
  run_steps(step, plan.child_steps, task.slots, launch.report);
  call(__NR_exit_group, 127);
}

bool Launcher::sleeps_until_exec(const Launch& launch) const {
  return host_->rootless || launch.control_slot == CASEMATE_NO_SLOT;
}

/// Puts what the child is to have where it finds it. False where there is no room: then it gets a
/// copy of Node's whole table, and closes what is not its own one by one at its execve, which takes
/// 0.3 us for each descriptor that Node has open.
bool Launcher::park(const Launch& launch, Task& task) const {
  std::ranges::copy(launch.slots, task.slots);
  task.has_own_table = false;
  if (!launch.is_lean || task.parking_end == 0) {
    return false;
  }
  const auto ours = our_ends(launch);
  for (std::size_t i = 0; i < CASEMATE_SLOTS; ++i) {
    if (launch.slots[i] < 0 || ours[i]) {
      continue;
    }
    if (task.parked == task.parking.size() ||
        call(__NR_dup3, launch.slots[i], task.parking[task.parked].get(), O_CLOEXEC) < 0) {
      vacate(task);
      std::ranges::copy(launch.slots, task.slots);
      return false;
    }
    task.slots[i] = task.parking[task.parked++].get();
  }
  return task.parked > 0;
}

/// The numbers stay taken. Not before the child has copied them, or has ended.
void Launcher::vacate(Task& task) const {
  while (task.parked > 0) {
    sys::Fd& place = task.parking[--task.parked];
    long result = -1;
    // EINTR, EBUSY: dup(2) says that to try again is for us.
    for (int tries = 0; result < 0 && tries < 4; ++tries) {
      result = call(__NR_dup3, done_event_.get(), place.get(), O_CLOEXEC);
    }
    if (result < 0) {
      // Numbers as high are no longer allowed (RLIMIT_NOFILE), say. What is there must not stay.
      place.reset();
      task.parking_end = 0;
    }
  }
}

bool Launcher::clone(Launch& launch, Task& task) {
  const casemate_plan& plan = header(launch.plan.data());
  task.launch = &launch;
  task.shares_table = park(launch, task);
  sys::CloneArguments arguments;
  // Shared memory: the cost does not depend on how big Node is, and it reports by writing
  // here. We sleep until it execs, except where it will announce itself: to wake up at its
  // execve as well takes the processor from it at its first instruction. No exit signal:
  // Node's own handling of its children never sees it. A rootless task passes it on to
  // Node, who reaps it.
  const bool sleeps = sleeps_until_exec(launch);
  arguments.flags = CLONE_VM | (sleeps ? CLONE_VFORK : 0) | CLONE_PIDFD | clone_clear_sighand |
                    plan.clone_flags | (host_->rootless ? CLONE_PARENT : 0) |
                    (task.shares_table ? CLONE_FILES : 0);
  arguments.pidfd = reinterpret_cast<std::uint64_t>(&launch.pidfd);
  arguments.stack = reinterpret_cast<std::uint64_t>(task.child_stack.data());
  arguments.stack_size = task.child_stack.size();
  if (plan.cgroup_slot != CASEMATE_NO_SLOT) {
    // Born in its cgroup: moving it there by writing cgroup.procs takes 11 ms.
    arguments.flags |= clone_into_cgroup;
    arguments.cgroup = static_cast<std::uint64_t>(launch.slots[plan.cgroup_slot]);
  }
  launch.pid = sys::clone3(arguments, run_child, &task);
  if (launch.pid < 0) {
    launch.pidfd = -1;
    launch.failed = Stage::clone;
    launch.error = check("clone3", launch.pid);
    return false;
  }
  if (!sleeps) {
    return true;
  }
  launch.moments[moment_cloned] = monotonic_ns();
  return has_executed(launch);
}

bool Launcher::await_monitor(Launch& launch, Task& task) {
  if (!receive_announcement(launch, task)) {
    launch.failed = launch.failed == Stage::none ? Stage::monitor : launch.failed;
    return false;
  }
  launch.moments[moment_jailed] = monotonic_ns();
  Mismatch mismatch = read_back(*host_, launch.pid, task.expected);
  launch.moments[moment_checked] = monotonic_ns();
  if (mismatch) {
    launch.failed = Stage::check;
    launch.mismatch = mismatch.aspect;
    launch.error = mismatch.error;
  } else {
    long sent = call(__NR_sendto, launch.slots[launch.control_slot], launch.release.data(),
                     launch.release.size(), MSG_NOSIGNAL | MSG_DONTWAIT, nullptr, 0);
    launch.moments[moment_released] = monotonic_ns();
    if (sent >= 0) {
      return true;
    }
    launch.failed = Stage::monitor;
    launch.error = check("sendto(release)", sent);
  }
  // It prepares its VM meanwhile, and that may have failed: then what it said of it is
  // the reason, and what we found is only that it is gone.
  long size = call(__NR_recvfrom, launch.slots[launch.control_slot], launch.event,
                   sizeof launch.event, MSG_DONTWAIT, nullptr, nullptr);
  if (size > 0) {
    launch.failed = Stage::monitor;
    launch.event_size = static_cast<std::size_t>(size);
  }
  return false;
}

/// Waits for the monitor's first message. Its end, another message, the deadline and
/// a cancelled launch all say no.
bool Launcher::receive_announcement(Launch& launch, Task& task) {
  int control = launch.slots[launch.control_slot];
  while (true) {
    std::uint64_t now = monotonic_ns();
    if (launch.cancelled.load(std::memory_order_relaxed) || now >= launch.deadline) {
      launch.error = {"poll(control socket)", now >= launch.deadline ? ETIMEDOUT : ECANCELED};
      return false;
    }
    // In slices, so that a cancelled launch is seen soon.
    std::uint64_t slice = 20'000'000;
    slice = launch.deadline - now < slice ? launch.deadline - now : slice;
    const struct {
      long seconds;
      long nanoseconds;
    } timeout{0, static_cast<long>(slice)};
    struct pollfd watched[2] = {{control, POLLIN, 0}, {launch.pidfd, POLLIN, 0}};
    long ready = call(__NR_ppoll, watched, 2, &timeout, nullptr, 8);
    if (ready == 0) {
      // Or a monitor that hangs up would not be seen hanging up. Not before: what this task did
      // between the monitor's birth and now would delay that.
      if (task.has_own_table) {
        vacate(task);
      }
      close_made(launch, true);
    }
    if (ready == 0 || ready == -EINTR) {
      continue;
    }
    if (ready < 0) {
      launch.error = check("ppoll", ready);
      return false;
    }
    long size = call(__NR_recvfrom, control, launch.event, sizeof launch.event, MSG_DONTWAIT,
                     nullptr, nullptr);
    if (size <= 0 && !has_executed(launch)) {
      return false;
    }
    if (size <= 0) {
      launch.error = {"recvfrom(control socket)", size < 0 ? static_cast<int>(-size) : EPIPE};
      return false;
    }
    launch.event_size = static_cast<std::size_t>(size);
    return launch.event_size == launch.announcement.size() &&
           std::equal(launch.announcement.begin(), launch.announcement.end(), launch.event);
  }
}

} // namespace casemate::jail
