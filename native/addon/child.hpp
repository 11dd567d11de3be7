#pragma once

#include "addon/poll.hpp"
#include "sys/fd.hpp"

#include <memory>
#include <napi.h>
#include <vector>

namespace casemate::addon {

/// A process that the launcher started: its pidfd, our end of its control socket
/// where it has one, and the descriptors that were made for it and wait to be
/// taken. It is killed and reaped if its environment ends first.
class Child : public Napi::ObjectWrap<Child> {
public:
  struct Parts {
    long pid;
    sys::Fd pidfd;
    sys::Fd control;
    std::vector<std::pair<std::uint32_t, sys::Fd>> others; // by slot
  };

  static Napi::Function define(Napi::Env env);
  static Napi::Object create(Napi::Env env, Napi::Function constructor, Parts parts);

  explicit Child(const Napi::CallbackInfo& info);
  ~Child() override;

private:
  Napi::Value pid(const Napi::CallbackInfo& info);
  void watch(const Napi::CallbackInfo& info);
  void send(const Napi::CallbackInfo& info);
  void kill(const Napi::CallbackInfo& info);
  void keep_alive(const Napi::CallbackInfo& info);
  Napi::Value take_descriptor(const Napi::CallbackInfo& info);

  void on_control();
  void on_end();
  void drain_control();

  Parts parts_;
  bool reaped_ = false;
  // After the descriptors they watch, so that they end before them.
  std::unique_ptr<Poll> control_poll_;
  std::unique_ptr<Poll> end_poll_;
  Napi::FunctionReference on_message_;
  Napi::FunctionReference on_exit_;
};

} // namespace casemate::addon
