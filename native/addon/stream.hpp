#pragma once

#include "addon/poll.hpp"
#include "sys/fd.hpp"

#include <memory>
#include <napi.h>

namespace casemate::addon {

/// Our end of a stream socket of a child's. It never leaves native hands: a number on its way
/// to a net.Socket is lost, and stays open, where a worker is terminated just then.
class Stream : public Napi::ObjectWrap<Stream> {
public:
  static Napi::Function define(Napi::Env env);

  explicit Stream(const Napi::CallbackInfo& info);

private:
  void resume(const Napi::CallbackInfo& info);
  void pause(const Napi::CallbackInfo& info);
  void drain(const Napi::CallbackInfo& info);
  void write(const Napi::CallbackInfo& info);
  void finish(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);

  Napi::Value peer(const Napi::CallbackInfo& info);

  sys::Fd open(const Napi::CallbackInfo& info);
  long receive();
  void end_reading();
  void send();
  void end_writing(int error);
  void watch();

  std::uint64_t peer_ = 0;          // the inode of the other end, where it was made here
  sys::Fd fd_;                      // until close()
  std::unique_ptr<Poll> poll_;      // Destroyed before the descriptor.
  Napi::FunctionReference on_data_; // until the end
  bool is_reading_ = false;
  // The one write under way.
  Napi::Reference<Napi::Uint8Array> bytes_;
  std::size_t sent_ = 0;
  Napi::FunctionReference on_sent_;
};

} // namespace casemate::addon
