#include "machine/console.hpp"

#include "sys/syscall.hpp"

#include <asm/errno.h>
#include <linux/poll.h>

#include <algorithm>

namespace casemate::machine {

namespace {

constexpr int msg_dontwait = 0x40;
constexpr int msg_nosignal = 0x4000;

/// A write looks up after as much as this: a reader that keeps pace must not keep the
/// machine from stopping.
constexpr std::size_t max_chunk = 1 << 20;

} // namespace

ConsoleStatus Console::write(std::span<const std::byte>& data) const {
  if (output_ < 0) {
    data = {};
  }
  for (std::size_t rest = std::min(data.size(), max_chunk); rest > 0;) {
    const long count =
        sys::call(__NR_sendto, output_, data.data(), rest, msg_dontwait | msg_nosignal, nullptr, 0);
    if (count >= 0) {
      data = data.subspan(static_cast<std::size_t>(count));
      rest -= static_cast<std::size_t>(count);
    } else if (count == -EAGAIN) {
      if (const auto status = wait_for(output_, POLLOUT); status != ConsoleStatus::Done) {
        return status;
      }
    } else if (count != -EINTR) {
      return ConsoleStatus::Closed;
    }
  }
  return data.empty() ? ConsoleStatus::Done : ConsoleStatus::Interrupted;
}

ConsoleStatus Console::read(std::span<std::byte> buffer, bool wait, std::size_t& size) const {
  size = 0;
  if (input_ < 0 || buffer.empty()) {
    return ConsoleStatus::Done;
  }
  for (;;) {
    const long count = sys::call(__NR_recvfrom, input_, buffer.data(), buffer.size(), msg_dontwait,
                                 nullptr, nullptr);
    if (count >= 0) {
      size = static_cast<std::size_t>(count);
      return ConsoleStatus::Done;
    }
    if (count == -EAGAIN) {
      if (!wait) {
        return ConsoleStatus::WouldBlock;
      }
      if (const auto status = wait_for(input_, POLLIN); status != ConsoleStatus::Done) {
        return status;
      }
    } else if (count != -EINTR) {
      return ConsoleStatus::Done; // broken off (ECONNRESET) is an end of input too
    }
  }
}

ConsoleStatus Console::wait_for(int socket, std::int16_t events) const {
  // Readable until it has been read from, so that it does not matter whether something
  // comes before this call or during it.
  pollfd descriptors[] = {{socket, events, 0}, {control_, POLLIN, 0}};
  sys::call(__NR_ppoll, descriptors, 2, nullptr, nullptr, 8);
  return descriptors[1].revents != 0 ? ConsoleStatus::Interrupted : ConsoleStatus::Done;
}

} // namespace casemate::machine
