// What of JavaScript a callback belongs to.
#pragma once

#include <napi.h>

namespace casemate::addon {

/// Where it is made is where its callbacks belong to: their AsyncLocalStorage is the one that
/// was there, and async_hooks know them by its name.
class Context {
public:
  Context(Napi::Env env, const char* name) : env_(env) {
    napi_async_init(env, nullptr, Napi::String::New(env, name), &context_);
  }
  ~Context() { napi_async_destroy(env_, context_); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  /// Calls back as Node does: promises that the callback settles run their reactions when it
  /// ends, and what it throws is an uncaught exception. Not at all where the environment no
  /// longer runs JavaScript.
  template <typename Callback> void run(const Callback& callback) const {
    const Napi::Env env(env_);
    Napi::HandleScope scope(env);
    napi_callback_scope callback_scope = nullptr;
    if (napi_open_callback_scope(env, Napi::Object::New(env), context_, &callback_scope) !=
        napi_ok) {
      return;
    }
    try {
      callback();
    } catch (const Napi::Error& error) {
      napi_fatal_exception(env, error.Value());
    }
    napi_close_callback_scope(env, callback_scope);
  }

private:
  napi_env env_;
  napi_async_context context_ = nullptr;
};

} // namespace casemate::addon
