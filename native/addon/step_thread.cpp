// Steps of a plan on a thread of their own: setns(2), unshare(2) and mounts for
// programs that want a namespace rather than a process. The thread ends with its
// steps; what stays are descriptors of the namespaces it was in.
#include "addon/errors.hpp"
#include "addon/module.hpp"
#include "addon/poll.hpp"
#include "jail/process_state.hpp"
#include "jail/steps.hpp"
#include "sys/fd.hpp"
#include "sys/futex.hpp"

#include <fcntl.h>
#include <linux/sched.h>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace casemate::addon {

namespace {

using sys::call;

class StepThread {
public:
  StepThread(std::vector<std::byte> plan, std::vector<int> slots)
      : plan_(std::move(plan)), slots_(std::move(slots)) {}

  /// Ended and joined whatever happens, also with its environment.
  ~StepThread() {
    leave_.store(1, std::memory_order_release);
    sys::futex_wake(leave_, 1);
    if (thread_.joinable()) {
      thread_.join();
    }
    poll_.reset();
  }

  void start(Napi::Env env, std::vector<std::string> keep, Napi::Function callback,
             const std::shared_ptr<StepThread>& self) {
    long event = call(__NR_eventfd2, 0, O_CLOEXEC | O_NONBLOCK);
    check(env, sys::check("eventfd2", event));
    done_.reset(static_cast<int>(event));
    keep_ = std::move(keep);
    callback_ = Napi::Persistent(callback);
    poll_ = std::make_unique<Poll>(env, "casemate:steps", done_.get(), [self](int, int) {
      // The last owner: this object ends with the callback.
      self->finish();
    });
    poll_->start(UV_READABLE);
    jail::AllSignalsBlocked blocked;
    thread_ = std::thread([this] { run(); });
  }

private:
  void run() {
    tid_ = call(__NR_gettid);
    // A root and a working directory of its own: chdir and pivot_root would be
    // Node's otherwise, and unshare(CLONE_NEWNS) is refused.
    if (long result = call(__NR_unshare, CLONE_FS); result < 0) {
      report_.call = "unshare(CLONE_FS)";
      report_.error = static_cast<int>(-result);
    } else {
      jail::NotDumpable guard(true);
      jail::run_steps(jail::first_step(plan_.data()), jail::header(plan_.data()).child_steps,
                      slots_.data(), report_);
    }
    const std::uint64_t one = 1;
    call(__NR_write, done_.get(), &one, sizeof one);
    // Its namespaces are opened by way of its directory in /proc, so it stays until then.
    while (leave_.load(std::memory_order_acquire) == 0) {
      sys::futex_wait(leave_, 0);
    }
  }

  void finish() {
    std::unique_ptr<Poll> poll = std::move(poll_);
    Napi::Env env = callback_.Env();
    auto outcome = Napi::Object::New(env);
    outcome.Set("step", Napi::Number::New(env, report_.done));
    outcome.Set("error", env.Null());
    auto descriptors = Napi::Array::New(env);
    if (report_.error != 0) {
      outcome.Set("error", system_error(env, {report_.call, report_.error}).Value());
    } else {
      std::vector<sys::Fd> opened;
      for (const std::string& kind : keep_) {
        std::string path = "/proc/self/task/" + std::to_string(tid_) + "/ns/" + kind;
        long fd = call(__NR_open, path.c_str(), O_RDONLY | O_CLOEXEC);
        if (fd < 0) {
          outcome.Set("error", system_error(env, sys::check("open", fd), path.c_str()).Value());
          break;
        }
        opened.emplace_back(static_cast<int>(fd));
      }
      if (opened.size() == keep_.size()) {
        for (sys::Fd& fd : opened) {
          descriptors.Set(descriptors.Length(), Napi::Number::New(env, fd.release()));
        }
      }
    }
    outcome.Set("descriptors", descriptors);
    callback_.Call({outcome});
  }

  std::vector<std::byte> plan_;
  std::vector<int> slots_;
  std::vector<std::string> keep_;
  jail::StepReport report_;
  sys::Fd done_;
  std::atomic<std::uint32_t> leave_{0};
  long tid_ = 0;
  std::thread thread_;
  Napi::FunctionReference callback_;
  std::unique_ptr<Poll> poll_;
};

/// runSteps(plan, descriptors, keep, callback({ step, error, descriptors })): `keep` are
/// names of /proc/<pid>/ns.
void run_steps(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto bytes = info[0].As<Napi::Uint8Array>();
  auto* data = reinterpret_cast<const std::byte*>(bytes.Data());
  std::vector<std::byte> plan(data, data + bytes.ByteLength());
  auto given = info[1].As<Napi::Array>();
  if (jail::PlanFault fault = jail::check_plan(plan, given.Length())) {
    throw Napi::RangeError::New(env, std::string("invalid plan: ") + fault.reason);
  }
  if (jail::header(plan.data()).launcher_steps != 0) {
    throw Napi::RangeError::New(env, "invalid plan: launcher steps without a launch");
  }
  std::vector<int> slots(CASEMATE_SLOTS, -1);
  for (std::uint32_t i = 0; i < given.Length(); ++i) {
    slots[i] = given.Get(i).As<Napi::Number>().Int32Value();
  }
  std::vector<std::string> keep;
  auto names = info[2].As<Napi::Array>();
  for (std::uint32_t i = 0; i < names.Length(); ++i) {
    keep.push_back(names.Get(i).As<Napi::String>());
  }
  auto thread = std::make_shared<StepThread>(std::move(plan), std::move(slots));
  thread->start(env, std::move(keep), info[3].As<Napi::Function>(), thread);
}

} // namespace

void init_step_thread(Napi::Env env, Napi::Object exports) {
  exports.Set("runSteps", Napi::Function::New(env, run_steps, "runSteps"));
}

} // namespace casemate::addon
