// What the kernel tells of SELinux, message by message, on the environment's own event loop.
#include "addon/errors.hpp"
#include "addon/module.hpp"
#include "addon/poll.hpp"
#include "sys/fd.hpp"
#include "sys/syscall.hpp"

#include <cerrno>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/netlink.h>
#include <linux/selinux_netlink.h>
#include <memory>
#include <string>
#include <sys/socket.h>
#include <unistd.h>

namespace casemate::addon {

namespace {

/// new KernelMessages('audit' | 'selinux' | 'log', onMessage(bytes)): of the multicast group of
/// audit records (CAP_AUDIT_READ, the initial network namespace), of that of changes of SELinux'
/// mode and policy (anybody), or of the kernel's log (/dev/kmsg), from now on. It does not keep
/// the event loop alive.
class KernelMessages : public Napi::ObjectWrap<KernelMessages> {
public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "KernelMessages", {InstanceMethod<&KernelMessages::close>("close")});
  }

  explicit KernelMessages(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<KernelMessages>(info),
        on_message_(Napi::Persistent(info[1].As<Napi::Function>())) {
    const std::string source = info[0].As<Napi::String>();
    if (source == "log") {
      open_log(info.Env());
    } else {
      join(info.Env(), source == "audit" ? NETLINK_AUDIT : NETLINK_SELINUX,
           source == "audit" ? int{AUDIT_NLGRP_READLOG} : int{SELNLGRP_AVC});
    }
    poll_ = std::make_unique<Poll>(info.Env(), "casemate:kernel", fd_.get(),
                                   [this](int, int) { receive(); });
    poll_->start(UV_READABLE);
    poll_->keep_alive(false);
  }

private:
  void open_log(Napi::Env env) {
    const long fd = sys::call(__NR_open, "/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    check(env, sys::check("open", fd), "/dev/kmsg");
    fd_.reset(static_cast<int>(fd));
    const long end = sys::call(__NR_lseek, fd_.get(), 0, SEEK_END); // what was before is others'
    check(env, sys::check("lseek", end), "/dev/kmsg");
  }

  /// netlink(7)
  void join(Napi::Env env, int protocol, int group) {
    const long fd =
        sys::call(__NR_socket, AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);
    check(env, sys::check("socket(AF_NETLINK)", fd));
    fd_.reset(static_cast<int>(fd));
    sockaddr_nl address{};
    address.nl_family = AF_NETLINK;
    check(env, sys::check("bind", sys::call(__NR_bind, fd_.get(), &address, sizeof address)));
    check(env, sys::check("setsockopt(NETLINK_ADD_MEMBERSHIP)",
                          sys::call(__NR_setsockopt, fd_.get(), 270 /* SOL_NETLINK */,
                                    NETLINK_ADD_MEMBERSHIP, &group, sizeof group)));
  }

  /// As many as there are for now, a bounded number: a kernel that says a lot has Node do nothing
  /// else, or else.
  void receive() {
    char bytes[16384]; // a record of audit has 8970 at most, one of the log 8192
    for (int i = 0; i < 64 && fd_ && !on_message_.IsEmpty(); ++i) {
      const long size = sys::call_retry(__NR_read, fd_.get(), bytes, sizeof bytes);
      if (size == -ENOBUFS || size == -EPIPE) {
        continue; // some were lost
      }
      if (size <= 0) {
        return;
      }
      on_message_.Call({Napi::Buffer<char>::Copy(Env(), bytes, static_cast<std::size_t>(size))});
    }
  }

  void close(const Napi::CallbackInfo&) {
    poll_.reset();
    fd_.reset();
    on_message_.Reset();
  }

  sys::Fd fd_;
  Napi::FunctionReference on_message_;
  std::unique_ptr<Poll> poll_; // of fd_, and so gone before it
};

} // namespace

void init_kernel_messages(Napi::Env env, Napi::Object exports) {
  exports.Set("KernelMessages", KernelMessages::define(env));
}

} // namespace casemate::addon
