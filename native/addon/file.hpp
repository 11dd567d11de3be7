#pragma once

#include "sys/fd.hpp"
#include "sys/result.hpp"

#include <napi.h>
#include <string>

namespace casemate::addon {

/// The SELinux label of a file, by an attribute of its own and not by libselinux: labels are read
/// and written on the way of launches.
constexpr const char* label_attribute = "security.selinux";

/// Sets it, by descriptor: a path could be exchanged. fsetxattr(2)
void set_label(Napi::Env env, int fd, const std::string& label);

/// Sets the label of the sockets that this thread makes; an empty one ends that.
sys::SysError label_sockets(const std::string& label);

/// Makes a socket under a label, or under this thread's own where that is empty.
template <typename Make> sys::SysError labelled(const std::string& label, Make make) {
  if (label.empty()) {
    return make();
  }
  if (sys::SysError error = label_sockets(label)) {
    return error;
  }
  const sys::SysError error = make();
  const sys::SysError kept = label_sockets("");
  return error ? error : kept;
}

/// The label that stands in an argument, if one does.
inline std::string label_of(const Napi::Value& value) {
  return value.IsString() ? value.As<Napi::String>().Utf8Value() : std::string();
}

/// A file that a launch is given: owned by its object from the call that opens it, so
/// that a worker which is terminated between that call and the launch leaves nothing open.
/// One that is made empty is to be filled by a launch and read by others: it is kept, as one
/// of bytes that many launches read is, and each of them has a copy of the descriptor.
class File : public Napi::ObjectWrap<File> {
public:
  static Napi::Function define(Napi::Env env);

  explicit File(const Napi::CallbackInfo& info);

  sys::Fd take();

private:
  void open(Napi::Env env, const std::string& path, int flags);
  void open_disk(Napi::Env env, const Napi::Value& source, bool is_writable);
  void copy(Napi::Env env, const Napi::Value& source);
  void connect(Napi::Env env, const std::string& path, const std::string& label);
  void reopen_read_only(Napi::Env env);
  void note_size(Napi::Env env, const char* path);
  void seal(const Napi::CallbackInfo& info);
  Napi::Value lease(const Napi::CallbackInfo& info);
  Napi::Value identity(const Napi::CallbackInfo& info);
  Napi::Value context(const Napi::CallbackInfo& info);
  void set_context(const Napi::CallbackInfo& info);
  Napi::Value size(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);

  sys::Fd fd_;
  double size_ = -1;
  bool is_kept_ = false;
};

} // namespace casemate::addon
