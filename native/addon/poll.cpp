#include "addon/poll.hpp"

#include "addon/errors.hpp"

#include <utility>

namespace casemate::addon {

struct Poll::Handle {
  uv_poll_t poll{};
  napi_env env;
  napi_async_context context = nullptr;
  napi_async_cleanup_hook_handle hook = nullptr;
  Callback callback;
  bool opened = false;
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
    if (!opened) {
      napi_remove_async_cleanup_hook(hook);
      delete this;
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
    Napi::Env env(self->env);
    Napi::HandleScope scope(env);
    // Within a callback scope promises that the callback settles run their
    // reactions when it ends, as for any callback of Node.
    napi_callback_scope callback_scope = nullptr;
    napi_value resource = Napi::Object::New(env);
    if (napi_open_callback_scope(env, resource, self->context, &callback_scope) != napi_ok) {
      return; // The environment no longer runs JavaScript.
    }
    // A copy: the callback may destroy the Poll it belongs to.
    Callback callback = self->callback;
    try {
      callback(status, events);
    } catch (const Napi::Error& error) {
      napi_fatal_exception(env, error.Value());
    }
    napi_close_callback_scope(env, callback_scope);
  }
};

Poll::Poll(Napi::Env env, const char* name, Callback callback)
    : handle_(new Handle(this, env, std::move(callback))) {
  handle_->poll.data = handle_;
  napi_async_init(env, nullptr, Napi::String::New(env, name), &handle_->context);
  napi_add_async_cleanup_hook(
      env, [](napi_async_cleanup_hook_handle, void* data) { static_cast<Handle*>(data)->close(); },
      handle_, &handle_->hook);
}

Poll::Poll(Napi::Env env, const char* name, int fd, Callback callback)
    : Poll(env, name, std::move(callback)) {
  open(fd);
}

void Poll::open(int fd) {
  if (handle_ == nullptr || handle_->closing) {
    return;
  }
  uv_loop_t* loop = nullptr;
  napi_get_uv_event_loop(handle_->env, &loop);
  int status = uv_poll_init(loop, &handle_->poll, fd);
  if (status != 0) {
    throw_system_error(Napi::Env(handle_->env), {"uv_poll_init", -status});
  }
  handle_->opened = true;
}

Poll::~Poll() {
  if (handle_ == nullptr) {
    return;
  }
  handle_->owner = nullptr;
  napi_async_destroy(handle_->env, handle_->context);
  handle_->close();
}

void Poll::start(int events) {
  if (handle_ != nullptr && handle_->opened && !handle_->closing) {
    uv_poll_start(&handle_->poll, events, Handle::on_event);
  }
}

void Poll::stop() {
  if (handle_ != nullptr && handle_->opened && !handle_->closing) {
    uv_poll_stop(&handle_->poll);
  }
}

void Poll::keep_alive(bool yes) {
  if (handle_ == nullptr || !handle_->opened) {
    return;
  }
  auto* handle = reinterpret_cast<uv_handle_t*>(&handle_->poll);
  yes ? uv_ref(handle) : uv_unref(handle);
}

} // namespace casemate::addon
