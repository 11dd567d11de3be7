// The launcher as JavaScript sees it. Plans arrive encoded (src/jail/encode.ts) and
// are checked here, before anything exists; outcomes leave as numbers and buffers.
#include "addon/cgroup.hpp"
#include "addon/child.hpp"
#include "addon/errors.hpp"
#include "addon/file.hpp"
#include "addon/flight.hpp"
#include "addon/module.hpp"
#include "addon/plan.hpp"
#include "addon/stream.hpp"
#include "addon/watch.hpp"
#include "jail/clock.hpp"
#include "jail/landlock.hpp"
#include "jail/launcher.hpp"
#include "jail/process_state.hpp"
#include "jail/seccomp.hpp"

#include <cstring>
#include <fcntl.h>
#include <list>
#include <string>
#include <vector>

namespace casemate::addon {

namespace {

using jail::Launch;

class LauncherObject : public Napi::ObjectWrap<LauncherObject> {
public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Launcher",
                       {InstanceMethod<&LauncherObject::expect>("expect"),
                        InstanceMethod<&LauncherObject::launch>("launch"),
                        InstanceMethod<&LauncherObject::ready>("ready")});
  }

  /// new Launcher({ monitor, leases, rootless, uid, gid, firstUserId, userIds, tasks, pooled, Child
  /// })
  explicit LauncherObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<LauncherObject>(info) {
    Napi::Env env = info.Env();
    auto options = info[0].As<Napi::Object>();
    auto number = [&](const char* name) {
      return options.Get(name).As<Napi::Number>().Uint32Value();
    };
    child_ = Napi::Persistent(options.Get("Child").As<Napi::Function>());
    monitor_ = options.Get("monitor").As<Napi::String>();
    auto host = std::make_unique<jail::Host>();
    check(env, host->open_proc());
    check(env, host->open_dev());
    host->monitor = monitor_.c_str();
    host->rootless = options.Get("rootless").As<Napi::Boolean>();
    host->uid = number("uid");
    host->gid = number("gid");
    host->first_user_id = number("firstUserId");
    host->user_ids = number("userIds");
    // Not always from the first one on, or every process would try the same ids first.
    host->next_user_id = static_cast<std::uint32_t>(sys::call(__NR_getpid)) * 97;
    if (!host->rootless) {
      std::string leases = options.Get("leases").As<Napi::String>();
      long fd =
          sys::call(__NR_open, leases.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
      check(env, sys::check("open", fd), leases.c_str());
      host->leases.reset(static_cast<int>(fd));
    }
    watch_ = take(env, Watch::create([this] { return collect(); }));
    launcher_ = std::make_unique<jail::Launcher>(
        std::move(host), jail::LauncherOptions{number("tasks"), number("pooled"), watch_->fd(),
                                               Watch::tag(on_told_)});
    check(env, launcher_->start());
    watch_->start(env);
  }

  ~LauncherObject() override {
    if (watch_ != nullptr) {
      watch_->stop();
    }
    for (auto& flight : flights_) {
      flight.launch.cancelled = true;
    }
    launcher_.reset(); // waits for the tasks
    for (auto& flight : flights_) {
      if (flight.child != nullptr) {
        flight.child->abandon();
      }
      take_parts(flight); // that nobody asks for any more, and so they end here
    }
  }

private:
  /// expect(): launch() is about to be called.
  void expect(const Napi::CallbackInfo&) {
    if (flights_.empty()) { // or they are awake
      launcher_->expect_launch();
    }
  }

  /// launch(plan, descriptors, configuration, timeout, onDone(outcome), cgroup?, label?): its
  /// Child.
  /// The configuration is what a program with a control socket finds there; the timeout, in
  /// milliseconds, is for its announcement; a cgroup made for it is taken. Such a program's
  /// success is not told, but its messages are from then on: what Node would do when it heard
  /// of it would delay the monitor, which is setting up its VM.
  Napi::Value launch(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    std::list<Flight> one;
    one.splice(one.end(), spare_);
    if (one.empty()) {
      one.emplace_back(*launcher_);
    }
    Flight& flight = one.front();
    Launch& launch = flight.launch;
    flight.plan = Plan::Unwrap(info[0].As<Napi::Object>())->contents();
    const Plan::Contents& plan = *flight.plan;
    launch.plan = plan.bytes;
    launch.given = plan.given;
    launch.in_host_mounts = plan.in_host_mounts;
    launch.is_lean = plan.is_lean;
    launch.control_slot = plan.control_slot;
    launch.announcement = plan.announcement;
    launch.release = plan.release;
    auto descriptors = info[1].As<Napi::Array>();
    std::fill(std::begin(launch.slots), std::end(launch.slots), -1);
    for (std::uint32_t i = 0; i < plan.given; ++i) {
      launch.slots[i] = plan.lasting[i];
      if (launch.slots[i] < 0) {
        flight.given.push_back(given(descriptors.Get(i)));
        launch.slots[i] = flight.given.back().get();
      }
    }
    flight.configuration = copy_of(info[2]);
    launch.configuration = flight.configuration;
    launch.deadline =
        jail::monotonic_ns() + info[3].As<Napi::Number>().Uint32Value() * std::uint64_t{1'000'000};
    if (info[6].IsString()) {
      flight.label = info[6].As<Napi::String>();
      launch.label = flight.label;
    }
    if (info[5].IsObject()) {
      flight.cgroup = CgroupObject::Unwrap(info[5].As<Napi::Object>())->take();
    }
    flights_.splice(flights_.end(), one);
    launcher_->submit(&launch);
    // All that is left is done while the launcher is at work: what JavaScript has of it, and a
    // part of the next launch.
    if (flights_.size() == 1) {
      watch_->hold();
      Ref();
    }
    try {
      flight.on_done = Napi::Persistent(info[4].As<Napi::Function>());
      Napi::Object child = Child::create(env, child_.Value(), flight, watch_);
      flight.child_value = Napi::Persistent(child);
      spare_.emplace_back(*launcher_);
      return child;
    } catch (const Napi::Error&) {
      launcher_->cancel(launch);
      throw;
    }
  }

  /// A file of a launch's own, or a copy of a descriptor: the caller may close his, and its
  /// number be given to another file, before the child has taken it over. One that cannot
  /// be copied, whose number is then the negative errno, fails in the step that needs it,
  /// which can say what it was for.
  static sys::Fd given(const Napi::Value& value) {
    if (value.IsObject()) {
      return File::Unwrap(value.As<Napi::Object>())->take();
    }
    int number = value.As<Napi::Number>();
    return sys::Fd(static_cast<int>(sys::call(__NR_fcntl, number, F_DUPFD_CLOEXEC, 3)));
  }

  /// ready(): how many namespaces wait in each pool, and whether all sockets do.
  Napi::Value ready(const Napi::CallbackInfo& info) {
    auto ready = launcher_->ready();
    auto result = Napi::Object::New(info.Env());
    result.Set("network", Napi::Number::New(info.Env(), ready.network));
    result.Set("user", Napi::Number::New(info.Env(), ready.user));
    result.Set("sockets", Napi::Boolean::New(info.Env(), ready.sockets));
    return result;
  }

  /// What the launcher has done since; false where that is nothing.
  bool collect() {
    Launch* const first = launcher_->take_done();
    for (Launch* launch = first; launch != nullptr;) {
      Launch* next = launch->next;
      auto at = std::find_if(flights_.begin(), flights_.end(),
                             [&](const auto& flight) { return &flight.launch == launch; });
      std::list<Flight> one;
      one.splice(one.end(), flights_, at);
      if (flights_.empty()) {
        watch_->let_go();
        Unref();
      }
      finish(one.front());
      launch = next;
    }
    return first != nullptr;
  }

  void finish(Flight& flight) {
    Napi::HandleScope scope(Env());
    const Launch& launch = flight.launch;
    if (flight.child == nullptr) {
      // JavaScript has none, and so what was launched ends here.
      const Child::Parts parts = take_parts(flight);
      return parts.unwatch(*watch_);
    }
    flight.child->settle(take_parts(flight), launch.cancelled);
    if (launch.failed == jail::Stage::none && launch.control_slot != CASEMATE_NO_SLOT) {
      return;
    }
    flight.child->run([&] { flight.on_done.Call({outcome(launch)}); });
  }

  Napi::Object outcome(const Launch& launch) {
    Napi::Env env = Env();
    auto result = Napi::Object::New(env);
    result.Set("stage", Napi::Number::New(env, static_cast<std::uint32_t>(launch.failed)));
    if (launch.failed != jail::Stage::none) {
      result.Set("step", Napi::Number::New(env, launch.report.done));
      result.Set("event", Napi::Buffer<std::byte>::Copy(env, launch.event, launch.event_size));
    }
    if (launch.error) {
      result.Set("error", system_error(env, launch.error).Value());
    }
    if (launch.mismatch != nullptr) {
      result.Set("mismatch", Napi::String::New(env, launch.mismatch));
    }
    return result;
  }

  /// What a launch has made: its process, and our ends of its sockets.
  static Child::Parts take_parts(Flight& flight) {
    Launch& launch = flight.launch;
    Child::Parts parts;
    if (launch.pidfd >= 0) {
      parts.cgroup = std::move(flight.cgroup);
    }
    parts.pid = std::max(launch.pid, 0L);
    parts.watched = launch.watched;
    parts.user_id = launch.user_id;
    parts.stamps = stamps(launch);
    parts.pidfd.reset(std::exchange(launch.pidfd, -1));
    for (std::uint32_t slot = launch.given; slot < CASEMATE_SLOTS; ++slot) {
      sys::Fd fd(std::exchange(launch.slots[slot], -1));
      if (fd && slot == launch.control_slot) {
        parts.control = std::move(fd);
      } else if (fd) {
        parts.others.emplace_back(slot, std::move(fd));
      }
    }
    return parts;
  }

  /// The moments, the child's start, then the steps' ends in the order of the plan.
  static std::vector<std::uint64_t> stamps(const Launch& launch) {
    const casemate_plan& plan = jail::header(launch.plan.data());
    std::vector<std::uint64_t> all(std::begin(launch.moments), std::end(launch.moments));
    all.push_back(launch.report.started);
    all.insert(all.end(), launch.launcher_stamps, launch.launcher_stamps + plan.launcher_steps);
    all.insert(all.end(), launch.report.stamps, launch.report.stamps + plan.child_steps);
    return all;
  }

  std::string monitor_;
  Napi::FunctionReference child_;
  std::list<Flight> flights_;
  std::list<Flight> spare_; // one, or none: that of the next launch
  std::unique_ptr<jail::Launcher> launcher_;
  std::shared_ptr<Watch> watch_;
  Watch::Source on_told_{[this] {
    launcher_->heard();
    collect();
  }};
};

/// compileSeccomp([[number], [number, argument, ...values]...], refused): a program, or null.
Napi::Value compile_seccomp(const Napi::CallbackInfo& info) {
  auto list = info[0].As<Napi::Array>();
  std::vector<std::vector<std::uint32_t>> numbers(list.Length());
  std::vector<jail::seccomp::Rule> rules;
  for (std::uint32_t i = 0; i < list.Length(); ++i) {
    auto rule = list.Get(i).As<Napi::Array>();
    for (std::uint32_t j = 0; j < rule.Length(); ++j) {
      numbers[i].push_back(rule.Get(j).As<Napi::Number>());
    }
    std::span<const std::uint32_t> values(numbers[i]);
    rules.push_back(values.size() < 2
                        ? jail::seccomp::Rule{values[0]}
                        : jail::seccomp::Rule{values[0], values[1], values.subspan(2)});
  }
  std::vector<sock_filter> program(BPF_MAXINSNS);
  std::size_t size = jail::seccomp::compile(rules, info[1].As<Napi::Number>(), program);
  if (size == 0) {
    return info.Env().Null();
  }
  return Napi::Buffer<std::uint8_t>::Copy(info.Env(),
                                          reinterpret_cast<const std::uint8_t*>(program.data()),
                                          size * sizeof(sock_filter));
}

/// makeUserNamespace(uidMap, gidMap, denySetgroups, forbidNamespaces): a descriptor.
Napi::Value make_user_namespace(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  jail::Host host;
  check(env, host.open_proc());
  auto stack =
      take(env, sys::Mapping::map(64 * 1024, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS));
  std::string users = info[0].As<Napi::String>();
  std::string groups = info[1].As<Napi::String>();
  jail::UserMaps maps{users, groups, info[2].ToBoolean(), info[3].ToBoolean()};
  sys::TaskLock lock(jail::NotDumpable::mutex()); // the maps are ours to write only while dumpable
  int fd =
      take(env, jail::make_user_namespace(host.proc.get(), maps, {stack.data(), stack.size()}));
  return Napi::Number::New(env, fd);
}

Napi::Value landlock_abi(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), jail::landlock_abi());
}

} // namespace

void init_jail(Napi::Env env, Napi::Object exports) {
  exports.Set("Launcher", LauncherObject::define(env));
  exports.Set("Cgroup", CgroupObject::define(env));
  exports.Set("Child", Child::define(env));
  exports.Set("File", File::define(env));
  exports.Set("Plan", Plan::define(env));
  exports.Set("Stream", Stream::define(env));
  exports.Set("makeUserNamespace", Napi::Function::New(env, make_user_namespace));
  exports.Set("compileSeccomp", Napi::Function::New(env, compile_seccomp));
  exports.Set("landlockAbi", Napi::Function::New(env, landlock_abi));
}

} // namespace casemate::addon
