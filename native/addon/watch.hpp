// What the children of a launcher are heard by: their control sockets and pidfds, in one
// epoll instance that the event loop watches as a single descriptor.
//
// So a launch costs Node no system call and no wake-up of its own: the launcher, which is
// awake, adds the child's descriptors (jail/launcher.hpp), and Node wakes up when there is
// something to hear.
#pragma once

#include "addon/poll.hpp"
#include "sys/fd.hpp"
#include "sys/result.hpp"

#include <cstdint>
#include <functional>
#include <memory>
#include <napi.h>

namespace casemate::addon {

class Watch {
public:
  /// What to do when a descriptor is ready; its address is what the kernel knows of it.
  using Source = std::function<void()>;

  /// `collect` is called before any source: takes over what the launcher has done since, and
  /// says whether that was anything. Whom the launcher has added is known by then.
  static sys::Result<std::shared_ptr<Watch>> create(std::function<bool()> collect);
  static std::uint64_t tag(const Source& source) {
    return reinterpret_cast<std::uint64_t>(&source);
  }

  int fd() const { return epoll_.get(); }
  void start(Napi::Env env);
  /// With the launcher: nobody is heard any more.
  void stop() { poll_.reset(); }

  /// epoll_ctl(2). What is added is to be removed before it is closed: a process that is
  /// being born has a copy of it, and the kernel would go on telling of that.
  sys::SysError add(int fd, const Source& source, std::uint32_t events);
  void change(int fd, const Source& source, std::uint32_t events);
  void remove(int fd);

  /// Keeps the event loop alive until let_go() was called as often.
  void hold();
  void let_go();

private:
  void on_ready();

  sys::Fd epoll_;
  std::function<bool()> collect_;
  std::unique_ptr<Poll> poll_; // Destroyed before the descriptor.
  std::size_t holders_ = 0;
};

} // namespace casemate::addon
