#include "machine/virtio/net.hpp"

#include "sys/message.hpp"
#include "sys/syscall.hpp"
#include "vmm/wire.h"

#include <asm/errno.h>
#include <linux/eventpoll.h>
#include <linux/if_tun.h>
#include <linux/ioctl.h>

#include <algorithm>
#include <cstring>

namespace casemate::machine::virtio {

namespace {

// The socket of a stream is somebody else's too: each call says that it does not wait.
constexpr int msg_dontwait = 0x40;
constexpr int msg_nosignal = 0x4000;

/// In one turn, of either direction: other devices, and vCPUs that wait for the machine,
/// have theirs in between.
constexpr unsigned max_frames = 64;

constexpr std::uint64_t bit(unsigned number) { return std::uint64_t{1} << number; }

// Section 5.1.3. <linux/virtio_net.h> is no C++.
constexpr std::uint64_t feature_checksum = bit(0);
constexpr std::uint64_t feature_guest_checksum = bit(1);
constexpr std::uint64_t feature_mtu = bit(3);
constexpr std::uint64_t feature_mac = bit(5);
constexpr std::uint64_t feature_guest_tso4 = bit(7);
constexpr std::uint64_t feature_guest_tso6 = bit(8);
constexpr std::uint64_t feature_guest_ecn = bit(9);
constexpr std::uint64_t feature_guest_ufo = bit(10);
constexpr std::uint64_t feature_host_tso4 = bit(11);
constexpr std::uint64_t feature_host_tso6 = bit(12);
constexpr std::uint64_t feature_host_ecn = bit(13);
constexpr std::uint64_t feature_host_ufo = bit(14);
constexpr std::uint64_t feature_mergeable_buffers = bit(15);
constexpr std::uint64_t feature_status = bit(16);

constexpr std::uint16_t status_link_up = 1;

/// Of the header: how many chains the frame is in.
constexpr std::size_t num_buffers_offset = 10;

/// What of a tap stands behind which of the driver's wishes. The tap does all of it with
/// what the guest sends; what the guest is to be sent is for its driver to say.
struct Offload {
  std::uint32_t tap;
  std::uint64_t host;
  std::uint64_t guest;
};
constexpr Offload offload_table[] = {
    {TUN_F_CSUM, feature_checksum, feature_guest_checksum},
    {TUN_F_TSO4, feature_host_tso4, feature_guest_tso4},
    {TUN_F_TSO6, feature_host_tso6, feature_guest_tso6},
    {TUN_F_TSO_ECN, feature_host_ecn, feature_guest_ecn},
    {TUN_F_UFO, feature_host_ufo, feature_guest_ufo},
};

std::uint64_t features_of(const NetOptions& options) {
  std::uint64_t features = feature_mac | feature_status | feature_mergeable_buffers;
  if (options.mtu != 0) {
    features |= feature_mtu;
  }
  for (const Offload& offload : offload_table) {
    if ((options.offloads & offload.tap) != 0) {
      features |= offload.host | offload.guest;
    }
  }
  return features;
}

/// What a tap may leave to a driver that has accepted these features.
std::uint32_t offloads_of(std::uint64_t features) {
  if ((features & feature_guest_checksum) == 0) {
    return 0; // all others rest on it
  }
  std::uint32_t offloads = 0;
  for (const Offload& offload : offload_table) {
    if ((features & offload.guest) != 0) {
      offloads |= offload.tap;
    }
  }
  // By itself it says nothing, and the kernel refuses it.
  constexpr std::uint32_t segmentation = TUN_F_TSO4 | TUN_F_TSO6;
  return (offloads & segmentation) != 0 ? offloads : offloads & ~std::uint32_t{TUN_F_TSO_ECN};
}

long set_offloads(int tap, std::uint32_t offloads) {
  return sys::call(__NR_ioctl, tap, TUNSETOFFLOAD, std::uint64_t{offloads});
}

} // namespace

// ---- Buffers to receive into ----------------------------------------------------

void ReceiveBuffers::fill(Queue& queue, Chain& scratch, std::size_t wanted, std::size_t chains) {
  const std::size_t most = std::min<std::size_t>(chains, queue.size());
  while (size_ < wanted && !is_full_ && chain_count_ < most && queue.pop(scratch)) {
    const auto segments = scratch.writable();
    if (segments.size() > segments_.size() - segment_count_) {
      queue.put_back(1);
      is_full_ = true;
      return;
    }
    std::ranges::copy(segments, segments_.begin() + static_cast<std::ptrdiff_t>(segment_count_));
    chains_[chain_count_++] = {scratch.head(), static_cast<std::uint16_t>(segments.size()),
                               scratch.writable_size()};
    segment_count_ += segments.size();
    size_ += scratch.writable_size();
  }
  is_full_ = is_full_ || chain_count_ == most;
}

void ReceiveBuffers::clear() {
  segment_count_ = 0;
  chain_count_ = 0;
  size_ = 0;
  is_full_ = false;
}

void ReceiveBuffers::write(std::size_t offset, std::span<const std::byte> from) const {
  for (const Segment& segment : segments()) {
    if (offset >= segment.size) {
      offset -= segment.size;
      continue;
    }
    const auto part = from.first(std::min(from.size(), segment.size - offset));
    std::memcpy(segment.data + offset, part.data(), part.size());
    from = from.subspan(part.size());
    if (from.empty()) {
      return;
    }
    offset = 0;
  }
}

std::uint16_t ReceiveBuffers::chains_of(std::size_t size) const {
  std::uint16_t count = 0;
  for (std::size_t there = 0; there < size; ++count) {
    there += chains_[count].size;
  }
  return count;
}

void ReceiveBuffers::use(Queue& queue, std::size_t size) {
  const std::size_t count = chains_of(size);
  std::size_t segments = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto written = static_cast<std::uint32_t>(std::min<std::size_t>(size, chains_[i].size));
    queue.stage(chains_[i].head, written);
    size -= written;
    size_ -= chains_[i].size;
    segments += chains_[i].segments;
  }
  queue.publish();
  std::copy(chains_.begin() + count, chains_.begin() + chain_count_, chains_.begin());
  std::copy(segments_.begin() + segments, segments_.begin() + segment_count_, segments_.begin());
  chain_count_ -= count;
  segment_count_ -= segments;
  is_full_ = false;
}

// ---- The device -------------------------------------------------------------------

Net::Net(const NetOptions& options)
    : DeviceOf(DeviceType::Net, features_of(options), 2), fd_(options.fd),
      offloads_(options.offloads), backend_(options.backend), receive_limit_(options.receive_limit),
      send_limit_(options.send_limit) {
  config_.mac = options.mac;
  config_.status = status_link_up;
  config_.mtu = options.mtu;
  source_.context = this;
  source_.ready = [](void* context, std::uint32_t events) {
    auto& net = *static_cast<Net*>(context);
    if ((events & ~EPOLLIN) != 0 && net.waits_to_send_) {
      net.waits_to_send_ = false;
      net.transmit();
    }
    if ((events & ~EPOLLOUT) != 0 && !net.wants_buffers_ && !net.rests_receiving_) {
      net.receive();
    }
  };
  receive_timer_.context = this;
  receive_timer_.due = [](void* context) {
    auto& net = *static_cast<Net*>(context);
    net.rests_receiving_ = false;
    net.receive();
  };
  send_timer_.context = this;
  send_timer_.due = [](void* context) {
    auto& net = *static_cast<Net*>(context);
    net.rests_sending_ = false;
    net.transmit();
  };
}

std::uint32_t Net::probe_offloads(int tap) {
  constexpr std::uint32_t usual = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
  std::uint32_t found = 0;
  for (const std::uint32_t offloads : {usual | TUN_F_UFO, usual, std::uint32_t{TUN_F_CSUM}}) {
    if (set_offloads(tap, offloads) == 0) {
      found = offloads;
      break;
    }
  }
  set_offloads(tap, 0); // until a driver says what it can take
  return found;
}

void Net::on_activate(std::uint64_t features) {
  is_active_ = true;
  is_mergeable_ = (features & feature_mergeable_buffers) != 0;
  constexpr std::size_t vlan_tag = 4;
  constexpr std::size_t usual_mtu = 1500;
  const std::uint32_t offloads = offloads_of(features);
  const bool has_large_frames = (offloads & ~std::uint32_t{TUN_F_CSUM}) != 0;
  largest_frame_ = has_large_frames
                       ? max_frame
                       : std::max<std::size_t>(config_.mtu, usual_mtu) + min_frame + vlan_tag;
  if (offloads_ != 0 && !is_lost_) {
    if (const long result = set_offloads(fd_, offloads); result < 0) {
      lose(CASEMATE_OPERATION_SETUP, result);
    }
  }
  receive();
  transmit();
}

void Net::on_reset() {
  is_active_ = false;
  wants_buffers_ = false;
  waits_to_send_ = false;
  rests_receiving_ = false;
  rests_sending_ = false;
  loop().clear_timer(receive_timer_);
  loop().clear_timer(send_timer_);
  buffers_.clear();
  watch();
}

void Net::on_kick(std::uint16_t queue) {
  if (queue == receive_queue) {
    if (!rests_receiving_) {
      receive();
    }
  } else if (!waits_to_send_ && !rests_sending_) {
    transmit();
  }
}

void Net::on_read_config(std::uint32_t offset, std::span<std::byte> value) {
  read_from_config(config_, offset, value);
}

/// Asks for what can be done something about, and for nothing else.
void Net::watch() {
  std::uint32_t events = 0;
  if (is_active_ && !is_lost_) {
    events = (wants_buffers_ || rests_receiving_ ? 0 : EPOLLIN) | (waits_to_send_ ? EPOLLOUT : 0);
  }
  if (events == watched_) {
    return;
  }
  sys::SysError error{};
  if (events == 0) {
    loop().remove(source_);
  } else if (watched_ == 0) {
    error = loop().add(source_, fd_, events);
  } else {
    error = loop().change(source_, events);
  }
  watched_ = error ? 0 : events;
  if (error) {
    lose(CASEMATE_OPERATION_SETUP, -error.number);
  }
}

/// The link is down from here on: what the guest sends is lost, as on a cable without a
/// plug, and it can read that so it is.
void Net::lose(std::uint32_t operation, long result) {
  if (is_lost_) {
    return;
  }
  is_lost_ = true;
  config_.status = 0;
  notify_config();
  report(operation, static_cast<int>(-result));
}

// ---- To the guest -----------------------------------------------------------------

void Net::receive() {
  Queue& queue = this->queue(receive_queue);
  queue.disable_kicks();
  wants_buffers_ = false;
  unsigned frames = 0;
  while (is_active_ && !is_lost_ && frames < max_frames) {
    rests_receiving_ = !may_go_on(receive_limit_, receive_timer_);
    if (rests_receiving_) {
      break;
    }
    const Received received =
        backend_ == NetBackend::Tap ? receive_from_tap() : receive_from_stream();
    if (received == Received::Nothing) {
      break;
    }
    // Buffers that come in this moment are told of by enable_kicks(), or else by a kick.
    if (received == Received::NoBuffers && !queue.enable_kicks()) {
      wants_buffers_ = true;
      break;
    }
    ++frames;
  }
  if (frames == max_frames) {
    kick_again(receive_queue);
  }
  notify(queue);
  watch();
}

/// Whether a frame of this size, with its header, can be taken from behind the descriptor:
/// it has a place, or never will.
bool Net::has_room(std::size_t size) {
  Queue& queue = this->queue(receive_queue);
  buffers_.fill(queue, chain_, header_size + max_frame, is_mergeable_ ? max_queue_size : 1);
  if (buffers_.size() >= size) {
    return true;
  }
  if (buffers_.is_full() && buffers_.size() < header_size + min_frame) {
    fail(); // there are no buffers so small
    is_active_ = false;
    return false;
  }
  return buffers_.is_full();
}

void Net::finish_frame(std::size_t size) {
  const std::uint16_t count = buffers_.chains_of(size);
  buffers_.write(num_buffers_offset, std::as_bytes(std::span(&count, 1)));
  buffers_.use(queue(receive_queue), size);
  charge(receive_limit_, size - header_size);
}

/// Straight into the guest's memory, header and all.
Net::Received Net::receive_from_tap() {
  const std::size_t largest = header_size + largest_frame_;
  if (!has_room(largest)) {
    return Received::NoBuffers;
  }
  const auto segments = buffers_.segments();
  const long size = sys::call_retry(__NR_readv, fd_, segments.data(), segments.size());
  if (size == -EAGAIN) {
    return Received::Nothing;
  }
  if (size <= 0) {
    lose(CASEMATE_OPERATION_READ, size == 0 ? -EIO : size);
    return Received::Nothing;
  }
  const auto got = static_cast<std::size_t>(size);
  // One that fills all of the buffers was cut short, where it could have been larger: lost.
  const bool is_whole = got < buffers_.size() || got >= largest;
  if (is_whole && got >= header_size + min_frame) {
    finish_frame(got);
  }
  return Received::Frame;
}

Net::Received Net::receive_from_stream() {
  for (;;) {
    const std::size_t there = incoming_end_ - incoming_begin_;
    if (there < length_size) {
      if (const Received received = receive_into_buffer(); received != Received::Frame) {
        return received;
      }
      continue;
    }
    std::uint32_t length;
    std::memcpy(&length, incoming_.data() + incoming_begin_, sizeof length);
    length = __builtin_bswap32(length);
    if (length < min_frame || length > max_frame) {
      lose(CASEMATE_OPERATION_READ, -EPROTO); // where would the next one begin?
      return Received::Nothing;
    }
    if (there < length_size + length) {
      if (const Received received = receive_into_buffer(); received != Received::Frame) {
        return received;
      }
      continue;
    }
    const std::size_t size = header_size + length;
    if (!has_room(size)) {
      return Received::NoBuffers;
    }
    if (buffers_.size() >= size) {
      constexpr std::array<std::byte, header_size> no_offloads{};
      buffers_.write(0, no_offloads);
      buffers_.write(header_size,
                     std::span(incoming_).subspan(incoming_begin_ + length_size, length));
      finish_frame(size);
    }
    incoming_begin_ += length_size + length;
    return Received::Frame;
  }
}

/// More of the stream; Frame where there was some.
Net::Received Net::receive_into_buffer() {
  // Half of it has room for the largest frame, and less than that is here.
  if (incoming_end_ > incoming_.size() / 2) {
    std::copy(incoming_.begin() + incoming_begin_, incoming_.begin() + incoming_end_,
              incoming_.begin());
    incoming_end_ -= incoming_begin_;
    incoming_begin_ = 0;
  }
  const long size =
      sys::call_retry(__NR_recvfrom, fd_, incoming_.data() + incoming_end_,
                      incoming_.size() - incoming_end_, msg_dontwait, nullptr, nullptr);
  if (size == -EAGAIN) {
    return Received::Nothing;
  }
  if (size <= 0) {
    lose(CASEMATE_OPERATION_READ, size == 0 ? -ECONNRESET : size);
    return Received::Nothing;
  }
  incoming_end_ += static_cast<std::size_t>(size);
  return Received::Frame;
}

// ---- From the guest ---------------------------------------------------------------

void Net::transmit() {
  Queue& queue = this->queue(transmit_queue);
  queue.disable_kicks();
  unsigned frames = 0;
  waits_to_send_ = is_active_ && !is_lost_ && send_unsent() == Sent::Wait;
  while (is_active_ && !waits_to_send_ && frames < max_frames) {
    rests_sending_ = !may_go_on(send_limit_, send_timer_);
    if (rests_sending_ || !queue.pop(chain_)) {
      break;
    }
    ++frames;
    const std::uint32_t size = chain_.readable_size();
    const bool is_frame = size >= header_size + min_frame && size <= header_size + max_frame;
    if (is_frame && !is_lost_) {
      const Sent sent = backend_ == NetBackend::Tap ? send_to_tap() : send_to_stream();
      if (sent == Sent::Wait) {
        queue.put_back(1);
        waits_to_send_ = true;
        break;
      }
      charge(send_limit_, size - header_size);
    }
    queue.push(chain_.head(), 0);
    waits_to_send_ = unsent_begin_ < unsent_end_ && !is_lost_;
  }
  if (!waits_to_send_ && !rests_sending_ && (frames == max_frames || queue.enable_kicks())) {
    kick_again(transmit_queue);
  }
  notify(queue);
  watch();
}

/// Straight from the guest's memory, header and all: what stands in that, the kernel checks.
Net::Sent Net::send_to_tap() {
  const auto segments = chain_.readable();
  const long result = sys::call_retry(__NR_writev, fd_, segments.data(), segments.size());
  if (result == -EAGAIN) {
    return Sent::Wait;
  }
  if (result == -EBADFD || result == -EBADF) {
    lose(CASEMATE_OPERATION_WRITE, result);
  }
  // All other errors are of this frame (EINVAL), or of this moment (EIO: the tap is down).
  return Sent::Done;
}

Net::Sent Net::send_to_stream() {
  const std::uint32_t frame = chain_.readable_size() - header_size;
  const std::uint32_t length = __builtin_bswap32(frame);
  std::memcpy(unsent_.data(), &length, sizeof length);
  std::size_t count = 0;
  vectors_[count++] = {unsent_.data(), length_size};
  std::size_t skip = header_size;
  for (const Segment& segment : chain_.readable()) {
    const std::size_t skipped = std::min(skip, segment.size);
    skip -= skipped;
    if (skipped < segment.size) {
      vectors_[count++] = {segment.data + skipped, segment.size - skipped};
    }
  }
  static_assert(sizeof(Segment) == sizeof(sys::IoVector));
  sys::MessageHeader message;
  message.vectors = reinterpret_cast<sys::IoVector*>(vectors_.data());
  message.vector_count = count;
  const long sent = sys::call_retry(__NR_sendmsg, fd_, &message, msg_dontwait | msg_nosignal);
  if (sent == -EAGAIN) {
    return Sent::Wait;
  }
  if (sent < 0) {
    lose(CASEMATE_OPERATION_WRITE, sent);
    return Sent::Done;
  }
  const std::size_t size = length_size + frame;
  if (static_cast<std::size_t>(sent) < size) {
    chain_.read(header_size, std::span(unsent_).subspan(length_size, frame));
    unsent_begin_ = static_cast<std::size_t>(sent);
    unsent_end_ = size;
  }
  return Sent::Done;
}

Net::Sent Net::send_unsent() {
  while (unsent_begin_ < unsent_end_) {
    const long sent =
        sys::call_retry(__NR_sendto, fd_, unsent_.data() + unsent_begin_,
                        unsent_end_ - unsent_begin_, msg_dontwait | msg_nosignal, nullptr, 0);
    if (sent == -EAGAIN) {
      return Sent::Wait;
    }
    if (sent < 0) {
      lose(CASEMATE_OPERATION_WRITE, sent);
      break;
    }
    unsent_begin_ += static_cast<std::size_t>(sent);
  }
  return Sent::Done;
}

} // namespace casemate::machine::virtio
