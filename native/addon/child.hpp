#pragma once

#include "addon/cgroup.hpp"
#include "addon/poll.hpp"
#include "sys/fd.hpp"

#include <memory>
#include <napi.h>
#include <vector>

namespace casemate::addon {

/// A process that the launcher started: its pidfd, our end of its control socket
/// where it has one, and the descriptors that were made for it and wait to be
/// taken.
class Child : public Napi::ObjectWrap<Child> {
public:
  /// Owns the process: whoever lets go of it before it was reaped kills it. That is what
  /// happens where an environment ends first, be it between a launch and its callback.
  struct Parts {
    long pid = -1;
    sys::Fd pidfd; // until it has been reaped
    sys::Fd control;
    std::vector<std::pair<std::uint32_t, sys::Fd>> others; // by slot
    Cgroup cgroup;                                         // made for it, where it has limits

    Parts() = default;
    Parts(Parts&&) = default;
    Parts& operator=(Parts&&) = delete;
    ~Parts();
  };

  static Napi::Function define(Napi::Env env);
  static Napi::Object create(Napi::Env env, Napi::Function constructor, Parts parts);

  explicit Child(const Napi::CallbackInfo& info);

  /// Our end of a socket pair of the plan; none where it was taken already.
  sys::Fd take(std::uint32_t slot);

private:
  static Parts parts_of(const Napi::CallbackInfo& info);

  Napi::Value pid(const Napi::CallbackInfo& info);
  void watch(const Napi::CallbackInfo& info);
  void send(const Napi::CallbackInfo& info);
  void kill(const Napi::CallbackInfo& info);
  void keep_alive(const Napi::CallbackInfo& info);
  Napi::Value take_descriptor(const Napi::CallbackInfo& info);
  Napi::Value cgroup_file(const Napi::CallbackInfo& info);

  void on_control();
  void on_end();
  void drain_control();

  Parts parts_;
  // After the descriptors they watch, so that they end before them.
  std::unique_ptr<Poll> control_poll_;
  std::unique_ptr<Poll> end_poll_;
  Napi::FunctionReference on_message_;
  Napi::FunctionReference on_exit_;
};

} // namespace casemate::addon
