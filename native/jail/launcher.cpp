#include "jail/launcher.hpp"

#include "jail/clock.hpp"
#include "jail/process_state.hpp"
#include "jail/tap.hpp"
#include "sys/clone.hpp"
#include "sys/epoll.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <linux/sched.h>
#include <optional>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>

namespace casemate::jail {

using sys::call;
using sys::check;
using sys::Fd;
using sys::Result;
using sys::SysError;
using sys::TaskLock;

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

/// What a monitor that has been let go still takes until its guest runs, and more. The
/// pools are filled again after that long without a launch, or when they are half
/// empty: making namespaces next to a monitor that creates its VM delays both.
constexpr long settle_ns = 5'000'000;

/// The most that Node takes from the call of launch() until it submits one, and more.
constexpr std::uint64_t expectation_ns = 300'000;

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

SysError add_to(int epoll, int fd, std::uint64_t tag) {
  return sys::epoll_control(epoll, EPOLL_CTL_ADD, fd, tag, EPOLLIN);
}

/// Closes what the launcher steps made: the child has its copies. Our ends of the
/// socket pairs stay open for a launch that succeeded.
void close_made(Launch& launch, bool keep_our_ends) {
  bool keep[CASEMATE_SLOTS] = {};
  each_launcher_step(launch, [&](const casemate_step* step) {
    if (step->op == CASEMATE_OP_SOCKET_PAIR) {
      keep[payload<casemate_socket_pair>(step).parent_slot] = keep_our_ends;
    }
  });
  for (std::size_t i = launch.given; i < CASEMATE_SLOTS; ++i) {
    if (launch.slots[i] >= 0 && !keep[i]) {
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

// ---- The submitter's side -----------------------------------------------------

Launcher::Launcher(std::unique_ptr<Host> host, LauncherOptions options)
    : host_(std::move(host)), options_(options) {
  if (options_.pooled > max_pooled) {
    options_.pooled = max_pooled;
  }
}

SysError Launcher::start() {
  long event = call(__NR_eventfd2, 0, O_CLOEXEC | O_NONBLOCK);
  if (event < 0) {
    return check("eventfd2", event);
  }
  done_event_.reset(static_cast<int>(event));
  if (SysError error = add_to(options_.epoll, done_event_.get(), options_.done_tag)) {
    return error;
  }
  if (host_->rootless) {
    Result<sys::Mapping> stack =
        sys::Mapping::map(stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    if (!stack) {
      return stack.error();
    }
    TaskLock lock(NotDumpable::mutex()); // the maps are ours to write only while Node is dumpable
    Result<int> space =
        make_launcher_user_namespace(*host_, {stack.value().data(), stack.value().size()});
    if (!space) {
      return space.error();
    }
    host_->user_namespace.reset(space.value());
  }
  for (std::uint32_t i = 0; i < options_.tasks; ++i) {
    if (SysError error = start_task(&Launcher::launch_task)) {
      return error;
    }
  }
  return start_task(&Launcher::fill_task);
}

SysError Launcher::start_task(void (Launcher::*body)(Task&)) {
  auto owned = std::make_unique<Task>();
  Task& task = *owned;
  task.launcher = this;
  task.body = body;
  for (sys::Mapping* stack : {&task.child_stack, &task.own_stack}) {
    Result<sys::Mapping> mapped =
        sys::Mapping::map(stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    if (!mapped) {
      return mapped.error();
    }
    *stack = std::move(mapped).value();
  }
  AllSignalsBlocked blocked;
  if (!host_->rootless) {
    task.thread = std::thread([&task] { (task.launcher->*task.body)(task); });
    tasks_.push_back(std::move(owned));
    return {};
  }
  // Entering the user namespace gives the task capabilities, and takes the dumpable
  // flag from the memory it shares with Node.
  NotDumpable guard(true);
  sys::CloneArguments arguments;
  arguments.flags = CLONE_VM | CLONE_FILES;
  arguments.stack = reinterpret_cast<std::uint64_t>(task.own_stack.data());
  arguments.stack_size = task.own_stack.size();
  task.pid = sys::clone3(arguments, enter_as_process, &task);
  if (task.pid < 0) {
    return check("clone3", task.pid);
  }
  while (task.entered.load(std::memory_order_acquire) == 0) {
    sys::futex_wait(task.entered, 0);
  }
  SysError error = task.error;
  tasks_.push_back(std::move(owned));
  return error;
}

void Launcher::enter_as_process(void* argument) {
  auto& task = *static_cast<Task*>(argument);
  task.error = check("setns(user)",
                     call(__NR_setns, task.launcher->host_->user_namespace.get(), CLONE_NEWUSER));
  if (!task.error) {
    // After the change of credentials, which clears the signal.
    task.error = die_with_parent(task.launcher->process_);
  }
  task.entered.store(1, std::memory_order_release);
  sys::futex_wake(task.entered, 1);
  if (!task.error) {
    (task.launcher->*task.body)(task);
  }
  call(__NR_exit_group, 0);
}

Launcher::~Launcher() {
  {
    TaskLock lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  fill_.notify_all();
  for (auto& task : tasks_) {
    if (task->thread.joinable()) {
      task->thread.join();
    } else if (task->pid > 0) {
      sys::reap(task->pid);
    }
  }
  for (const SocketPool& pool : socket_pools_) {
    for (std::uint32_t i = 0; i < pool.ready; ++i) {
      call(__NR_close, pool.pairs[i][0]);
      call(__NR_close, pool.pairs[i][1]);
    }
  }
  for (std::uint32_t i = 0; i < user_ready_; ++i) {
    call(__NR_close, user_pool_[i].fd);
    if (user_pool_[i].lease >= 0) {
      call(__NR_close, user_pool_[i].lease);
    }
  }
  for (std::uint32_t i = 0; i < network_ready_; ++i) {
    call(__NR_close, network_pool_[i]);
  }
}

void Launcher::Queue::push(Launch* launch) {
  launch->next = nullptr;
  (last == nullptr ? first : last->next) = launch;
  last = launch;
}

Launch* Launcher::Queue::pop() {
  Launch* launch = first;
  if (launch != nullptr) {
    first = launch->next;
    last = first == nullptr ? nullptr : last;
  }
  return launch;
}

void Launcher::expect_launch() {
  node_cpu_ = static_cast<unsigned>(::sched_getcpu());
  expected_until_ = monotonic_ns() + expectation_ns;
  work_.notify_one();
}

void Launcher::submit(Launch* launch) {
  launch->moments[moment_submitted] = monotonic_ns();
  {
    TaskLock lock(mutex_);
    (launch->in_host_mounts ? host_queue_ : queue_).push(launch);
  }
  if (launch->in_host_mounts) {
    fill_.notify_one();
  } else if (work_.change(); awake_ == 0) {
    // A task that is about to fall asleep looks at the queue once more.
    work_.wake_one();
  }
}

void Launcher::cancel(Launch& launch) {
  launch.cancelled = true;
  // It may be done already, and nobody told of it.
  tell();
}

void Launcher::tell() {
  const std::uint64_t one = 1;
  sys::call_retry(__NR_write, done_event_.get(), &one, sizeof one);
}

void Launcher::heard() {
  std::uint64_t count = 0;
  call(__NR_read, done_event_.get(), &count, sizeof count);
}

Launch* Launcher::take_done() {
  TaskLock lock(mutex_);
  Launch* first = done_.first;
  done_ = {};
  return first;
}

Launcher::Ready Launcher::ready() {
  TaskLock lock(mutex_);
  return {network_ready_, user_ready_, std::ranges::none_of(socket_pools_, is_short)};
}

// ---- The tasks ----------------------------------------------------------------

void Launcher::launch_task(Task& task) {
  SysError unprepared = enter_prepared_mount_namespace(*host_);
  bool used_pools = false;
  while (true) {
    std::uint32_t seen = work_.count();
    Launch* launch = nullptr;
    {
      TaskLock lock(mutex_);
      launch = queue_.pop();
      if (launch == nullptr && stopping_) {
        return;
      }
    }
    if (launch == nullptr && wait_awake(seen)) {
      continue;
    }
    if (launch == nullptr) {
      if (!used_pools) {
        sleep_elsewhere(seen);
      } else if (!work_.wait_for(seen, settle_ns)) {
        fill_.notify_one();
        used_pools = false;
      }
      continue;
    }
    used_pools = true;
    if (unprepared) {
      launch->failed = Stage::prepare;
      launch->error = unprepared;
    } else {
      run(*launch, task);
    }
    finish(launch);
  }
}

/// Where a launch is expected, until it may have been submitted; false where none was. To
/// be woken takes 25 us, in which Node looks at the options of the launch.
bool Launcher::wait_awake(std::uint32_t seen) {
  if (monotonic_ns() >= expected_until_) {
    return false;
  }
  ++awake_;
  while (work_.count() == seen && monotonic_ns() < expected_until_) {
    __builtin_ia32_pause();
  }
  --awake_;
  return true;
}

/// Sleeps until there is work, on any processor but Node's. In a virtual machine an idle
/// processor counts as taken by the host, so that the kernel would wake this task behind
/// Node, who is busy with the launch that it is woken for.
void Launcher::sleep_elsewhere(std::uint32_t seen) {
  std::uint64_t allowed[16]; // 1024 processors; a kernel for more says EINVAL
  long size = call(__NR_sched_getaffinity, 0, sizeof allowed, allowed);
  if (size > 0) {
    const unsigned cpu = node_cpu_;
    std::uint64_t others[16];
    std::copy_n(allowed, 16, others);
    if (cpu < static_cast<unsigned>(size) * 8) {
      others[cpu / 64] &= ~(std::uint64_t{1} << cpu % 64);
    }
    // EINVAL where there is no other one.
    call(__NR_sched_setaffinity, 0, size, others);
  }
  work_.wait(seen);
  if (size > 0) {
    call(__NR_sched_setaffinity, 0, size, allowed); // or the monitor would inherit it
  }
}

/// Fills the pools, one namespace at a time, and sees to the launches that want the
/// host's mounts: it is the one task that still has them.
void Launcher::fill_task(Task& task) {
  bool failed = false; // a host that has no more namespaces to give is asked again later
  while (true) {
    std::uint32_t seen = fill_.count();
    Launch* launch = nullptr;
    bool want_user = false;
    bool want_network = false;
    SocketPool* short_of = nullptr;
    {
      TaskLock lock(mutex_);
      if (stopping_ && host_queue_.first == nullptr) {
        return;
      }
      launch = host_queue_.pop();
      want_user = user_ready_ < options_.pooled;
      want_network = network_ready_ < options_.pooled;
      short_of = std::ranges::find_if(socket_pools_, is_short);
    }
    if (launch != nullptr) {
      run(*launch, task);
      finish(launch);
      continue;
    }
    if (failed || (!want_user && !want_network && short_of == socket_pools_.end())) {
      fill_.wait(seen);
      failed = false;
      continue;
    }
    if (want_user) {
      Result<UserNamespace> made = [&] {
        TaskLock lock(NotDumpable::mutex());
        return make_monitor_user_namespace(*host_, task.stack());
      }();
      TaskLock lock(mutex_);
      if (made) {
        user_pool_[user_ready_++] = made.value();
      }
      failed = !made;
    }
    if (want_network) {
      Result<int> made = make_network_namespace(*host_, task.stack());
      TaskLock lock(mutex_);
      if (made) {
        network_pool_[network_ready_++] = made.value();
      }
      failed = failed || !made;
    }
    if (short_of != socket_pools_.end()) {
      failed = !make_socket_pair(*short_of) || failed;
    }
  }
}

Result<UserNamespace> Launcher::take_user_namespace(Task& task) {
  {
    TaskLock lock(mutex_);
    if (user_ready_ > 0) {
      refill_below_half(--user_ready_);
      return user_pool_[user_ready_];
    }
  }
  TaskLock lock(NotDumpable::mutex());
  return make_monitor_user_namespace(*host_, task.stack());
}

Result<int> Launcher::take_network_namespace(Task& task) {
  {
    TaskLock lock(mutex_);
    if (network_ready_ > 0) {
      refill_below_half(--network_ready_);
      return network_pool_[network_ready_];
    }
  }
  return make_network_namespace(*host_, task.stack());
}

SysError Launcher::take_socket_pair(const casemate_socket_pair& pair, const Task& task,
                                    int (&ends)[2]) {
  if (!task.labels_sockets) {
    TaskLock lock(mutex_);
    SocketPool* pool = std::ranges::find(socket_pools_, pair.type, &SocketPool::type);
    if (pool != socket_pools_.end() && pool->ready > 0) {
      std::ranges::copy(pool->pairs[--pool->ready], ends);
      return {};
    }
  }
  return check("socketpair", call(__NR_socketpair, AF_UNIX, pair.type | SOCK_CLOEXEC, 0, ends));
}

/// False where none can be made: the launch that misses it will say why.
bool Launcher::make_socket_pair(SocketPool& pool) {
  std::array<int, 2> pair;
  if (call(__NR_socketpair, AF_UNIX, pool.type | SOCK_CLOEXEC, 0, pair.data()) < 0) {
    return false;
  }
  TaskLock lock(mutex_);
  pool.pairs[pool.ready++] = pair; // by this task alone
  return true;
}

void Launcher::refill_below_half(std::uint32_t left) {
  if (left < options_.pooled / 2) {
    fill_.notify_one();
  }
}

/// Whoever waits for a monitor has nothing to do before that has something to say. To be
/// woken up for less takes a processor from the monitor, which is setting up its VM.
void Launcher::finish(Launch* launch) {
  bool told = false;
  {
    // What the epoll instance tells of is done by then: who hears of it takes the lock first.
    TaskLock lock(mutex_);
    const bool is_monitor =
        launch->failed == Stage::none && launch->control_slot != CASEMATE_NO_SLOT;
    launch->watched = is_monitor && watch(*launch);
    told = launch->watched && !launch->cancelled.load();
    done_.push(launch);
  }
  if (!told) {
    tell();
  }
}

bool Launcher::watch(const Launch& launch) {
  const int control = launch.slots[launch.control_slot];
  if (add_to(options_.epoll, launch.pidfd, launch.end_tag)) {
    return false;
  }
  if (add_to(options_.epoll, control, launch.message_tag)) {
    static_cast<void>(sys::epoll_control(options_.epoll, EPOLL_CTL_DEL, launch.pidfd));
    return false;
  }
  return true;
}

// ---- One launch ---------------------------------------------------------------

void Launcher::run(Launch& launch, Task& task) {
  launch.moments[moment_taken] = monotonic_ns();
  if (launch.cancelled.load(std::memory_order_relaxed)) {
    // While it waited for its turn: it need not be born to be killed.
    launch.failed = Stage::prepare;
    launch.error = {"launch", ECANCELED};
    return;
  }
  if (SysError error = clear_labels(task)) {
    // Those of another launch, which could not be cleared: this one would start under them.
    launch.failed = Stage::prepare;
    launch.error = error;
    return;
  }
  Expected expected = expectation(launch);
  bool launched = run_launcher_steps(launch, task, expected) && send_configuration(launch);
  launched = launched && launch_process(launch, task, expected);
  close_made(launch, launched);
}

/// From clone3 until it may do as it likes: a monitor until it was told to run, another
/// program until its execve.
bool Launcher::launch_process(Launch& launch, Task& task, Expected& expected) {
  // While the child shares Node's memory. A rootless launch has others wait for that, so it
  // does not wait for its monitor's announcement in it.
  std::optional<NotDumpable> not_dumpable(std::in_place, host_->rootless);
  bool launched = clone(launch, task);
  if (host_->rootless) {
    not_dumpable.reset();
  }
  if (SysError error = clear_labels(task); error && launched) {
    // Whatever else this task started would have them.
    launched = false;
    launch.failed = Stage::launcher;
    launch.error = error;
  }
  launch.user_id = expected.user_id;
  launched =
      launched && (launch.control_slot == CASEMATE_NO_SLOT || await_monitor(launch, expected));
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
  return launched;
}

bool Launcher::run_launcher_steps(Launch& launch, Task& task, Expected& expected) {
  const casemate_plan& plan = header(launch.plan.data());
  const casemate_step* step = first_step(launch.plan.data());
  for (std::uint32_t i = 0; i < plan.launcher_steps; ++i, step = next_step(step)) {
    if (SysError error = run_launcher_step(step, launch, task, expected)) {
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

SysError Launcher::run_launcher_step(const casemate_step* step, Launch& launch, Task& task,
                                     Expected& expected) {
  switch (step->op) {
  case CASEMATE_OP_EXEC_LABEL: {
    std::string_view label = label_of(step, launch);
    expected.label = label.data();
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
      expected.user_id = user.value().user_id;
      expected.group_id = user.value().group_id;
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
  const auto& task = *static_cast<const Task*>(argument);
  Launch& launch = *task.launch;
  launch.report.started = monotonic_ns();
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

bool Launcher::clone(Launch& launch, Task& task) {
  const casemate_plan& plan = header(launch.plan.data());
  task.launch = &launch;
  std::ranges::copy(launch.slots, task.slots);
  sys::CloneArguments arguments;
  // Shared memory: the cost does not depend on how big Node is, and it reports by writing
  // here. We sleep until it execs, except where it will announce itself: to wake up at its
  // execve as well takes the processor from it at its first instruction. No exit signal:
  // Node's own handling of its children never sees it. A rootless task passes it on to
  // Node, who reaps it.
  const bool sleeps = sleeps_until_exec(launch);
  arguments.flags = CLONE_VM | (sleeps ? CLONE_VFORK : 0) | CLONE_PIDFD | clone_clear_sighand |
                    plan.clone_flags | (host_->rootless ? CLONE_PARENT : 0);
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

bool Launcher::await_monitor(Launch& launch, const Expected& expected) {
  if (!receive_announcement(launch)) {
    launch.failed = launch.failed == Stage::none ? Stage::monitor : launch.failed;
    return false;
  }
  launch.moments[moment_jailed] = monotonic_ns();
  Mismatch mismatch = read_back(*host_, launch.pid, expected);
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
bool Launcher::receive_announcement(Launch& launch) {
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
      // Or a monitor that hangs up would not be seen hanging up. Not before: most likely this
      // task shares a processor with the monitor, and what it does now delays that.
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
