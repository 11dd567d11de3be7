#include "addon/file.hpp"

#include "addon/errors.hpp"
#include "addon/memfd.hpp"

#include <fcntl.h>
#include <string>
#include <sys/stat.h>

namespace casemate::addon {

namespace {

/// Nobody changes, shrinks or grows it any more.
constexpr std::uint32_t all_seals =
    F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | 0x10 /* F_SEAL_FUTURE_WRITE */;

} // namespace

Napi::Function File::define(Napi::Env env) {
  return DefineClass(
      env, "File", {InstanceAccessor<&File::size>("size"), InstanceMethod<&File::close>("close")});
}

/// new File(path | bytes)
File::File(const Napi::CallbackInfo& info) : Napi::ObjectWrap<File>(info) {
  Napi::Env env = info.Env();
  if (info[0].IsString()) {
    open(env, info[0].As<Napi::String>());
  } else {
    fd_ = make_memfd(env, "casemate", info[0], all_seals);
    size_ = static_cast<double>(info[0].As<Napi::Uint8Array>().ByteLength());
  }
}

/// open(2), fstat(2)
void File::open(Napi::Env env, const std::string& path) {
  // Without O_NONBLOCK the open of a FIFO would wait for its writer.
  long opened = sys::call(__NR_open, path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  check(env, sys::check("open", opened), path.c_str());
  fd_.reset(static_cast<int>(opened));
  struct stat status {};
  check(env, sys::check("fstat", sys::call(__NR_fstat, fd_.get(), &status)), path.c_str());
  if (S_ISREG(status.st_mode)) {
    size_ = static_cast<double>(status.st_size);
  }
}

/// In bytes; -1 where it is no regular file.
Napi::Value File::size(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), size_);
}

void File::close(const Napi::CallbackInfo&) { fd_.reset(); }

} // namespace casemate::addon
