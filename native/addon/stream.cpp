#include "addon/stream.hpp"

#include "addon/child.hpp"
#include "sys/syscall.hpp"

#include <cerrno>
#include <sys/socket.h>

namespace casemate::addon {

Napi::Function Stream::define(Napi::Env env) {
  return DefineClass(
      env, "Stream",
      {InstanceMethod<&Stream::resume>("resume"), InstanceMethod<&Stream::pause>("pause"),
       InstanceMethod<&Stream::drain>("drain"), InstanceMethod<&Stream::write>("write"),
       InstanceMethod<&Stream::close>("close")});
}

/// new Stream(child, slot, onData(bytes | null)): takes the descriptor from the child. Null
/// is the end, and the last call.
Stream::Stream(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<Stream>(info),
      fd_(Child::Unwrap(info[0].As<Napi::Object>())->take(info[1].As<Napi::Number>())),
      on_data_(Napi::Persistent(info[2].As<Napi::Function>())) {}

/// resume(): reads, until pause().
void Stream::resume(const Napi::CallbackInfo&) {
  if (fd_) {
    watch(UV_READABLE);
  }
}

void Stream::pause(const Napi::CallbackInfo&) {
  if (poll_ != nullptr) {
    poll_->stop();
  }
}

/// drain(): all that is there, a socket's buffer at most, and then the end. For a child that
/// is gone: another one that is just being born may hold a copy of its end of the socket
/// still, so that the kernel would not call it the end.
void Stream::drain(const Napi::CallbackInfo&) {
  while (fd_) {
    if (receive() == -EAGAIN) {
      hang_up();
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
    hang_up();
  }
  return size;
}

void Stream::hang_up() {
  Napi::FunctionReference on_data = std::move(on_data_);
  end();
  on_data.Call({Env().Null()});
}

/// write(bytes, done()): done once the kernel has all of it, or nobody reads any more. One
/// at a time.
void Stream::write(const Napi::CallbackInfo& info) {
  bytes_ = Napi::Persistent(info[0].As<Napi::Uint8Array>());
  sent_ = 0;
  on_sent_ = Napi::Persistent(info[1].As<Napi::Function>());
  send();
}

void Stream::send() {
  auto bytes = bytes_.Value();
  while (fd_ && sent_ < bytes.ByteLength()) {
    long size =
        sys::call_retry(__NR_sendto, fd_.get(), bytes.Data() + sent_, bytes.ByteLength() - sent_,
                        MSG_NOSIGNAL | MSG_DONTWAIT, nullptr, 0);
    if (size == -EAGAIN) {
      return watch(UV_WRITABLE);
    }
    if (size < 0) {
      return end(); // Nobody reads.
    }
    sent_ += static_cast<std::size_t>(size);
  }
  if (poll_ != nullptr) {
    poll_->stop();
  }
  bytes_.Reset();
  Napi::FunctionReference done = std::move(on_sent_);
  done.Call({});
}

void Stream::close(const Napi::CallbackInfo&) { end(); }

/// Closes it. A write that is under way is done with.
void Stream::end() {
  poll_.reset();
  fd_.reset();
  on_data_.Reset();
  if (!on_sent_.IsEmpty()) {
    send();
  }
}

void Stream::watch(int events) {
  if (poll_ == nullptr) {
    poll_ = std::make_unique<Poll>(Env(), "casemate:stream", fd_.get(), [this](int, int) {
      if (on_sent_.IsEmpty()) {
        receive();
      } else {
        send();
      }
    });
    poll_->keep_alive(false); // The child does that, for as long as it lives.
  }
  poll_->start(events);
}

} // namespace casemate::addon
