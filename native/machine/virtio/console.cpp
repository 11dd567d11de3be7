#include "machine/virtio/console.hpp"

#include "sys/syscall.hpp"

#include <asm/errno.h>
#include <linux/eventpoll.h>

namespace casemate::machine::virtio {

namespace {

// Section 5.3.2
constexpr std::uint16_t receive_queue = 0;
constexpr std::uint16_t transmit_queue = 1;
constexpr std::uint16_t queues = 2;

constexpr int msg_dontwait = 0x40;
constexpr int msg_nosignal = 0x4000;

} // namespace

Console::Console(int output, int input)
    : DeviceOf(DeviceType::Console, 0, queues), output_(output), input_(input) {
  output_room_.ready = [](void* console, std::uint32_t /* events */) {
    static_cast<Console*>(console)->send_output();
  };
  output_room_.context = this;
  input_data_.ready = [](void* console, std::uint32_t /* events */) {
    static_cast<Console*>(console)->receive_input();
  };
  input_data_.context = this;
}

void Console::on_reset() {
  loop().remove(output_room_);
  loop().remove(input_data_);
  has_output_ = false;
}

void Console::on_kick(std::uint16_t index) {
  if (index == transmit_queue) {
    send_output();
  } else {
    receive_input();
  }
}

/// As much as Node takes now. The rest stays with the guest until it reads on.
void Console::send_output() {
  Queue& queue = this->queue(transmit_queue);
  queue.disable_kicks();
  unsigned count = 0;
  for (; count < queue.size(); ++count) {
    if (!has_output_) {
      sent_ = 0;
      has_output_ = queue.pop(output_chain_);
    }
    if (!has_output_) {
      break;
    }
    if (!send_chain()) {
      notify(queue);
      watch(output_room_, output_, EPOLLOUT);
      return;
    }
    has_output_ = false;
    queue.push(output_chain_.head(), 0);
  }
  loop().remove(output_room_);
  if (queue.enable_kicks()) {
    kick_again(transmit_queue);
  }
  notify(queue);
}

/// False where Node has yet to read.
bool Console::send_chain() {
  std::size_t skip = sent_;
  for (const Segment& segment : output_chain_.readable()) {
    if (skip >= segment.size) {
      skip -= segment.size;
      continue;
    }
    const std::size_t size = segment.size - skip;
    const long sent = sys::call_retry(__NR_sendto, output_, segment.data + skip, size,
                                      msg_dontwait | msg_nosignal, nullptr, 0);
    if (sent < 0 && sent != -EAGAIN) {
      return true; // where nobody can read any more, all of it is done with
    }
    sent_ += sent > 0 ? static_cast<std::uint32_t>(sent) : 0;
    if (sent < 0 || static_cast<std::size_t>(sent) < size) {
      return false;
    }
    skip = 0;
  }
  return true;
}

/// As much as the guest has buffers for. What is left stays in the socket.
void Console::receive_input() {
  Queue& queue = this->queue(receive_queue);
  queue.disable_kicks();
  bool is_waiting = false;
  for (unsigned count = 0; count < queue.size() && !is_waiting && queue.pop(input_chain_);
       ++count) {
    if (const std::optional<std::uint32_t> received = receive_chain()) {
      queue.push(input_chain_.head(), *received);
    } else {
      queue.put_back(1);
      is_waiting = true;
    }
  }
  if (is_waiting && !is_input_over_) {
    watch(input_data_, input_, EPOLLIN);
  } else {
    loop().remove(input_data_);
    if (!is_waiting && queue.enable_kicks()) {
      kick_again(receive_queue);
    }
  }
  notify(queue);
}

/// How much there was for it; nothing where there is none, or none any more. Its end is told
/// to nobody: a console has none.
std::optional<std::uint32_t> Console::receive_chain() {
  std::uint32_t received = 0;
  for (const Segment& segment : input_chain_.writable()) {
    const long size = sys::call_retry(__NR_recvfrom, input_, segment.data, segment.size,
                                      msg_dontwait, nullptr, nullptr);
    if (size <= 0) {
      is_input_over_ = size != -EAGAIN;
      return received > 0 ? std::optional(received) : std::nullopt;
    }
    received += static_cast<std::uint32_t>(size);
    if (static_cast<std::size_t>(size) < segment.size) {
      break;
    }
  }
  return received;
}

void Console::watch(sys::EventLoop::Source& source, int fd, std::uint32_t events) {
  if (source.fd < 0 && loop().add(source, fd, events)) {
    fail(); // the host is out of memory
  }
}

} // namespace casemate::machine::virtio
