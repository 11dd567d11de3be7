#include "addon/poll.hpp"

#include "addon/context.hpp"
#include "addon/errors.hpp"

#include <utility>

namespace casemate::addon {

struct Poll::Handle {
  uv_poll_t poll{};
  napi_env env;
  napi_async_cleanup_hook_handle hook = nullptr;
  Callback callback;
  bool closing = false;
  Poll* owner; // Whoever ends first, the Poll or the environment, tells the other.

  Handle(Poll* poll_owner, napi_env the_env, Callback the_callback)
      : env(the_env), callback(std::move(the_callback)), owner(poll_owner) {}
  ~Handle() {
    if (owner != nullptr) {
      owner->handle_ = nullptr;
    }
  }

  void close() {
    if (std::exchange(closing, true)) {
      return;
    }
    // libuv forgets the descriptor here and now; only the memory waits.
    uv_close(reinterpret_cast<uv_handle_t*>(&poll), [](uv_handle_t* handle) {
      auto* self = static_cast<Handle*>(handle->data);
      // Last: an environment that is being torn down waits for this.
      napi_remove_async_cleanup_hook(self->hook);
      delete self;
    });
  }

  static void on_event(uv_poll_t* poll, int status, int events) {
    auto* self = static_cast<Handle*>(poll->data);
    Napi::HandleScope scope(self->env);
    // A copy: the callback may destroy the Poll it belongs to.
    Callback callback = self->callback;
    callback(status, events);
  }
};

Poll::Poll(Napi::Env env, const char* name, int fd, Callback callback)
    : Poll(env, fd,
           [context = std::make_shared<Context>(env, name), callback = std::move(callback)](
               int status, int events) { context->run([&] { callback(status, events); }); }) {}

Poll::Poll(Napi::Env env, int fd, Callback callback) {
  auto handle = std::make_unique<Handle>(this, env, std::move(callback));
  uv_loop_t* loop = nullptr;
  napi_get_uv_event_loop(env, &loop);
  if (int status = uv_poll_init(loop, &handle->poll, fd); status != 0) {
    handle->owner = nullptr;
    throw_system_error(env, {"uv_poll_init", -status});
  }
  handle_ = handle.release();
  handle_->poll.data = handle_;
  napi_add_async_cleanup_hook(
      env, [](napi_async_cleanup_hook_handle, void* data) { static_cast<Handle*>(data)->close(); },
      handle_, &handle_->hook);
}

Poll::~Poll() {
  if (handle_ == nullptr) {
    return;
  }
  handle_->owner = nullptr;
  handle_->close();
}

void Poll::start(int events) {
  if (handle_ != nullptr && !handle_->closing) {
    uv_poll_start(&handle_->poll, events, Handle::on_event);
  }
}

void Poll::stop() {
  if (handle_ != nullptr && !handle_->closing) {
    uv_poll_stop(&handle_->poll);
  }
}

void Poll::keep_alive(bool yes) {
  if (handle_ == nullptr) {
    return;
  }
  auto* handle = reinterpret_cast<uv_handle_t*>(&handle_->poll);
  yes ? uv_ref(handle) : uv_unref(handle);
}

} // namespace casemate::addon
