#include "jail/launcher.hpp"

#include "jail/clock.hpp"
#include "sys/clone.hpp"
#include "sys/epoll.hpp"
#include "sys/eventfd.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <sched.h>
#include <sys/socket.h>

namespace casemate::jail {

using sys::call;
using sys::check;
using sys::Result;
using sys::SysError;
using sys::TaskLock;

namespace {

/// What a monitor that has been let go still takes until its guest runs, and more. The
/// pools are filled again after that long without a launch, or when they are half
/// empty: making namespaces next to a monitor that creates its VM delays both.
constexpr long settle_ns = 5'000'000;

/// The most that Node takes from the call of launch() until it submits one, and more.
constexpr std::uint64_t expectation_ns = 300'000;

/// The checking task's turn with the scheduler, and so how long it waits behind others at most.
constexpr std::uint64_t check_slice_ns = 100'000;

/// sched_setattr(2); libc has none, and <linux/sched/types.h> not beside <sched.h>.
struct SchedulingAttributes {
  std::uint32_t size = sizeof(SchedulingAttributes);
  std::uint32_t policy = 0;
  std::uint64_t flags = 0;
  std::int32_t nice = 0;
  std::uint32_t priority = 0;
  std::uint64_t runtime = 0; // the length of its turns, in ns
  std::uint64_t deadline = 0;
  std::uint64_t period = 0;
};

constexpr std::uint64_t stop_tag = 0;

SysError add_to(int epoll, int fd, std::uint64_t tag, std::uint32_t events = EPOLLIN) {
  return sys::epoll_control(epoll, EPOLL_CTL_ADD, fd, tag, events);
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
  for (sys::Fd* event : {&done_event_, &stop_checking_}) {
    Result<sys::Fd> made = sys::make_eventfd();
    if (!made) {
      return made.error();
    }
    *event = std::move(made).value();
  }
  long epoll = call(__NR_epoll_create1, EPOLL_CLOEXEC);
  if (epoll < 0) {
    return check("epoll_create1", epoll);
  }
  handed_over_.reset(static_cast<int>(epoll));
  if (SysError error = add_to(handed_over_.get(), stop_checking_.get(), stop_tag)) {
    return error;
  }
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
  if (SysError error = start_task(&Launcher::fill_task)) {
    return error;
  }
  return start_task(&Launcher::check_task);
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
  if (body == &Launcher::launch_task) {
    reserve_parking(task);
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

/// As early as there is a launcher: these numbers are to be low, whatever Node opens later.
void Launcher::reserve_parking(Task& task) const {
  unsigned end = 0;
  for (sys::Fd& place : task.parking) {
    const long number = call(__NR_fcntl, done_event_.get(), F_DUPFD_CLOEXEC, 0);
    if (number < 0) {
      task.parking = {};
      return;
    }
    place.reset(static_cast<int>(number));
    end = std::max(end, static_cast<unsigned>(number) + 1);
  }
  task.parking_end = end;
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
    if (task == tasks_.back()) {
      // The one that checks what all others have handed over.
      sys::tell_eventfd(stop_checking_.get());
    }
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
  sys::tell_eventfd(done_event_.get());
}

void Launcher::heard() { sys::take_eventfd(done_event_.get()); }

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
  while (true) {
    await_check(task);
    std::uint32_t seen = work_.count();
    Launch* launch = nullptr;
    bool more = false;
    {
      TaskLock lock(mutex_);
      launch = queue_.pop();
      more = queue_.first != nullptr;
      if (launch == nullptr && stopping_) {
        return;
      }
    }
    if (launch == nullptr && wait_awake(seen)) {
      continue;
    }
    if (launch == nullptr) {
      if (!task.used_pools) {
        sleep_elsewhere(task, seen);
      } else if (!work_.wait_for(seen, settle_ns)) {
        fill_.notify_one();
        task.used_pools = false;
      }
      continue;
    }
    if (more || !launch->is_lean || !may_move_) {
      roam(task); // they want all processors there are, and its threads from their birth on
    }
    task.used_pools = true;
    if (unprepared) {
      launch->failed = Stage::prepare;
      launch->error = unprepared;
      finish(launch);
    } else {
      run(*launch, task);
    }
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
/// Node, who is busy with the launch that it is woken for; and a monitor would be born there,
/// or moved there at its execve. So it and its monitor stay off until that is jailed.
void Launcher::sleep_elsewhere(Task& task, std::uint32_t seen) {
  // Of the filler: this task's own are what is left of those that it keeps to.
  task.allowed = {};
  const long size = call(__NR_sched_getaffinity, filler_.load(), sizeof task.allowed.mask,
                         task.allowed.mask.data());
  task.allowed.size = size > 0 ? static_cast<std::size_t>(size) : 0;
  const Processors others = task.allowed.without(node_cpu_);
  // EINVAL where there is no other one.
  if (others != task.others &&
      call(__NR_sched_setaffinity, 0, others.size, others.mask.data()) == 0) {
    task.others = others;
  }
  work_.wait(seen);
}

/// What it starts from here on runs on any processor again.
void Launcher::roam(Task& task) {
  if (task.others.size != 0) {
    call(__NR_sched_setaffinity, 0, task.allowed.size, task.allowed.mask.data());
    task.others = {};
  }
}

Launcher::Processors Launcher::Processors::without(unsigned processor) const {
  Processors others = *this;
  if (processor < size * 8) {
    others.mask[processor / 64] &= ~(std::uint64_t{1} << processor % 64);
  }
  return others;
}

// ---- Launches handed over -----------------------------------------------------
//
// A launch task's work is done when its monitor is born, and it sleeps. Waiting for the
// monitor, reading it back and letting it go is for a task that does so on another
// processor: there it is beside the monitor, which sets up its VM, and not in its place.

/// False where the launch task is to go on itself: others wait for it.
bool Launcher::hand_over(Launch& launch, Task& task) {
  if (launch.in_host_mounts) {
    return false;
  }
  {
    TaskLock lock(mutex_);
    if (queue_.first != nullptr || stopping_) {
      return false;
    }
  }
  keep_checker_off(task);
  const int control = launch.slots[launch.control_slot];
  task.check = check_pending;
  task.handed_over = &launch;
  // Told of once. What comes later is for Node.
  if (add_to(handed_over_.get(), control, reinterpret_cast<std::uint64_t>(&task),
             EPOLLIN | EPOLLONESHOT) &&
      task.handed_over.exchange(nullptr) != nullptr) {
    task.check = check_none;
    return false;
  }
  return true;
}

/// Off the processor where the monitor is: to wake it there would take that from the monitor.
void Launcher::keep_checker_off(const Task& task) {
  unsigned here = 0;
  call(__NR_getcpu, &here, nullptr, nullptr); // libc asks Node's thread, where a task is a process
  const long checker = checker_;
  // 0 would be this task, and without a size it has not asked yet.
  if (checker != 0 && task.allowed.size != 0 && here != checker_off_.exchange(here)) {
    const Processors others = task.allowed.without(here);
    // EINVAL where there is no other one.
    call(__NR_sched_setaffinity, checker, others.size, others.mask.data());
  }
}

void Launcher::check_task(Task&) {
  checker_ = call(__NR_gettid);
  // Node may be at work where it is woken. Kernels that know of no such slice (before 6.12)
  // have it wait for one of theirs.
  SchedulingAttributes attributes;
  if (call(__NR_sched_getattr, 0, &attributes, sizeof attributes, 0) == 0 &&
      (attributes.policy == SCHED_OTHER || attributes.policy == SCHED_BATCH)) {
    attributes.runtime = check_slice_ns;
    call(__NR_sched_setattr, 0, &attributes, 0);
  }
  while (true) {
    epoll_event event{};
    if (call(__NR_epoll_pwait, handed_over_.get(), &event, 1, -1, nullptr, 8) != 1) {
      continue;
    }
    if (event.data.u64 == stop_tag) {
      return;
    }
    see_through(*reinterpret_cast<Task*>(event.data.u64));
  }
}

/// The rest of the launch that a task handed over, unless that has been seen to.
void Launcher::see_through(Task& task) {
  Launch* launch = task.handed_over.exchange(nullptr);
  if (launch == nullptr) {
    return;
  }
  // Or what it says later would be told of here, by whoever was not the one to take it.
  static_cast<void>(
      sys::epoll_control(handed_over_.get(), EPOLL_CTL_DEL, launch->slots[launch->control_slot]));
  conclude(*launch, task, await_monitor(*launch, task));
  if (task.check.exchange(check_none) == check_awaited) {
    sys::futex_wake(task.check, 1);
  }
}

/// Until the child of its last launch is no longer on this task's stack. The checking task
/// does not wake it for that, which would take a processor from the monitor, unless there is
/// more to do.
void Launcher::await_check(Task& task) {
  const std::uint64_t until = monotonic_ns() + settle_ns;
  while (task.check != check_none) {
    const std::uint32_t seen = work_.count();
    bool is_wanted = false;
    {
      TaskLock lock(mutex_);
      is_wanted = queue_.first != nullptr || stopping_;
    }
    if (is_wanted) {
      work_.wake_one(); // another one may be free
      std::uint32_t pending = check_pending;
      task.check.compare_exchange_strong(pending, check_awaited);
      sys::futex_wait(task.check, check_awaited, settle_ns);
    } else {
      work_.wait_for(seen, settle_ns);
    }
    if (monotonic_ns() >= until) {
      // Of a monitor that says nothing, is given up, or takes its time.
      see_through(task);
    }
  }
}

// ---- Pools, and what is done ---------------------------------------------------

/// Fills the pools, one namespace at a time, and sees to the launches that want the
/// host's mounts: it is the one task that still has them.
void Launcher::fill_task(Task& task) {
  filler_ = call(__NR_gettid);
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
    sys::tell_eventfd(done_event_.get());
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

} // namespace casemate::jail
