#pragma once

#include "sys/fd.hpp"
#include "sys/result.hpp"

#include <napi.h>
#include <string>

namespace casemate::addon {

/// A cgroup of version 2, made for one process and removed with this object: by whoever owns the
/// process, once that has been reaped. Used by descriptors only. cgroups(7)
class Cgroup {
public:
  Cgroup() = default;
  Cgroup(Cgroup&&) = default;
  Cgroup& operator=(Cgroup&& other) noexcept {
    remove();
    parent_ = std::move(other.parent_);
    directory_ = std::move(other.directory_);
    name_ = std::move(other.name_);
    return *this;
  }
  ~Cgroup() { remove(); }

  /// Makes `name` in the directory `parent`, which stays the caller's.
  sys::SysError make(int parent, std::string name);
  explicit operator bool() const { return static_cast<bool>(directory_); }
  int fd() const { return directory_.get(); }

  sys::SysError write(const std::string& file, const std::string& text);
  sys::Result<std::string> read(const std::string& file) const;
  void remove();

private:
  sys::Fd parent_;
  sys::Fd directory_;
  std::string name_;
};

/// A cgroup until a launch takes it: owned from the call that makes it, as File is.
class CgroupObject : public Napi::ObjectWrap<CgroupObject> {
public:
  static Napi::Function define(Napi::Env env);

  explicit CgroupObject(const Napi::CallbackInfo& info);

  Cgroup take() { return std::move(cgroup_); }

private:
  Napi::Value fd(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);

  Cgroup cgroup_;
};

} // namespace casemate::addon
