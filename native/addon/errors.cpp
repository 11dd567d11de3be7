#include "addon/errors.hpp"

#include <string>
#include <uv.h>

namespace casemate::addon {

Napi::Error system_error(Napi::Env env, sys::SysError error, const char* path) {
  // libuv's names and texts, so that these errors read like Node's own.
  char name[32];
  uv_err_name_r(-error.number, name, sizeof name);
  char text[128];
  uv_strerror_r(-error.number, text, sizeof text);
  std::string message = std::string(name) + ": " + text + ", " + error.call;
  if (path != nullptr) {
    message += std::string(" '") + path + "'";
  }
  Napi::Error result = Napi::Error::New(env, message);
  result.Set("errno", Napi::Number::New(env, -error.number));
  result.Set("code", Napi::String::New(env, name));
  result.Set("syscall", Napi::String::New(env, error.call));
  if (path != nullptr) {
    result.Set("path", Napi::String::New(env, path));
  }
  return result;
}

void throw_system_error(Napi::Env env, sys::SysError error, const char* path) {
  throw system_error(env, error, path);
}

} // namespace casemate::addon
