#pragma once

#include "addon/cgroup.hpp"
#include "addon/context.hpp"
#include "addon/flight.hpp"
#include "addon/watch.hpp"
#include "sys/fd.hpp"

#include <deque>
#include <memory>
#include <napi.h>
#include <vector>

namespace casemate::addon {

/// A process that the launcher is about to start: its pidfd, our end of its control socket
/// where it has one, and the descriptors that were made for it and wait to be taken. It
/// has these once its launch is done.
class Child : public Napi::ObjectWrap<Child> {
public:
  /// Owns the process: whoever lets go of it before it was reaped kills it. That is what
  /// happens where an environment ends first, be it between a launch and its callback.
  struct Parts {
    long pid = 0;
    bool watched = false; // by the launcher already
    std::uint32_t user_id = 0;
    std::vector<std::uint64_t> stamps; // of its launch, CLOCK_MONOTONIC ns
    sys::Fd pidfd;                     // until it has been reaped
    sys::Fd control;
    std::vector<std::pair<std::uint32_t, sys::Fd>> others; // by slot
    Cgroup cgroup;                                         // made for it, where it has limits

    Parts() = default;
    Parts(Parts&&) = default;
    Parts& operator=(Parts&&) = default;
    ~Parts();
    void unwatch(Watch& watch) const;
  };

  static Napi::Function define(Napi::Env env);
  static Napi::Object create(Napi::Env env, Napi::Function constructor, Flight& flight,
                             const std::shared_ptr<Watch>& watch);

  explicit Child(const Napi::CallbackInfo& info);
  ~Child() override;

  /// The launch is done: from now on its messages and its end are told. One that was
  /// cancelled when the launcher no longer looked is killed now.
  void settle(Parts parts, bool cancelled);
  /// Runs what tells of it.
  template <typename Callback> void run(const Callback& callback) { context_->run(callback); }
  /// The launch ends without being done, with its environment.
  void abandon() { flight_ = nullptr; }

  /// Our end of a socket pair of the plan; none where it was taken already.
  sys::Fd take(std::uint32_t slot);

  /// One message, with a descriptor where there is one. Where there is no room for it now it
  /// goes later, in its turn. Throws EPIPE where the process has hung up already.
  void send(Napi::Env env, Napi::Uint8Array bytes, sys::Fd descriptor);

private:
  Napi::Value pid(const Napi::CallbackInfo& info);
  Napi::Value user_id(const Napi::CallbackInfo& info);
  Napi::Value stamps(const Napi::CallbackInfo& info);
  void watch(const Napi::CallbackInfo& info);
  void send_bytes(const Napi::CallbackInfo& info);
  void kill(const Napi::CallbackInfo& info);
  Napi::Value take_descriptor(const Napi::CallbackInfo& info);
  Napi::Value cgroup_file(const Napi::CallbackInfo& info);

  void start_watching();
  sys::SysError watch_descriptors();
  void unwatch_control();
  void tell_end(const siginfo_t& info);
  void forget();
  struct Message {
    std::vector<std::uint8_t> bytes;
    sys::Fd descriptor;
  };

  void on_control();
  void on_end();
  void receive_messages(std::size_t most);
  void send_rest();
  long send_now(const Message& message);
  void await_room();

  std::shared_ptr<Watch> watch_;
  std::unique_ptr<Ears> ears_;
  Flight* flight_ = nullptr; // until settled
  Parts parts_;
  std::deque<Message> unsent_;
  std::unique_ptr<Context> context_; // of its launch
  Napi::FunctionReference on_message_;
  Napi::FunctionReference on_exit_;
};

} // namespace casemate::addon
