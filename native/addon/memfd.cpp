#include "addon/memfd.hpp"

#include "addon/errors.hpp"
#include "sys/syscall.hpp"

#include <fcntl.h>

namespace casemate::addon {

sys::Fd make_memfd(Napi::Env env, const char* name, const Napi::Value& contents,
                   std::uint32_t seals) {
  // MFD_CLOEXEC | MFD_ALLOW_SEALING
  long created = sys::call(__NR_memfd_create, name, 3);
  check(env, sys::check("memfd_create", created));
  sys::Fd fd(static_cast<int>(created));
  if (contents.IsNumber()) {
    check(env, sys::check("ftruncate", sys::call(__NR_ftruncate, fd.get(),
                                                 contents.As<Napi::Number>().Int64Value())));
  } else {
    auto bytes = contents.As<Napi::Uint8Array>();
    const std::uint8_t* from = bytes.Data();
    std::size_t left = bytes.ByteLength();
    while (left > 0) {
      long written = sys::call_retry(__NR_write, fd.get(), from, left);
      check(env, sys::check("write", written));
      from += written;
      left -= static_cast<std::size_t>(written);
    }
  }
  if (seals != 0) {
    check(env,
          sys::check("fcntl(F_ADD_SEALS)", sys::call(__NR_fcntl, fd.get(), F_ADD_SEALS, seals)));
  }
  return fd;
}

} // namespace casemate::addon
