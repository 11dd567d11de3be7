// SELinux, asked through libselinux.
//
// The library is opened at run time: linked, it would make the whole addon
// unloadable on every host without it. Opened by libuv, not by dlopen(3), whose
// symbol of a newer glibc would make it unloadable on older ones. It is for
// questions alone, and never on the path of a launch: its setexeccon caches the last label per
// thread and skips the write when it repeats, and it allocates. The launch plan writes labels to
// the kernel itself.
#include "addon/errors.hpp"
#include "addon/file.hpp"
#include "addon/module.hpp"
#include "sys/fd.hpp"
#include "sys/syscall.hpp"

#include <cerrno>
#include <string>
#include <sys/mman.h>
#include <sys/types.h>
#include <uv.h>

namespace casemate::addon {
namespace {

/// The functions used of libselinux.so.1 (man pages: is_selinux_enabled(3),
/// security_getenforce(3), getcon(3), getfilecon(3), security_check_context(3)).
/// `_raw`: the kernel's own labels, not the translations of mcstransd.
struct Library {
  int (*enabled)();
  int (*enforcing)();
  int (*own_context)(char**);
  int (*process_context)(pid_t, char**);
  int (*check_context)(const char*);
  int (*path_context)(const char*, char**);
  int (*descriptor_context)(int, char**);
  void (*free_context)(char*);
  std::string missing; // why nothing of the above may be called; empty otherwise

  Library() {
    // Never closed: labels may be asked for until the process ends.
    uv_lib_t handle;
    if (uv_dlopen("libselinux.so.1", &handle) != 0) {
      missing = uv_dlerror(&handle);
      uv_dlclose(&handle); // which frees the message
      return;
    }
    resolve(&handle, "is_selinux_enabled", enabled);
    resolve(&handle, "security_getenforce", enforcing);
    resolve(&handle, "getcon_raw", own_context);
    resolve(&handle, "getpidcon_raw", process_context);
    resolve(&handle, "security_check_context_raw", check_context);
    resolve(&handle, "getfilecon_raw", path_context);
    resolve(&handle, "fgetfilecon_raw", descriptor_context);
    resolve(&handle, "freecon", free_context);
  }

private:
  template <typename Function>
  void resolve(uv_lib_t* handle, const char* name, Function& function) {
    if (uv_dlsym(handle, name, reinterpret_cast<void**>(&function)) != 0) {
      missing = std::string("libselinux.so.1 has no ") + name;
    }
  }
};

/// Opened by the first question asked, once per process: it takes about 0.4 ms.
const Library& library() {
  static const Library instance;
  return instance;
}

/// For all calls but selinuxMissing(): TypeScript asks that one first, so this
/// throws only at a caller who went around it.
const Library& required_library(Napi::Env env) {
  if (!library().missing.empty()) {
    throw_system_error(env, {"dlopen(libselinux.so.1)", ENOSYS});
  }
  return library();
}

/// The string of one of the get*con calls, freed as libselinux wants it.
Napi::String take_context(Napi::Env env, const char* call, int result, char* context,
                          const char* path = nullptr) {
  if (result < 0 || context == nullptr) {
    throw_system_error(env, {call, result < 0 ? errno : ENODATA}, path);
  }
  const std::string copy = context;
  library().free_context(context);
  return Napi::String::New(env, copy);
}

Napi::Value missing(const Napi::CallbackInfo& info) {
  const std::string& reason = library().missing;
  return reason.empty() ? info.Env().Null() : Napi::String::New(info.Env(), reason);
}

Napi::Value enabled(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), required_library(info.Env()).enabled() > 0);
}

Napi::Value enforcing(const Napi::CallbackInfo& info) {
  const int mode = required_library(info.Env()).enforcing();
  if (mode < 0) {
    throw_system_error(info.Env(), {"security_getenforce", errno});
  }
  return Napi::Boolean::New(info.Env(), mode > 0);
}

Napi::Value context(const Napi::CallbackInfo& info) {
  const Library& selinux = required_library(info.Env());
  char* context = nullptr;
  if (info[0].IsUndefined()) {
    const int result = selinux.own_context(&context);
    return take_context(info.Env(), "getcon", result, context);
  }
  const int result = selinux.process_context(info[0].As<Napi::Number>().Int32Value(), &context);
  return take_context(info.Env(), "getpidcon", result, context);
}

void check_context(const Napi::CallbackInfo& info) {
  const std::string context = info[0].As<Napi::String>();
  if (required_library(info.Env()).check_context(context.c_str()) < 0) {
    throw_system_error(info.Env(), {"security_check_context", errno});
  }
}

Napi::Value file_context(const Napi::CallbackInfo& info) {
  const Library& selinux = required_library(info.Env());
  char* context = nullptr;
  if (info[0].IsNumber()) {
    const int fd = info[0].As<Napi::Number>().Int32Value();
    const int result = selinux.descriptor_context(fd, &context);
    return take_context(info.Env(), "fgetfilecon", result, context);
  }
  const std::string path = info[0].As<Napi::String>();
  const int result = selinux.path_context(path.c_str(), &context);
  return take_context(info.Env(), "getfilecon", result, context, path.c_str());
}

/// selinuxSetFileContext(fd, context)
void set_file_context(const Napi::CallbackInfo& info) {
  set_label(info.Env(), info[0].As<Napi::Number>().Int32Value(), info[1].As<Napi::String>());
}

/// The head of struct selinux_kernel_status (security/selinux/include/security.h of the kernel).
struct KernelStatus {
  std::uint32_t version;
  std::uint32_t sequence;
  std::uint32_t enforcing;
};

/// /sys/fs/selinux/status, mapped by the first question and for good: from then on the mode is
/// a load from memory.
struct StatusPage {
  const volatile KernelStatus* mapped = nullptr;
  sys::SysError error; // why it is not

  StatusPage() {
    const long opened = sys::call_retry(__NR_open, path, O_RDONLY | O_CLOEXEC);
    error = sys::check("open", opened);
    if (error) {
      return;
    }
    const sys::Fd fd(static_cast<int>(opened));
    void* page = mmap(nullptr, sizeof(KernelStatus), PROT_READ, MAP_SHARED, fd.get(), 0);
    if (page == MAP_FAILED) {
      error = {"mmap", errno};
      return;
    }
    mapped = static_cast<const volatile KernelStatus*>(page);
  }

  static constexpr const char* path = "/sys/fs/selinux/status";
};

/// selinuxStatus(): 1 where it enforces, 0 where it is permissive, -1 where it is off. Throws where
/// the policy keeps that from the caller: whoever took that for off would launch without a label.
Napi::Value status(const Napi::CallbackInfo& info) {
  static const StatusPage page;
  if (page.mapped == nullptr) {
    if (page.error.number != ENOENT) {
      throw_system_error(info.Env(), page.error, StatusPage::path);
    }
    return Napi::Number::New(info.Env(), -1);
  }
  // A single word, which needs no sequence number to be read whole.
  return Napi::Number::New(info.Env(), page.mapped->enforcing != 0 ? 1 : 0);
}

} // namespace

void init_selinux(Napi::Env env, Napi::Object exports) {
  exports.Set("selinuxMissing", Napi::Function::New(env, missing, "selinuxMissing"));
  exports.Set("selinuxEnabled", Napi::Function::New(env, enabled, "selinuxEnabled"));
  exports.Set("selinuxEnforcing", Napi::Function::New(env, enforcing, "selinuxEnforcing"));
  exports.Set("selinuxContext", Napi::Function::New(env, context, "selinuxContext"));
  exports.Set("selinuxCheckContext",
              Napi::Function::New(env, check_context, "selinuxCheckContext"));
  exports.Set("selinuxStatus", Napi::Function::New(env, status, "selinuxStatus"));
  exports.Set("selinuxSetFileContext",
              Napi::Function::New(env, set_file_context, "selinuxSetFileContext"));
  exports.Set("selinuxFileContext", Napi::Function::New(env, file_context, "selinuxFileContext"));
}

} // namespace casemate::addon
