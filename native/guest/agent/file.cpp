#include "guest/agent/file.hpp"

#include "sys/fd.hpp"
#include "sys/syscall.hpp"

#include <cerrno>
#include <fcntl.h>

namespace casemate::agent {

namespace {

/// Without O_NONBLOCK a FIFO would wait for its other end.
constexpr int always = O_CLOEXEC | O_NOCTTY | O_NONBLOCK;

bool write_all(int fd, std::span<const std::byte> bytes, long& error) {
  while (!bytes.empty()) {
    const long written = sys::call_retry(__NR_write, fd, bytes.data(), bytes.size());
    if (written < 0) {
      error = written;
      return false;
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return true;
}

} // namespace

void read_file(Stream& stream, std::span<const std::byte> request) {
  Reader reader(request);
  const char* path = reader.string();
  if (path == nullptr || !reader.at_end()) {
    return;
  }
  const sys::Fd file{static_cast<int>(sys::call_retry(__NR_open, path, O_RDONLY | always))};
  if (!file) {
    stream.fail("open", file.get());
    return;
  }
  std::size_t credit = CASEMATE_AGENT_WINDOW;
  for (;;) {
    while (credit == 0) {
      Frame frame;
      casemate_agent_credit more;
      if (!stream.receive(frame) || frame.type != CASEMATE_AGENT_CREDIT || !frame.get(more)) {
        return;
      }
      credit = more.bytes;
    }
    const long size = stream.pass_on(CASEMATE_AGENT_STDOUT, file.get(), credit);
    if (size < 0) {
      stream.fail("read", size);
      return;
    }
    if (size == 0) {
      stream.send(CASEMATE_AGENT_CLOSE, CASEMATE_AGENT_STDOUT);
      stream.send(CASEMATE_AGENT_EXITED, 0, casemate_agent_exited{});
      return;
    }
    credit -= static_cast<std::size_t>(size);
  }
}

void write_file(Stream& stream, std::span<const std::byte> request) {
  Reader reader(request);
  casemate_agent_write options;
  const bool complete = reader.get(options);
  const char* path = complete ? reader.string() : nullptr;
  if (path == nullptr || !reader.at_end()) {
    return;
  }
  constexpr int flags = O_WRONLY | O_CREAT | O_TRUNC | always;
  const std::uint32_t mode = options.set_mode != 0 ? options.mode : 0666;
  sys::Fd file{static_cast<int>(sys::call_retry(__NR_open, path, flags, mode))};
  if (!file) {
    stream.fail("open", file.get());
    return;
  }
  // Also where it was there before, and whatever the umask says.
  if (options.set_mode != 0) {
    if (const long error = sys::call(__NR_fchmod, file.get(), mode); error < 0) {
      stream.fail("fchmod", error);
      return;
    }
  }
  for (Frame frame; stream.receive(frame);) {
    long error = 0;
    if (frame.type == CASEMATE_AGENT_DATA) {
      if (!write_all(file.get(), frame.payload, error)) {
        stream.fail("write", error);
        return;
      }
      stream.send_credit(CASEMATE_AGENT_STDIN, frame.payload.size());
    } else if (frame.type == CASEMATE_AGENT_CLOSE) {
      // Some file systems (network ones, with quotas) tell of a failed write only here.
      if (error = sys::call(__NR_close, file.release()); error < 0) {
        stream.fail("close", error);
        return;
      }
      stream.send(CASEMATE_AGENT_EXITED, 0, casemate_agent_exited{});
      return;
    } else {
      return;
    }
  }
}

} // namespace casemate::agent
