#include "addon/cgroup.hpp"

#include "addon/errors.hpp"
#include "sys/syscall.hpp"

#include <cerrno>
#include <ctime>
#include <fcntl.h>

namespace casemate::addon {

using sys::SysError;

/// mkdirat(2), openat(2)
SysError Cgroup::make(int parent, std::string name) {
  sys::Fd own(static_cast<int>(sys::call(__NR_fcntl, parent, F_DUPFD_CLOEXEC, 3)));
  if (SysError error = sys::check("fcntl", own.get())) {
    return error;
  }
  if (SysError error =
          sys::check("mkdirat", sys::call(__NR_mkdirat, own.get(), name.c_str(), 0755))) {
    return error;
  }
  long opened = sys::call(__NR_openat, own.get(), name.c_str(),
                          O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (opened < 0) {
    sys::call(__NR_unlinkat, own.get(), name.c_str(), AT_REMOVEDIR);
    return sys::check("openat", opened);
  }
  parent_ = std::move(own);
  directory_.reset(static_cast<int>(opened));
  name_ = std::move(name);
  return {};
}

SysError Cgroup::write(const std::string& file, const std::string& text) {
  long opened = sys::call(__NR_openat, directory_.get(), file.c_str(), O_WRONLY | O_CLOEXEC);
  if (SysError error = sys::check("openat", opened)) {
    return error;
  }
  sys::Fd fd(static_cast<int>(opened));
  return sys::check("write", sys::call_retry(__NR_write, fd.get(), text.data(), text.size()));
}

sys::Result<std::string> Cgroup::read(const std::string& file) const {
  long opened = sys::call(__NR_openat, directory_.get(), file.c_str(), O_RDONLY | O_CLOEXEC);
  if (SysError error = sys::check("openat", opened)) {
    return error;
  }
  sys::Fd fd(static_cast<int>(opened));
  std::string text(4096, '\0'); // the kernel makes its text a page at most
  long size = sys::call_retry(__NR_read, fd.get(), text.data(), text.size());
  if (SysError error = sys::check("read", size)) {
    return error;
  }
  text.resize(static_cast<std::size_t>(size));
  return text;
}

/// unlinkat(2). Kernels from 6.19 on take a task off its cgroup after it can be reaped already,
/// hence more tries than one: it is microseconds that they wait.
void Cgroup::remove() {
  if (!directory_) {
    return;
  }
  directory_.reset();
  for (int tries = 0; tries < 100; ++tries) {
    long removed = sys::call(__NR_unlinkat, parent_.get(), name_.c_str(), AT_REMOVEDIR);
    if (removed != -EBUSY) {
      break;
    }
    timespec pause{0, 100'000};
    sys::call(__NR_nanosleep, &pause, nullptr);
  }
  parent_.reset();
}

Napi::Function CgroupObject::define(Napi::Env env) {
  return DefineClass(
      env, "Cgroup",
      {InstanceAccessor<&CgroupObject::fd>("fd"), InstanceMethod<&CgroupObject::close>("close")});
}

/// new Cgroup(parent, name, [[file, text], ...]): made and limited. A limit that cannot be set is
/// an error with the file as its path.
CgroupObject::CgroupObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<CgroupObject>(info) {
  Napi::Env env = info.Env();
  std::string name = info[1].As<Napi::String>();
  check(env, cgroup_.make(info[0].As<Napi::Number>().Int32Value(), name), name.c_str());
  auto settings = info[2].As<Napi::Array>();
  for (std::uint32_t i = 0; i < settings.Length(); ++i) {
    auto setting = settings.Get(i).As<Napi::Array>();
    std::string file = setting.Get(0u).As<Napi::String>();
    check(env, cgroup_.write(file, setting.Get(1u).As<Napi::String>()), file.c_str());
  }
}

/// Its directory; it stays this object's.
Napi::Value CgroupObject::fd(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), cgroup_.fd());
}

void CgroupObject::close(const Napi::CallbackInfo&) { cgroup_.remove(); }

} // namespace casemate::addon
