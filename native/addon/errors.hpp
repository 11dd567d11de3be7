#pragma once

#include "sys/result.hpp"

#include <napi.h>

namespace casemate::addon {

/// A Node-like system error: negative `errno`, `code` ('EACCES'), `syscall`, and
/// `path` where one was involved. TypeScript wraps it into a CasemateError.
Napi::Error system_error(Napi::Env env, sys::SysError error, const char* path = nullptr);

[[noreturn]] void throw_system_error(Napi::Env env, sys::SysError error,
                                     const char* path = nullptr);

/// Throws if there is an error.
inline void check(Napi::Env env, sys::SysError error, const char* path = nullptr) {
  if (error) {
    throw_system_error(env, error, path);
  }
}

/// The value of a result, or a thrown system error.
template <typename T> T take(Napi::Env env, sys::Result<T> result, const char* path = nullptr) {
  check(env, result.error(), path);
  return std::move(result).value();
}

} // namespace casemate::addon
