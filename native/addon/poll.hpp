// A kernel descriptor watched on the environment's own event loop.
//
// The addon hears of everything (a control socket, a pidfd, a thread's eventfd)
// this way and never through a thread-safe function: those abort or crash Node
// when a worker is terminated while a thread still holds one.
#pragma once

#include <functional>
#include <napi.h>
#include <uv.h>

namespace casemate::addon {

class Poll {
public:
  /// `events`: UV_READABLE and the like; `status`: 0 or a negative errno.
  using Callback = std::function<void(int status, int events)>;

  /// Watches nothing until start(). `fd` stays the caller's and must stay open until this
  /// object is gone. Its callbacks are run in a Context of this name.
  Poll(Napi::Env env, const char* name, int fd, Callback callback);
  /// The same, for one that opens the contexts of those whom it calls itself.
  Poll(Napi::Env env, int fd, Callback callback);
  ~Poll();
  Poll(const Poll&) = delete;
  Poll& operator=(const Poll&) = delete;

  void start(int events);
  void stop();
  /// Whether watching keeps the event loop alive (it does unless told otherwise).
  void keep_alive(bool yes);

private:
  struct Handle;
  Handle* handle_; // Outlives this object until libuv has closed it; null once the environment has.
};

} // namespace casemate::addon
