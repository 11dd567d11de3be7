#include "guest/agent/stream.hpp"

#include "sys/syscall.hpp"

#include <algorithm>
#include <cerrno>
#include <sys/socket.h>

namespace casemate::agent {

const char* Reader::string() {
  const auto* text = reinterpret_cast<const char*>(rest_.data());
  for (std::size_t size = 0; size < rest_.size(); ++size) {
    if (text[size] == 0) {
      rest_ = rest_.subspan(size + 1);
      return text;
    }
  }
  return nullptr;
}

bool Stream::receive(Frame& frame) {
  casemate_agent_frame head;
  std::array<std::byte, sizeof head> bytes;
  if (!receive_all(bytes.data(), bytes.size())) {
    return false;
  }
  std::memcpy(&head, bytes.data(), sizeof head);
  if (head.size > received_.size() || !receive_all(received_.data(), head.size)) {
    return false;
  }
  frame = {head.type, head.stream, {received_.data(), head.size}};
  return true;
}

long Stream::pass_on(std::uint16_t stream, int fd, std::size_t limit) {
  constexpr std::size_t head_size = sizeof(casemate_agent_frame);
  const long size =
      sys::call_retry(__NR_read, fd, sent_.data() + head_size, std::min(limit, most_at_once));
  if (size <= 0) {
    return size;
  }
  const casemate_agent_frame head{CASEMATE_AGENT_DATA, stream, static_cast<std::uint32_t>(size)};
  std::memcpy(sent_.data(), &head, head_size);
  return send_all(sent_.data(), head_size + static_cast<std::size_t>(size)) ? size : -EPIPE;
}

bool Stream::fail(const char* call, long error) {
  casemate_agent_failed failed{};
  failed.error = static_cast<std::uint32_t>(error < 0 ? -error : error);
  for (std::size_t i = 0; i + 1 < sizeof failed.call && call[i] != 0; ++i) {
    failed.call[i] = call[i];
  }
  return send(CASEMATE_AGENT_FAILED, 0, failed);
}

void Stream::finish() {
  sys::call(__NR_shutdown, fd_, SHUT_WR);
  while (sys::call_retry(__NR_read, fd_, received_.data(), received_.size()) > 0) {
  }
}

bool Stream::send_bytes(casemate_agent_type type, std::uint16_t stream, const void* bytes,
                        std::size_t size) {
  constexpr std::size_t head_size = sizeof(casemate_agent_frame);
  if (size > most_at_once) {
    return false;
  }
  const casemate_agent_frame head{static_cast<std::uint16_t>(type), stream,
                                  static_cast<std::uint32_t>(size)};
  std::memcpy(sent_.data(), &head, head_size);
  if (size > 0) {
    std::memcpy(sent_.data() + head_size, bytes, size);
  }
  return send_all(sent_.data(), head_size + size);
}

bool Stream::send_all(const std::byte* bytes, std::size_t size) {
  while (size > 0) {
    const long sent = sys::call_retry(__NR_sendto, fd_, bytes, size, MSG_NOSIGNAL, nullptr, 0);
    if (sent <= 0) {
      return false;
    }
    bytes += sent;
    size -= static_cast<std::size_t>(sent);
  }
  return true;
}

bool Stream::receive_all(std::byte* bytes, std::size_t size) {
  while (size > 0) {
    const long received = sys::call_retry(__NR_read, fd_, bytes, size);
    if (received <= 0) {
      return false;
    }
    bytes += received;
    size -= static_cast<std::size_t>(received);
  }
  return true;
}

} // namespace casemate::agent
