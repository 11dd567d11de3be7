#pragma once

#include "sys/fd.hpp"

#include <napi.h>

namespace casemate::addon {

/// A file that a launch is given: owned by its object from the call that opens it, so
/// that a worker which is terminated between that call and the launch leaves nothing open.
class File : public Napi::ObjectWrap<File> {
public:
  static Napi::Function define(Napi::Env env);

  explicit File(const Napi::CallbackInfo& info);

  sys::Fd take() { return std::move(fd_); }

private:
  void open(Napi::Env env, const std::string& path, int flags);
  void open_disk(Napi::Env env, const Napi::Value& source, bool is_writable);
  void note_size(Napi::Env env, const char* path);
  Napi::Value size(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);

  sys::Fd fd_;
  double size_ = -1;
};

} // namespace casemate::addon
