// Plain system calls that make sense on Node's main thread: they take and give
// descriptors, and change nothing of the calling process.
#include "addon/errors.hpp"
#include "addon/memfd.hpp"
#include "addon/module.hpp"
#include "addon/poll.hpp"
#include "sys/fd.hpp"
#include "sys/syscall.hpp"

#include <fcntl.h>
#include <linux/mount.h>
#include <memory>
#include <string>

namespace casemate::addon {

namespace {

using sys::call;
using sys::Fd;

std::uint32_t number(const Napi::Value& value) { return value.As<Napi::Number>().Uint32Value(); }

std::string text(const Napi::Value& value) { return value.As<Napi::String>(); }

/// systemError(errno, call): an error as a failed system call of ours would be.
Napi::Value make_system_error(const Napi::CallbackInfo& info) {
  std::string name = text(info[1]);
  return system_error(info.Env(), {name.c_str(), static_cast<int>(number(info[0]))}).Value();
}

/// memfdCreate(name, bytes | size, seals): a descriptor.
Napi::Value memfd_create(const Napi::CallbackInfo& info) {
  std::string name = text(info[0]);
  Fd fd = make_memfd(info.Env(), name.c_str(), info[1], number(info[2]));
  return Napi::Number::New(info.Env(), fd.release());
}

/// closeDescriptor(fd): for descriptors that the addon made. fs.closeSync warns of them
/// in worker threads, where Node keeps count of its own. close(2)
void close_descriptor(const Napi::CallbackInfo& info) { call(__NR_close, number(info[0])); }

/// pidfdOpen(pid): a descriptor. pidfd_open(2)
Napi::Value pidfd_open(const Napi::CallbackInfo& info) {
  long fd = call(__NR_pidfd_open, info[0].As<Napi::Number>().Int32Value(), 0);
  check(info.Env(), sys::check("pidfd_open", fd));
  return Napi::Number::New(info.Env(), static_cast<double>(fd));
}

/// pidfdSendSignal(pidfd, signal). pidfd_send_signal(2)
void pidfd_send_signal(const Napi::CallbackInfo& info) {
  check(info.Env(), sys::check("pidfd_send_signal", call(__NR_pidfd_send_signal, number(info[0]),
                                                         number(info[1]), nullptr, 0)));
}

/// pidfdWait(pidfd, callback): calls back once, when the process has ended.
void pidfd_wait(const Napi::CallbackInfo& info) {
  struct Wait {
    Napi::FunctionReference callback;
    std::unique_ptr<Poll> poll;
  };
  // Owned by its own callback: whoever calls back ends it.
  auto wait = std::make_shared<Wait>();
  wait->callback = Napi::Persistent(info[1].As<Napi::Function>());
  wait->poll = std::make_unique<Poll>(info.Env(), "casemate:pidfd",
                                      info[0].As<Napi::Number>().Int32Value(), [wait](int, int) {
                                        std::unique_ptr<Poll> poll = std::move(wait->poll);
                                        wait->callback.Call({});
                                      });
  wait->poll->start(UV_READABLE);
}

/// getRlimit(pid, resource): [soft, hard] as bigints. prlimit(2)
Napi::Value get_rlimit(const Napi::CallbackInfo& info) {
  std::uint64_t limit[2];
  check(info.Env(),
        sys::check("prlimit64", call(__NR_prlimit64, info[0].As<Napi::Number>().Int32Value(),
                                     number(info[1]), nullptr, limit)));
  auto result = Napi::Array::New(info.Env(), 2);
  result.Set(0u, Napi::BigInt::New(info.Env(), limit[0]));
  result.Set(1u, Napi::BigInt::New(info.Env(), limit[1]));
  return result;
}

/// fsmount(type, [[key, value]...], attributes): a detached mount. fsopen(2), fsconfig(2),
/// fsmount(2)
Napi::Value fsmount(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::string type = text(info[0]);
  long opened = call(__NR_fsopen, type.c_str(), FSOPEN_CLOEXEC);
  check(env, sys::check("fsopen", opened));
  Fd context(static_cast<int>(opened));
  auto options = info[1].As<Napi::Array>();
  for (std::uint32_t i = 0; i < options.Length(); ++i) {
    auto pair = options.Get(i).As<Napi::Array>();
    std::string key = text(pair.Get(0u));
    std::string value = text(pair.Get(1u));
    check(env, sys::check("fsconfig", call(__NR_fsconfig, context.get(), FSCONFIG_SET_STRING,
                                           key.c_str(), value.c_str(), 0)));
  }
  check(env, sys::check("fsconfig", call(__NR_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr,
                                         nullptr, 0)));
  long mount = call(__NR_fsmount, context.get(), FSMOUNT_CLOEXEC, number(info[2]));
  check(env, sys::check("fsmount", mount));
  return Napi::Number::New(env, static_cast<double>(mount));
}

/// openTree(path, flags): a descriptor of a path, or of a detached copy of a mount. open_tree(2)
Napi::Value open_tree(const Napi::CallbackInfo& info) {
  std::string path = text(info[0]);
  long fd = call(__NR_open_tree, AT_FDCWD, path.c_str(), number(info[1]) | OPEN_TREE_CLOEXEC);
  check(info.Env(), sys::check("open_tree", fd), path.c_str());
  return Napi::Number::New(info.Env(), static_cast<double>(fd));
}

/// mountSetattr(fd, set, clear, propagation, recursive). mount_setattr(2)
void mount_setattr(const Napi::CallbackInfo& info) {
  struct mount_attr attributes {};
  attributes.attr_set = number(info[1]);
  attributes.attr_clr = number(info[2]);
  attributes.propagation = number(info[3]);
  std::uint32_t flags = AT_EMPTY_PATH | (info[4].ToBoolean() ? AT_RECURSIVE : 0);
  check(info.Env(), sys::check("mount_setattr", call(__NR_mount_setattr, number(info[0]), "", flags,
                                                     &attributes, sizeof attributes)));
}

} // namespace

void init_system(Napi::Env env, Napi::Object exports) {
  auto define = [&](const char* name, auto function) {
    exports.Set(name, Napi::Function::New(env, function, name));
  };
  define("systemError", make_system_error);
  define("memfdCreate", memfd_create);
  define("closeDescriptor", close_descriptor);
  define("pidfdOpen", pidfd_open);
  define("pidfdSendSignal", pidfd_send_signal);
  define("pidfdWait", pidfd_wait);
  define("getRlimit", get_rlimit);
  define("fsmount", fsmount);
  define("openTree", open_tree);
  define("mountSetattr", mount_setattr);
}

} // namespace casemate::addon
