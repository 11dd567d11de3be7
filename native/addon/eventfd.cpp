#include "addon/errors.hpp"
#include "addon/kvm.hpp"
#include "addon/poll.hpp"
#include "sys/fd.hpp"

#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>
#include <sys/eventfd.h>
#include <utility>

namespace casemate::addon {

namespace {

/// An eventfd(2), watched on the event loop while somebody waits for it.
class EventFdHandle : public Napi::ObjectWrap<EventFdHandle> {
public:
  static void define(Napi::Env env, Napi::Object exports) {
    exports.Set("EventFdHandle", DefineClass(env, "EventFdHandle",
                                             {
                                                 InstanceAccessor<&EventFdHandle::fd>("fd"),
                                                 InstanceMethod<&EventFdHandle::signal>("signal"),
                                                 InstanceMethod<&EventFdHandle::take>("take"),
                                                 InstanceMethod<&EventFdHandle::wait>("wait"),
                                                 InstanceMethod<&EventFdHandle::cancel>("cancel"),
                                                 InstanceMethod<&EventFdHandle::close>("close"),
                                             }));
  }

  explicit EventFdHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<EventFdHandle>(info) {
    const long fd = sys::call(__NR_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK);
    check(info.Env(), sys::check("eventfd", fd));
    fd_.reset(static_cast<int>(fd));
  }

private:
  /// The counter, which is 0 afterwards; nothing where it was 0 already.
  std::optional<std::uint64_t> read_counter() {
    std::uint64_t count = 0;
    const long result = sys::call(__NR_read, fd_.get(), &count, sizeof count);
    if (result == -EAGAIN) {
      return std::nullopt;
    }
    check(Env(), sys::check("read", result));
    return count;
  }

  Napi::Value fd(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), fd_.get());
  }

  void signal(const Napi::CallbackInfo& info) {
    bool lossless = false;
    const std::uint64_t count = info[0].As<Napi::BigInt>().Uint64Value(&lossless);
    check(info.Env(), sys::check("write", sys::call(__NR_write, fd_.get(), &count, sizeof count)));
  }

  Napi::Value take(const Napi::CallbackInfo& info) {
    return Napi::BigInt::New(info.Env(), read_counter().value_or(0));
  }

  /// A promise of the counter. TypeScript keeps a second wait() from happening.
  Napi::Value wait(const Napi::CallbackInfo& info) {
    if (waiting_ || !fd_) {
      throw_system_error(info.Env(), {"poll", waiting_ ? EBUSY : EBADF});
    }
    if (poll_ == nullptr) {
      poll_ = std::make_unique<Poll>(info.Env(), "casemate.EventFd", fd_.get(),
                                     [this](int, int) { on_readable(); });
    }
    poll_->start(UV_READABLE);
    waiting_.emplace(info.Env());
    Ref();
    return waiting_->Promise();
  }

  void on_readable() {
    // Somebody else who has the descriptor may have been faster.
    if (const auto count = read_counter()) {
      settle(Napi::BigInt::New(Env(), *count));
    }
  }

  /// Ends a wait with 0, which no counter that was waited for is.
  void cancel(const Napi::CallbackInfo& info) {
    settle(Napi::BigInt::New(info.Env(), std::uint64_t{0}));
  }

  void settle(Napi::Value value) {
    if (!waiting_) {
      return;
    }
    poll_->stop();
    std::exchange(waiting_, std::nullopt)->Resolve(value);
    Unref();
  }

  void close(const Napi::CallbackInfo& info) {
    cancel(info);
    poll_.reset();
    fd_.reset();
  }

  sys::Fd fd_;
  std::unique_ptr<Poll> poll_; // Destroyed before the descriptor.
  std::optional<Napi::Promise::Deferred> waiting_;
};

} // namespace

void init_eventfd(Napi::Env env, Napi::Object exports) { EventFdHandle::define(env, exports); }

} // namespace casemate::addon
