#include "addon/stream.hpp"

#include "addon/child.hpp"
#include "addon/errors.hpp"
#include "addon/file.hpp"
#include "sys/syscall.hpp"

#include <cerrno>
#include <fcntl.h>
#include <string>
#include <sys/socket.h>
#include <sys/stat.h>

namespace casemate::addon {

Napi::Function Stream::define(Napi::Env env) {
  return DefineClass(
      env, "Stream",
      {InstanceMethod<&Stream::resume>("resume"), InstanceMethod<&Stream::pause>("pause"),
       InstanceMethod<&Stream::drain>("drain"), InstanceMethod<&Stream::write>("write"),
       InstanceMethod<&Stream::finish>("finish"), InstanceMethod<&Stream::close>("close"),
       InstanceAccessor<&Stream::peer>("peer")});
}

/// new Stream(child, slot | message, onData(bytes | null), label?, sendBuffer?): takes the
/// descriptor from the child, or makes a new pair and sends the child the other end with that
/// message, to hold so much of what the child has sent and nobody has read. Null is the end of
/// what can be read, and the last call.
Stream::Stream(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<Stream>(info), fd_(open(info)),
      on_data_(Napi::Persistent(info[2].As<Napi::Function>())) {}

sys::Fd Stream::open(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Child& child = *Child::Unwrap(info[0].As<Napi::Object>());
  if (info[1].IsNumber()) {
    return child.take(info[1].As<Napi::Number>());
  }
  // Under the label of the child, which else may not use it.
  int ends[2] = {-1, -1};
  const sys::SysError error = labelled(label_of(info[3]), [&ends] {
    return sys::check("socketpair", sys::call(__NR_socketpair, AF_UNIX,
                                              SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends));
  });
  sys::Fd ours(ends[0]);
  sys::Fd theirs(ends[1]);
  check(env, error);
  if (info[4].IsNumber()) {
    const int size = info[4].As<Napi::Number>();
    check(env, sys::check("setsockopt", sys::call(__NR_setsockopt, theirs.get(), SOL_SOCKET,
                                                  SO_SNDBUF, &size, sizeof size)));
  }
  struct stat status {};
  check(env, sys::check("fstat", sys::call(__NR_fstat, theirs.get(), &status)));
  peer_ = status.st_ino;
  child.send(env, info[1].As<Napi::Uint8Array>(), std::move(theirs));
  return ours;
}

/// peer: of the other end, the number that /proc/<pid>/fd has of a socket.
Napi::Value Stream::peer(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(peer_));
}

/// resume(): reads, until pause().
void Stream::resume(const Napi::CallbackInfo&) {
  is_reading_ = !on_data_.IsEmpty();
  watch();
}

void Stream::pause(const Napi::CallbackInfo&) {
  is_reading_ = false;
  watch();
}

/// drain(): all that is there, a socket's buffer at most, and then the end. For a child that
/// is gone: another one that is just being born may hold a copy of its end of the socket
/// still, so that the kernel would not call it the end.
void Stream::drain(const Napi::CallbackInfo&) {
  while (fd_ && !on_data_.IsEmpty()) {
    if (receive() == -EAGAIN) {
      end_reading();
    }
  }
}

/// Hung up and broken off are both the end: what a killed process wrote before has been
/// read by then.
long Stream::receive() {
  char bytes[65536];
  long size = sys::call_retry(__NR_recvfrom, fd_.get(), bytes, sizeof bytes, MSG_DONTWAIT, nullptr,
                              nullptr);
  if (size > 0) {
    on_data_.Call({Napi::Buffer<char>::Copy(Env(), bytes, static_cast<std::size_t>(size))});
  } else if (size != -EAGAIN) {
    end_reading();
  }
  return size;
}

void Stream::end_reading() {
  is_reading_ = false;
  watch();
  Napi::FunctionReference on_data = std::move(on_data_);
  on_data.Call({Env().Null()});
}

/// write(bytes, done(errno)): done once the kernel has all of it, with 0, or nobody reads any
/// more. One at a time.
void Stream::write(const Napi::CallbackInfo& info) {
  bytes_ = Napi::Persistent(info[0].As<Napi::Uint8Array>());
  sent_ = 0;
  on_sent_ = Napi::Persistent(info[1].As<Napi::Function>());
  send();
}

void Stream::send() {
  auto bytes = bytes_.Value();
  while (sent_ < bytes.ByteLength()) {
    long size =
        fd_ ? sys::call_retry(__NR_sendto, fd_.get(), bytes.Data() + sent_,
                              bytes.ByteLength() - sent_, MSG_NOSIGNAL | MSG_DONTWAIT, nullptr, 0)
            : -EPIPE;
    if (size == -EAGAIN) {
      return watch();
    }
    if (size < 0) {
      return end_writing(static_cast<int>(-size));
    }
    sent_ += static_cast<std::size_t>(size);
  }
  end_writing(0);
}

void Stream::end_writing(int error) {
  bytes_.Reset();
  Napi::FunctionReference done = std::move(on_sent_);
  watch();
  done.Call({Napi::Number::New(Env(), error)});
}

/// finish(): nothing more is written. shutdown(2)
void Stream::finish(const Napi::CallbackInfo&) {
  if (fd_) {
    sys::call(__NR_shutdown, fd_.get(), SHUT_WR);
  }
}

/// close(): in both directions. A write that is under way is done with.
void Stream::close(const Napi::CallbackInfo&) {
  poll_.reset();
  fd_.reset();
  on_data_.Reset();
  is_reading_ = false;
  if (!on_sent_.IsEmpty()) {
    end_writing(EPIPE);
  }
}

void Stream::watch() {
  const int events = (is_reading_ ? UV_READABLE : 0) | (on_sent_.IsEmpty() ? 0 : UV_WRITABLE);
  if (!fd_ || (events == 0 && poll_ == nullptr)) {
    return;
  }
  if (poll_ == nullptr) {
    poll_ = std::make_unique<Poll>(Env(), "casemate:stream", fd_.get(), [this](int, int events) {
      if ((events & UV_WRITABLE) != 0 && !on_sent_.IsEmpty()) {
        send();
      }
      if (is_reading_) {
        receive();
      }
    });
    poll_->keep_alive(false); // The child does that, for as long as it lives.
  }
  if (events == 0) {
    poll_->stop();
  } else {
    poll_->start(events);
  }
}

} // namespace casemate::addon
