#include "addon/child.hpp"

#include "addon/errors.hpp"
#include "sys/syscall.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

namespace casemate::addon {

namespace {

/// Reaps a process, once it has ended. waitid(2), P_PIDFD
long reap(int pidfd, siginfo_t& info, int options = 0) {
  return sys::call_retry(__NR_waitid, 3 /* P_PIDFD */, pidfd, &info, WEXITED | __WALL | options,
                         nullptr);
}

void kill_now(int pidfd) { sys::call(__NR_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0); }

/// Until it is gone.
siginfo_t kill_and_reap(int pidfd) {
  kill_now(pidfd);
  siginfo_t info{};
  reap(pidfd, info);
  return info;
}

} // namespace

Napi::Function Child::define(Napi::Env env) {
  return DefineClass(
      env, "Child",
      {InstanceAccessor<&Child::pid>("pid"), InstanceAccessor<&Child::user_id>("userId"),
       InstanceAccessor<&Child::stamps>("stamps"), InstanceMethod<&Child::watch>("watch"),
       InstanceMethod<&Child::send_bytes>("send"), InstanceMethod<&Child::kill>("kill"),
       InstanceMethod<&Child::take_descriptor>("takeDescriptor"),
       InstanceMethod<&Child::cgroup_file>("cgroupFile")});
}

Napi::Object Child::create(Napi::Env env, Napi::Function constructor, Flight& flight,
                           const std::shared_ptr<Watch>& watch) {
  Napi::Object object = constructor.New({Napi::External<Flight>::New(env, &flight)});
  Child& child = *Unwrap(object);
  child.watch_ = watch;
  child.context_ = std::make_unique<Context>(env, "casemate:child");
  return object;
}

Child::Child(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Child>(info) {
  if (info.Length() != 1 || !info[0].IsExternal()) {
    throw Napi::TypeError::New(info.Env(), "Child is made by a launch");
  }
  flight_ = info[0].As<Napi::External<Flight>>().Data();
  flight_->child = this;
  ears_ = std::move(flight_->ears);
  ears_->message = [this] { run([this] { on_control(); }); };
  ears_->end = [this] { run([this] { on_end(); }); };
}

Child::~Child() {
  if (flight_ != nullptr) {
    flight_->child = nullptr;
    flight_->ears = std::move(ears_); // the kernel may know of them
  }
}

void Child::settle(Parts parts, bool cancelled) {
  flight_ = nullptr;
  parts_ = std::move(parts);
  if (cancelled && parts_.pidfd) {
    kill_now(parts_.pidfd.get());
  }
  if (on_exit_.IsEmpty()) {
    // Nobody has asked for it: it would be told again and again.
    parts_.unwatch(*watch_);
    parts_.watched = false;
  }
  start_watching();
}

Child::Parts::~Parts() {
  if (pidfd) {
    kill_and_reap(pidfd.get());
  }
}

/// What the launcher has had watched.
void Child::Parts::unwatch(Watch& watch) const {
  if (watched) {
    watch.remove(pidfd.get());
    watch.remove(control.get());
  }
}

/// pid: 0 before its birth.
Napi::Value Child::pid(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(parts_.pid));
}

Napi::Value Child::user_id(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), parts_.user_id);
}

Napi::Value Child::stamps(const Napi::CallbackInfo& info) {
  auto stamps = Napi::BigUint64Array::New(info.Env(), parts_.stamps.size());
  std::ranges::copy(parts_.stamps, stamps.Data());
  return stamps;
}

/// watch(onMessage(bytes), onExit(code, signal, memoryEvents)): once. Keeps this object, and the
/// event loop, alive until the process has ended. memoryEvents is the text of that file of a cgroup
/// made for it, or empty.
void Child::watch(const Napi::CallbackInfo& info) {
  on_message_ = Napi::Persistent(info[0].As<Napi::Function>());
  on_exit_ = Napi::Persistent(info[1].As<Napi::Function>());
  watch_->hold();
  Ref();
  start_watching();
}

/// Once somebody watches it and its launch is done: until then its first message is the
/// launcher's to read, and it is not to be reaped, or its process id would no longer be its
/// own.
void Child::start_watching() {
  if (flight_ != nullptr || on_exit_.IsEmpty()) {
    return;
  }
  if (!parts_.pidfd) {
    forget(); // it was never born
    return;
  }
  if (!parts_.watched && watch_descriptors()) {
    // Of one that cannot be watched its end is all that is told, and so it ends now.
    const siginfo_t info = kill_and_reap(parts_.pidfd.get());
    return run([&] { tell_end(info); });
  }
  send_rest();
}

sys::SysError Child::watch_descriptors() {
  if (auto error = watch_->add(parts_.pidfd.get(), ears_->end, EPOLLIN)) {
    return error;
  }
  return parts_.control ? watch_->add(parts_.control.get(), ears_->message, EPOLLIN)
                        : sys::SysError{};
}

/// Nothing is to be told any more.
void Child::forget() {
  unsent_.clear();
  on_message_.Reset();
  on_exit_.Reset();
  watch_->let_go();
  Unref();
}

/// How many messages are received before others have their turn: a process that never stops
/// sending has its share of the event loop and no more.
static constexpr std::size_t messages_at_once = 32;

void Child::on_control() {
  send_rest();
  receive_messages(messages_at_once);
}

/// Of its control socket, where there is something to be sent.
void Child::await_room() {
  if (!on_exit_.IsEmpty() && parts_.control) {
    watch_->change(parts_.control.get(), ears_->message,
                   unsent_.empty() ? EPOLLIN : EPOLLIN | EPOLLOUT);
  }
}

void Child::receive_messages(std::size_t most) {
  Napi::Env env = Env();
  for (std::size_t i = 0; i < most && parts_.control; ++i) {
    alignas(8) char message[512];
    long size = sys::call_retry(__NR_recvfrom, parts_.control.get(), message, sizeof message,
                                MSG_DONTWAIT | MSG_TRUNC, nullptr, nullptr);
    if (size == -EAGAIN) {
      return;
    }
    if (size <= 0) {
      // Hung up: its end is the pidfd's to tell. One that is ending keeps its exit code; one
      // that lives on could no longer be told anything, and is ended.
      unwatch_control();
      if (parts_.pidfd) {
        kill_now(parts_.pidfd.get());
      }
      return;
    }
    Napi::HandleScope scope(env);
    // A message longer than any of the protocol's arrives cut short, with its true
    // length as a second argument, and is refused by TypeScript as any malformed one.
    std::size_t kept = std::min(static_cast<std::size_t>(size), sizeof message);
    try {
      on_message_.Call({Napi::Buffer<char>::Copy(env, message, kept),
                        Napi::Number::New(env, static_cast<double>(size))});
    } catch (const Napi::Error& error) {
      // A listener's: an uncaught exception as any other. Where the process survives it,
      // the messages behind this one and the end of the child are still to be told.
      napi_fatal_exception(env, error.Value());
    }
  }
}

void Child::unwatch_control() {
  if (parts_.control) {
    watch_->remove(parts_.control.get());
    parts_.control.reset();
  }
}

void Child::on_end() {
  siginfo_t info{};
  if (reap(parts_.pidfd.get(), info, WNOHANG) == 0 && info.si_pid != 0) {
    tell_end(info);
  }
}

void Child::tell_end(const siginfo_t& info) {
  watch_->remove(parts_.pidfd.get());
  parts_.pidfd.reset();
  unsent_.clear();
  receive_messages(std::numeric_limits<std::size_t>::max()); // its last words
  unwatch_control();
  Napi::Env env = Env();
  // Empty where it has no cgroup of its own, or that no limit of memory.
  sys::Result<std::string> events = parts_.cgroup.read("memory.events");
  parts_.cgroup.remove();
  bool exited = info.si_code == CLD_EXITED;
  Napi::Value code = exited ? Napi::Value(Napi::Number::New(env, info.si_status)) : env.Null();
  Napi::Value signal = exited ? env.Null() : Napi::Value(Napi::Number::New(env, info.si_status));
  Napi::Function on_exit = on_exit_.Value();
  forget();
  on_exit.Call({code, signal, Napi::String::New(env, events ? events.value() : "")});
}

/// send(bytes)
void Child::send_bytes(const Napi::CallbackInfo& info) {
  send(info.Env(), info[0].As<Napi::Uint8Array>(), {});
}

void Child::send(Napi::Env env, Napi::Uint8Array bytes, sys::Fd descriptor) {
  Message message{{bytes.Data(), bytes.Data() + bytes.ByteLength()}, std::move(descriptor)};
  // Before the end of its launch it has no socket yet.
  const bool can_send = flight_ == nullptr && unsent_.empty();
  const long sent = can_send ? send_now(message) : -EAGAIN;
  if (sent == -EAGAIN) {
    unsent_.push_back(std::move(message));
    return await_room();
  }
  check(env, sys::check("sendmsg", sent));
}

void Child::send_rest() {
  if (unsent_.empty()) {
    return;
  }
  // Where it has hung up there is nobody to send to, and its end is on the way.
  while (!unsent_.empty() && send_now(unsent_.front()) != -EAGAIN) {
    unsent_.pop_front();
  }
  await_room();
}

long Child::send_now(const Message& message) {
  iovec vector{const_cast<std::uint8_t*>(message.bytes.data()), message.bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &vector;
  header.msg_iovlen = 1;
  if (message.descriptor) {
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    const int fd = message.descriptor.get();
    std::memcpy(CMSG_DATA(rights), &fd, sizeof fd);
  }
  return sys::call_retry(__NR_sendmsg, parts_.control.get(), &header, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/// kill(signal): pidfd_send_signal(2); nothing where it has been reaped already. Where its
/// launch goes on, that is given up, whatever the signal.
void Child::kill(const Napi::CallbackInfo& info) {
  if (flight_ != nullptr) {
    flight_->launcher.cancel(flight_->launch);
  } else if (parts_.pidfd) {
    long result = sys::call(__NR_pidfd_send_signal, parts_.pidfd.get(),
                            info[0].As<Napi::Number>().Int32Value(), nullptr, 0);
    check(info.Env(), sys::check("pidfd_send_signal", result));
  }
}

/// takeDescriptor(slot): the caller owns it now; -1 where there is none.
Napi::Value Child::take_descriptor(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), take(info[0].As<Napi::Number>()).release());
}

/// cgroupFile(name): what the kernel says there of the cgroup that was made for it.
Napi::Value Child::cgroup_file(const Napi::CallbackInfo& info) {
  std::string file = info[0].As<Napi::String>();
  return Napi::String::New(
      info.Env(), casemate::addon::take(info.Env(), parts_.cgroup.read(file), file.c_str()));
}

sys::Fd Child::take(std::uint32_t slot) {
  for (auto& [number, fd] : parts_.others) {
    if (number == slot) {
      return std::move(fd);
    }
  }
  return {};
}

} // namespace casemate::addon
