// One request's stream. Its frames are received and sent whole: Node reads always, whatever
// becomes of the bytes (that is what credit is for), so waiting here never waits for itself.
#pragma once

#include "guest/agent-abi.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace casemate::agent {

struct Frame {
  std::uint16_t type = 0;
  std::uint16_t stream = 0;
  std::span<const std::byte> payload; // valid until the next one is received

  /// The payload as a struct of exactly its size.
  template <typename T> bool get(T& value) const {
    if (payload.size() != sizeof value) {
      return false;
    }
    std::memcpy(&value, payload.data(), sizeof value);
    return true;
  }
};

/// Takes a payload apart: a struct, then strings.
class Reader {
public:
  explicit Reader(std::span<const std::byte> payload) : rest_(payload) {}

  template <typename T> bool get(T& value) {
    if (rest_.size() < sizeof value) {
      return false;
    }
    std::memcpy(&value, rest_.data(), sizeof value);
    rest_ = rest_.subspan(sizeof value);
    return true;
  }

  /// The next string, with its NUL where it lies; null where there is none.
  const char* string();

  bool at_end() const { return rest_.empty(); }

private:
  std::span<const std::byte> rest_;
};

class Stream {
public:
  void open(int fd) { fd_ = fd; }
  int fd() const { return fd_; }

  /// Waits for the next frame. False at the end, and for what is no frame.
  bool receive(Frame& frame);

  bool send(casemate_agent_type type, std::uint16_t stream = 0) {
    return send_bytes(type, stream, nullptr, 0);
  }
  template <typename T> bool send(casemate_agent_type type, std::uint16_t stream, const T& value) {
    return send_bytes(type, stream, &value, sizeof value);
  }
  bool send_credit(std::uint16_t stream, std::size_t bytes) {
    return send(CASEMATE_AGENT_CREDIT, stream,
                casemate_agent_credit{static_cast<std::uint32_t>(bytes)});
  }

  /// Reads from `fd` at most `limit` bytes and sends them: without copying them once more.
  /// Returns what read(2) did; -EPIPE where nobody takes them.
  long pass_on(std::uint16_t stream, int fd, std::size_t limit);

  bool fail(const char* call, long error);

  /// The request is done: waits until Node has read the last frame and hangs up. To close a
  /// socket with something unread in it could cut off what was sent last.
  void finish();

private:
  bool send_bytes(casemate_agent_type type, std::uint16_t stream, const void* bytes,
                  std::size_t size);
  bool send_all(const std::byte* bytes, std::size_t size);
  bool receive_all(std::byte* bytes, std::size_t size);

  static constexpr std::size_t most_at_once = 65536; // of DATA
  int fd_ = 0; // nothing here but zeroes, or all of it lay in the file
  std::array<std::byte, CASEMATE_AGENT_MAX_PAYLOAD> received_{};
  std::array<std::byte, sizeof(casemate_agent_frame) + most_at_once> sent_{};
};

} // namespace casemate::agent
