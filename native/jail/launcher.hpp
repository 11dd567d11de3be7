// The launcher: tasks of our own that turn a checked plan into a jailed process.
//
// One launcher belongs to one JavaScript environment and ends with it. It has a
// few launch tasks, which live in a prepared mount namespace, one that checks the
// monitors that these have started, and one that keeps the pools of namespaces
// full. A task is a thread where the caller is root; a rootless caller's tasks are
// processes that share our memory and descriptors, for a thread cannot enter a user
// namespace. Both run the same code, raw system calls only: launcher.cpp what the
// tasks are and what they wait for, launch.cpp what becomes of one launch.
#pragma once

#include "jail/host.hpp"
#include "jail/namespaces.hpp"
#include "jail/process_state.hpp"
#include "jail/readback.hpp"
#include "jail/steps.hpp"
#include "sys/fd.hpp"
#include "sys/futex.hpp"
#include "sys/mapping.hpp"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <sys/socket.h>
#include <thread>
#include <vector>

namespace casemate::jail {

/// Where a launch failed.
enum class Stage : std::uint32_t {
  none = 0,
  prepare = 1,  // the launcher's own namespaces
  launcher = 2, // a launcher step of the plan; report.done is its index
  clone = 3,
  child = 4,   // a child step; report.done is its index
  monitor = 5, // the monitor ended, or spoke of a failure, before it was ready
  check = 6,   // the read-back differed
};

/// Moments of a launch, CLOCK_MONOTONIC ns.
enum Moment : std::uint32_t {
  moment_submitted,
  moment_taken,    // by a launch task
  moment_prepared, // launcher steps done
  moment_cloned,   // clone3 returned; 0 where that was before the child's execve
  moment_jailed,   // the monitor said so
  moment_checked,  // its state was read back and compared
  moment_released, // it was told to run
  moment_count,
};

/// One launch. The submitter fills the first part and keeps it alive until done.
struct Launch {
  std::span<const std::byte> plan; // checked
  int slots[CASEMATE_SLOTS];       // given descriptors first, -1 elsewhere
  std::size_t given = 0;
  /// For a monitor: the slot of our end of its control socket, what is written there
  /// before it is born, the first message that it must answer with once it has given
  /// up its own rights, and what releases it when those have been checked from here.
  /// Without a control slot: a plain program, whose launch ends with its execve.
  std::uint32_t control_slot = CASEMATE_NO_SLOT;
  std::span<const std::byte> configuration;
  std::span<const std::byte> announcement;
  std::span<const std::byte> release;
  bool in_host_mounts = false; // sees the host's mounts instead of the prepared two
  /// A program of one thread, with few descriptors: what is gained by where it is born, and
  /// by the table that it gets, costs it nothing later.
  bool is_lean = false;
  std::uint64_t deadline = 0; // CLOCK_MONOTONIC ns, for the monitor to be jailed
  /// SELinux label for the steps of the plan that have none; NUL-terminated.
  std::string_view label;
  std::atomic<bool> cancelled{false}; // by cancel()
  // What the epoll instance is to say of a monitor's messages, and of its end.
  std::uint64_t message_tag = 0;
  std::uint64_t end_tag = 0;

  // The outcome.
  Stage failed = Stage::none;
  bool watched = false; // our end of its control socket, and its pidfd, by the epoll instance
  sys::SysError error{};
  const char* mismatch = nullptr;
  long pid = -1;
  int pidfd = -1;
  std::uint32_t user_id = 0; // of the monitor, as the launcher sees it
  std::uint64_t moments[moment_count] = {};
  std::uint64_t launcher_stamps[CASEMATE_PLAN_MAX_STEPS] = {};
  StepReport report;
  std::byte event[128]; // the monitor's message, where it was not the expected one
  std::size_t event_size = 0;

  Launch* next = nullptr;
};

struct LauncherOptions {
  std::uint32_t tasks = 2;
  std::uint32_t pooled = 8; // namespaces of each kind kept ready, 0 for none
  int epoll = -1;           // told of launches that are done, with this tag
  std::uint64_t done_tag = 0;
};

class Launcher {
public:
  Launcher(std::unique_ptr<Host> host, LauncherOptions options);
  ~Launcher(); // waits for the launches under way; their monitors are then killed by the kernel
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  /// Starts the tasks.
  sys::SysError start();
  /// A launch is about to be submitted: a task wakes up meanwhile, and waits for it awake.
  void expect_launch();
  void submit(Launch* launch);
  /// Gives up one that may be under way still. It is done soon, with a process that is to be
  /// killed, or none.
  void cancel(Launch& launch);
  /// The launches done since the last call, oldest first. The epoll instance tells of all but
  /// a monitor that was launched well: of that one by what it sends, or by its end.
  Launch* take_done();
  /// done_tag was told.
  void heard();
  /// How many namespaces wait in each pool.
  struct Ready {
    std::uint32_t network;
    std::uint32_t user;
    bool sockets; // whether all of them wait
  };
  Ready ready();

private:
  /// Socket pairs that wait for launches.
  struct SocketPool {
    std::uint32_t type = 0;
    std::uint32_t capacity = 0; // at most that of `pairs`
    std::array<std::array<int, 2>, 4> pairs;
    std::uint32_t ready = 0;
  };
  static bool is_short(const SocketPool& pool) { return pool.ready < pool.capacity; }

  static constexpr std::size_t stack_size = 64 * 1024;
  static constexpr std::uint32_t max_pooled = 256;
  static constexpr unsigned no_processor = ~0u;

  /// Of a launch that was handed over.
  enum Check : std::uint32_t { check_none, check_pending, check_awaited };

  /// As sched_setaffinity(2) has them.
  struct Processors {
    std::array<std::uint64_t, 16> mask{}; // 1024 of them; a kernel for more says EINVAL
    std::size_t size = 0;                 // in bytes, of what is known
    Processors without(unsigned processor) const;
    bool operator==(const Processors&) const = default;
  };

  struct Task {
    Launcher* launcher = nullptr;
    void (Launcher::*body)(Task&) = nullptr;
    std::thread thread;       // root
    long pid = -1;            // rootless
    sys::Mapping own_stack;   // rootless: the task's
    sys::Mapping child_stack; // of what it clones
    std::atomic<std::uint32_t> entered{0};
    sys::SysError error{};       // why it could not enter the launchers' user namespace
    bool used_pools = false;     // since they were last to be filled again
    bool labels_exec = false;    // what it starts gets the label of its launch
    bool labels_sockets = false; // and so do sockets, which are then made for that launch
    // Of the child that it makes, for as long as that shares our memory.
    Launch* launch = nullptr;
    int slots[CASEMATE_SLOTS]; // ours change when we close what it has its own copies of
    // Its descriptors, where it can share Node's table at first: numbers that this task keeps
    // taken. All that a child is to have lies below `parking_end` then, and it copies no more of
    // the table than that, however many descriptors Node has open.
    std::array<sys::Fd, 12> parking;
    unsigned parking_end = 0; // 0 where they could not be had
    std::size_t parked = 0;
    bool shares_table = false; // the child, at first
    std::atomic<bool> has_own_table{false};
    std::optional<NotDumpable> not_dumpable;
    Expected expected; // of its monitor
    // A launch whose monitor is the checking task's to wait for, until that or this one takes
    // it; and for how long this one, which owns the child's stack, has to wait for its end.
    std::atomic<Launch*> handed_over{nullptr};
    std::atomic<std::uint32_t> check{check_none};
    Processors allowed; // to it, and to monitors once they are jailed
    Processors others;  // than Node's, where it keeps to those
    std::span<std::byte> stack() const { return {child_stack.data(), child_stack.size()}; }
  };

  struct Queue {
    Launch* first = nullptr;
    Launch* last = nullptr;
    void push(Launch* launch);
    Launch* pop();
  };

  sys::SysError start_task(void (Launcher::*body)(Task&));
  static void enter_as_process(void* task);
  void reserve_parking(Task& task) const;
  void launch_task(Task& task);
  bool wait_awake(std::uint32_t seen);
  void sleep_elsewhere(Task& task, std::uint32_t seen);
  void roam(Task& task);
  void fill_task(Task& task);
  void check_task(Task& task);
  bool hand_over(Launch& launch, Task& task);
  void keep_checker_off(const Task& task);
  void await_check(Task& task);
  void see_through(Task& task);

  void run(Launch& launch, Task& task);
  bool start_process(Launch& launch, Task& task);
  void conclude(Launch& launch, Task& task, bool launched);
  bool run_launcher_steps(Launch& launch, Task& task);
  sys::SysError run_launcher_step(const casemate_step* step, Launch& launch, Task& task);
  sys::SysError clear_labels(Task& task);
  bool send_configuration(Launch& launch);
  static void run_child(void* task);
  bool sleeps_until_exec(const Launch& launch) const;
  bool park(const Launch& launch, Task& task) const;
  void vacate(Task& task) const;
  bool clone(Launch& launch, Task& task);
  bool await_monitor(Launch& launch, Task& task);
  bool receive_announcement(Launch& launch, Task& task);
  sys::SysError take_socket_pair(const casemate_socket_pair& pair, const Task& task,
                                 int (&ends)[2]);
  bool make_socket_pair(SocketPool& pool);
  void finish(Launch* launch);
  bool watch(const Launch& launch);
  void refill_below_half(std::uint32_t left);

  sys::Result<UserNamespace> take_user_namespace(Task& task);
  sys::Result<int> take_network_namespace(Task& task);

  std::unique_ptr<Host> host_;
  LauncherOptions options_;
  long process_ = sys::call(__NR_getpid); // Node's
  sys::Fd done_event_;
  sys::Fd handed_over_;              // epoll: control sockets of launches handed over, and
  sys::Fd stop_checking_;            // an eventfd
  std::atomic<long> checker_{0};     // thread id
  std::atomic<long> filler_{0};      // likewise: of a task whose processors nobody here changes
  std::atomic<bool> may_move_{true}; // monitors to other processors; SELinux may deny it
  std::atomic<unsigned> checker_off_{no_processor};
  std::vector<std::unique_ptr<Task>> tasks_;

  sys::TaskMutex mutex_; // guards all below
  // Each wakes as few as it must: every task that wakes during a launch takes a
  // processor from Node, from the monitor, or from the kernel's work for it.
  sys::Changed work_;                            // for launch tasks
  sys::Changed fill_;                            // for the task that fills the pools
  std::atomic<std::uint64_t> expected_until_{0}; // CLOCK_MONOTONIC ns
  std::atomic<std::uint32_t> awake_{0};          // tasks that wait for a launch awake
  std::atomic<unsigned> node_cpu_{0};            // where Node was when it last launched
  bool stopping_ = false;
  Queue queue_;      // for tasks in the prepared mount namespace
  Queue host_queue_; // for the task in the host's
  Queue done_;
  std::array<UserNamespace, max_pooled> user_pool_;
  std::array<int, max_pooled> network_pool_;
  std::uint32_t user_ready_ = 0;
  std::uint32_t network_ready_ = 0;
  // What two monitors have: consoles and control sockets.
  std::array<SocketPool, 2> socket_pools_{{{SOCK_STREAM, 4, {}, 0}, {SOCK_SEQPACKET, 2, {}, 0}}};
};

} // namespace casemate::jail
