#include "machine/virtio/vsock_streams.hpp"

#include "sys/clock.hpp"
#include "sys/syscall.hpp"

#include <asm/errno.h>
#include <linux/eventpoll.h>
#include <linux/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace casemate::machine::virtio {

namespace {

constexpr int msg_dontwait = 0x40;
constexpr int msg_nosignal = 0x4000;
constexpr int shut_read = 0;
constexpr int shut_write = 1;

/// How long to wait for a Node that has more to read than it does.
constexpr std::uint64_t retry_after_ns = 1'000'000;

/// What is watched, as bits.
constexpr std::uint8_t watch_data = 1;
constexpr std::uint8_t watch_room = 2;
constexpr std::uint8_t watch_nothing = 4;

constexpr std::uint8_t bit(StreamEvent event) {
  return static_cast<std::uint8_t>(1u << static_cast<unsigned>(event));
}

/// Calls visit(data, size) for each contiguous part, until it returns false.
template <typename Visit>
void for_each_part(const VsockStreams::Payload& payload, const Visit& visit) {
  std::size_t skip = payload.offset;
  std::size_t rest = payload.size;
  for (const Segment& segment : payload.segments) {
    if (skip >= segment.size) {
      skip -= segment.size;
      continue;
    }
    const std::size_t size = std::min(segment.size - skip, rest);
    if (size == 0 || !visit(segment.data + skip, size)) {
      return;
    }
    skip = 0;
    rest -= size;
  }
}

/// What the guest may still be sent, by its own numbers: whatever they are, it gets no more
/// than it has room for in its queue.
std::uint32_t credit_of(std::uint32_t sent, std::uint32_t fwd_cnt, std::uint32_t buf_alloc) {
  const std::uint32_t under_way = sent - fwd_cnt;
  return under_way < buf_alloc ? buf_alloc - under_way : 0;
}

} // namespace

VsockStreams::VsockStreams(Storage& storage, sys::EventLoop& loop, const Listener& node,
                           const Carrier& carrier)
    : storage_(storage), loop_(loop), node_(node), carrier_(carrier) {
  retry_.due = on_retry;
  retry_.context = this;
}

// ---- The table ----

VsockStreams::Stream* VsockStreams::streams() { return storage_.streams.data(); }

/// As large as its window. Those whose windows are large are handed out first.
std::span<std::byte> VsockStreams::buffer_of(const Stream& stream) {
  const std::size_t index = link_of(stream) - 1u;
  if (index < ample_streams) {
    return storage_.buffers[index];
  }
  return storage_.small_buffers[index - ample_streams];
}

VsockStreams::Link& VsockStreams::bucket_of(std::uint32_t guest_port, std::uint32_t host_port) {
  const std::uint32_t hash = (guest_port ^ (host_port << 16 | host_port >> 16)) * 0x9e3779b1u;
  return storage_.buckets[hash >> 22];
}
static_assert(1u << (32 - 22) == 1024);

VsockStreams::Stream* VsockStreams::find(std::uint32_t guest_port, std::uint32_t host_port) {
  Stream* stream = stream_of(bucket_of(guest_port, host_port));
  while (stream != nullptr &&
         (stream->guest_port != guest_port || stream->host_port != host_port)) {
    stream = stream_of(stream->next);
  }
  return stream;
}

/// A new stream that the guest knows of; null where there is no room.
VsockStreams::Stream* VsockStreams::begin(std::uint32_t guest_port, std::uint32_t host_port) {
  Stream* stream = stream_of(first_free_);
  if (stream != nullptr) {
    first_free_ = stream->next;
  } else if (used_streams_ < max_streams) {
    stream = &streams()[used_streams_++];
  } else {
    return nullptr;
  }
  stream->guest_port = guest_port;
  stream->host_port = host_port;
  Link& bucket = bucket_of(guest_port, host_port);
  stream->next = std::exchange(bucket, link_of(*stream));
  return stream;
}

/// The guest knows of it no more: what it says of these ports is about another one.
void VsockStreams::forget(Stream& stream) {
  if (stream.guest == Guest::Nothing) {
    return;
  }
  stream.guest = Guest::Nothing;
  stream.owes_first = false;
  Link* link = &bucket_of(stream.guest_port, stream.host_port);
  while (*link != link_of(stream)) {
    link = &stream_of(*link)->next;
  }
  *link = stream.next;
}

void VsockStreams::free_if_done(Stream& stream) {
  if (stream.guest != Guest::Nothing || stream.fd != 0 || stream.untold != 0 || stream.is_asked ||
      stream.is_queued) {
    return;
  }
  if (stream.has_buffered) {
    const auto buffer = buffer_of(stream);
    sys::call(__NR_madvise, buffer.data(), buffer.size(), MADV_DONTNEED);
  }
  stream = {};
  stream.next = std::exchange(first_free_, link_of(stream));
}

// ---- From Node ----

/// False where the kernel has no memory to watch it.
bool VsockStreams::give_socket(Stream& stream, sys::Fd socket) {
  Watch& watch = storage_.watches[link_of(stream) - 1u];
  watch.streams = this;
  watch.source.ready = on_ready;
  watch.source.context = &watch;
  if (loop_.add(watch.source, socket.get(), 0)) {
    return false;
  }
  stream.fd = socket.release();
  return true;
}

void VsockStreams::connect(std::uint32_t id, std::uint32_t port, sys::Fd socket, bool is_there) {
  Stream* stream = nullptr;
  if (is_there && socket) {
    // A port of ours that is not in use between the two.
    do {
      next_host_port_ = next_host_port_ % 0x7fffffff + 1;
    } while (find(port, next_host_port_) != nullptr);
    stream = begin(port, next_host_port_);
  }
  if (stream == nullptr) {
    node_.tell(node_.context, StreamEvent::Refused, id, 0, true);
    return;
  }
  stream->id = id;
  stream->guest = Guest::IsAsked;
  stream->owes_first = true;
  if (!give_socket(*stream, std::move(socket))) {
    return reset(*stream, StreamBreak::Host);
  }
  enqueue(*stream);
}

bool VsockStreams::accept(std::uint32_t id, sys::Fd socket) {
  const std::uint32_t index = id - guest_id;
  if (index >= used_streams_ || !streams()[index].is_asked) {
    return false;
  }
  Stream& stream = streams()[index];
  stream.is_asked = false;
  if (!give_socket(stream, std::move(socket))) {
    stream.untold |= bit(StreamEvent::Closed);
    reset(stream, StreamBreak::Host);
    return true;
  }
  if (stream.guest == Guest::Asks) {
    stream.guest = Guest::Open;
    stream.owes_first = true;
    enqueue(stream);
  }
  settle(stream);
  return true;
}

bool VsockStreams::refuse(std::uint32_t id) {
  const std::uint32_t index = id - guest_id;
  if (index >= used_streams_ || !streams()[index].is_asked) {
    return false;
  }
  Stream& stream = streams()[index];
  stream.is_asked = false;
  reset(stream, StreamBreak::None);
  return true;
}

void VsockStreams::on_ready(void* context, std::uint32_t events) {
  const auto& watch = *static_cast<const Watch*>(context);
  VsockStreams& self = *watch.streams;
  self.handle(self.streams()[&watch - self.storage_.watches.data()], events);
  self.carrier_.send(self.carrier_.context);
}

void VsockStreams::handle(Stream& stream, std::uint32_t events) {
  if ((events & (EPOLLHUP | EPOLLERR)) != 0) {
    stream.host_deaf = true;
    if (stream.guest == Guest::IsAsked) {
      return reset(stream, StreamBreak::None); // Node has given up
    }
  }
  // Up to the end, or to what broke it off.
  const bool is_readable =
      !stream.host_ended && !stream.guest_deaf && (events & ~std::uint32_t{EPOLLOUT}) != 0;
  stream.is_stalled = is_readable && stream.is_readable;
  stream.is_readable |= is_readable;
  flush(stream);
  enqueue_if_needed(stream);
  settle(stream);
}

/// Node's end of the control socket was full. Its order is kept within a stream, and that is
/// enough.
void VsockStreams::on_retry(void* streams) {
  auto& self = *static_cast<VsockStreams*>(streams);
  self.is_retrying_ = false;
  for (std::uint16_t i = 0; i < self.used_streams_ && !self.is_retrying_; ++i) {
    if (self.streams()[i].untold != 0) {
      self.settle(self.streams()[i]);
    }
  }
}

// ---- From the guest ----

void VsockStreams::receive(const VsockHeader& header, const Payload& payload) {
  if (header.src_cid != guest_cid) {
    return; // there is nobody to be answered
  }
  const bool is_for_streams = header.dst_cid == host_cid && header.type == vsock_type_stream;
  Stream* stream = is_for_streams ? find(header.src_port, header.dst_port) : nullptr;
  if (stream != nullptr) {
    receive_for(*stream, header, payload);
  } else if (is_for_streams && static_cast<VsockOp>(header.op) == VsockOp::Request) {
    receive_request(header);
  } else {
    answer_reset(header);
  }
}

/// To what belongs to no stream. A Reset has no answer.
void VsockStreams::answer_reset(const VsockHeader& header) {
  if (static_cast<VsockOp>(header.op) == VsockOp::Reset || !can_receive()) {
    return;
  }
  resets_[(reset_start_ + reset_count_) % resets_.size()] = {header.dst_cid, header.src_port,
                                                             header.dst_port, header.type};
  ++reset_count_;
}

void VsockStreams::receive_request(const VsockHeader& header) {
  Stream* stream = begin(header.src_port, header.dst_port);
  if (stream == nullptr) {
    return answer_reset(header);
  }
  stream->id = guest_id + (link_of(*stream) - 1u);
  stream->guest = Guest::Asks;
  stream->is_asked = true;
  stream->peer_buf_alloc = header.buf_alloc;
  stream->peer_fwd_cnt = header.fwd_cnt;
  stream->untold = bit(StreamEvent::Requested);
  settle(*stream);
}

void VsockStreams::receive_for(Stream& stream, const VsockHeader& header, const Payload& payload) {
  const auto op = static_cast<VsockOp>(header.op);
  if (op == VsockOp::Reset) {
    return receive_reset(stream, StreamBreak::Guest);
  }
  if (stream.guest == Guest::IsRefused) {
    return; // the guest has yet to hear of it
  }
  stream.peer_buf_alloc = header.buf_alloc;
  stream.peer_fwd_cnt = header.fwd_cnt;
  if (credit_of(stream.sent, stream.peer_fwd_cnt, stream.peer_buf_alloc) > 0) {
    stream.asks_credit = false;
  }
  const bool is_open = stream.guest == Guest::Open;
  bool is_valid = is_open;
  switch (op) {
  case VsockOp::Response:
    is_valid = stream.guest == Guest::IsAsked && !stream.owes_first;
    if (is_valid) {
      stream.guest = Guest::Open;
      stream.untold |= bit(StreamEvent::Connected);
    }
    break;
  case VsockOp::Shutdown:
    if (is_open) {
      receive_shutdown(stream, header.flags);
    }
    break;
  case VsockOp::ReadWrite:
    // A length beyond the packet is the guest's; that of the payload is not.
    is_valid = is_open && header.len == payload.size && receive_data(stream, payload);
    break;
  case VsockOp::CreditUpdate:
    break;
  case VsockOp::CreditRequest:
    stream.owes_credit = true;
    break;
  default:
    is_valid = false;
  }
  if (!is_valid) {
    return reset(stream, StreamBreak::Violation);
  }
  enqueue_if_needed(stream);
  settle(stream);
}

void VsockStreams::receive_shutdown(Stream& stream, std::uint32_t flags) {
  stream.guest_ended |= (flags & vsock_shutdown_send) != 0;
  if ((flags & vsock_shutdown_receive) != 0 && !stream.guest_deaf) {
    stream.guest_deaf = true;
    stream.is_readable = false;
    sys::call(__NR_shutdown, stream.fd, shut_read); // Node's writes fail from here on
  }
  if (stream.guest_ended && stream.guest_deaf) {
    // The guest waits for this answer before it uses its port again.
    VsockHeader header;
    header.dst_cid = host_cid;
    header.src_port = stream.guest_port;
    header.dst_port = stream.host_port;
    header.type = vsock_type_stream;
    answer_reset(header);
    forget(stream);
  }
}

/// What it has sent before still goes to Node, but not as something whole.
void VsockStreams::receive_reset(Stream& stream, StreamBreak why) {
  if (stream.broken == StreamBreak::None) {
    stream.broken = why;
  }
  if (stream.guest == Guest::IsAsked) {
    stream.untold |= bit(StreamEvent::Refused);
  } else if ((stream.untold & bit(StreamEvent::Requested)) != 0) {
    stream.untold = 0;
    stream.is_asked = false;
  }
  forget(stream);
  settle(stream);
}

/// False where it is more than the guest had credit for, or behind its end.
bool VsockStreams::receive_data(Stream& stream, const Payload& payload) {
  if (stream.guest_ended ||
      payload.size > buffer_of(stream).size() - (stream.received - stream.forwarded)) {
    return false;
  }
  stream.received += payload.size;
  for_each_part(payload, [&](const std::byte* data, std::size_t size) {
    const long sent = stream.buffered == 0 ? send(stream, data, size) : 0;
    const auto count = static_cast<std::size_t>(sent);
    keep(stream, data + count, size - count);
    return true;
  });
  return true;
}

void VsockStreams::disconnect() {
  reset_count_ = 0;
  for (Stream* stream = stream_of(first_ready_); stream != nullptr;
       stream = stream_of(std::exchange(stream->next_ready, 0))) {
    stream->is_queued = false;
  }
  first_ready_ = last_ready_ = 0;
  for (std::uint16_t i = 0; i < used_streams_; ++i) {
    Stream& stream = streams()[i];
    if (stream.guest != Guest::Nothing) {
      receive_reset(stream, StreamBreak::Driver);
    } else {
      free_if_done(stream);
    }
  }
}

// ---- To the guest ----

bool VsockStreams::next(VsockHeader& header, const Payload& room) {
  header = {};
  header.src_cid = host_cid;
  header.dst_cid = guest_cid;
  header.type = vsock_type_stream;
  if (reset_count_ > 0) {
    const Stray& stray = resets_[reset_start_];
    header.src_cid = stray.cid;
    header.src_port = stray.host_port;
    header.dst_port = stray.guest_port;
    header.type = stray.type;
    header.op = static_cast<std::uint16_t>(VsockOp::Reset);
    reset_start_ = (reset_start_ + 1) % resets_.size();
    --reset_count_;
    return true;
  }
  // One packet of each in turn.
  while (Stream* stream = stream_of(first_ready_)) {
    first_ready_ = std::exchange(stream->next_ready, 0);
    last_ready_ = first_ready_ == 0 ? 0 : last_ready_;
    stream->is_queued = false;
    const bool is_produced = produce(*stream, header, room);
    if (is_produced) {
      header.src_port = stream->host_port;
      header.dst_port = stream->guest_port;
      header.buf_alloc = static_cast<std::uint32_t>(buffer_of(*stream).size());
      header.fwd_cnt = stream->told = stream->forwarded;
      stream->owes_credit = false;
    }
    enqueue_if_needed(*stream);
    settle(*stream);
    if (is_produced) {
      return true;
    }
  }
  return false;
}

/// What the guest is to be told, if anything, as op, flags and len of `header`.
bool VsockStreams::produce(Stream& stream, VsockHeader& header, const Payload& room) {
  const auto is = [&header](VsockOp op) {
    header.op = static_cast<std::uint16_t>(op);
    return true;
  };
  if (std::exchange(stream.owes_first, false)) {
    return is(stream.guest == Guest::Open ? VsockOp::Response : VsockOp::Request);
  }
  if (stream.guest == Guest::Open && stream.is_readable) {
    if (credit_of(stream.sent, stream.peer_fwd_cnt, stream.peer_buf_alloc) > 0) {
      if (produce_data(stream, header, room)) {
        return is(VsockOp::ReadWrite);
      }
    } else if (!std::exchange(stream.asks_credit, true)) {
      return is(VsockOp::CreditRequest);
    }
  }
  if (stream.guest == Guest::IsRefused) {
    forget(stream);
    return is(VsockOp::Reset);
  }
  if (stream.guest != Guest::Open) {
    return false;
  }
  if (const std::uint8_t shutdown = shutdown_of(stream); shutdown != stream.shutdown_sent) {
    stream.shutdown_sent = shutdown;
    header.flags = shutdown;
    if (shutdown == vsock_shutdown_both) {
      // The guest answers with a Reset, or with nothing. No need to wait for it: these two
      // ports meet again after a billion streams.
      forget(stream);
    }
    return is(VsockOp::Shutdown);
  }
  return stream.owes_credit && is(VsockOp::CreditUpdate);
}

/// Straight from the socket into the guest's memory.
bool VsockStreams::produce_data(Stream& stream, VsockHeader& header, const Payload& room) {
  const std::uint32_t credit = credit_of(stream.sent, stream.peer_fwd_cnt, stream.peer_buf_alloc);
  std::uint32_t size = 0;
  for_each_part({room.segments, room.offset, std::min(room.size, credit)},
                [&](std::byte* data, std::size_t part) {
                  const long count = sys::call_retry(__NR_recvfrom, stream.fd, data, part,
                                                     msg_dontwait, nullptr, nullptr);
                  if (count > 0) {
                    size += static_cast<std::uint32_t>(count);
                  } else if (count == 0) {
                    stream.host_ended = true;
                  } else if (count != -EAGAIN) {
                    stream.host_broke = true;
                  }
                  // Less than there was room for is all that there is, but for the end.
                  const bool is_full = count == static_cast<long>(part);
                  stream.is_readable = is_full || (count > 0 && stream.host_deaf);
                  return is_full;
                });
  stream.is_stalled = stream.is_stalled && stream.is_readable;
  stream.sent += size;
  header.len = size;
  if (size == 0 && stream.host_broke) {
    reset(stream, StreamBreak::None);
  }
  return size > 0;
}

std::uint8_t VsockStreams::shutdown_of(const Stream& stream) const {
  const bool is_all_sent = stream.host_ended || (stream.host_deaf && stream.guest_deaf);
  return static_cast<std::uint8_t>((is_all_sent ? vsock_shutdown_send : 0) |
                                   (stream.host_deaf ? vsock_shutdown_receive : 0));
}

bool VsockStreams::has_packet(const Stream& stream) const {
  switch (stream.guest) {
  case Guest::IsRefused:
    return true;
  case Guest::IsAsked:
    return stream.owes_first;
  case Guest::Open:
    return stream.owes_first || stream.owes_credit || shutdown_of(stream) != stream.shutdown_sent ||
           (stream.is_readable &&
            (!stream.asks_credit ||
             credit_of(stream.sent, stream.peer_fwd_cnt, stream.peer_buf_alloc) > 0));
  default:
    return false;
  }
}

void VsockStreams::enqueue(Stream& stream) {
  if (stream.is_queued) {
    return;
  }
  stream.is_queued = true;
  const Link link = link_of(stream);
  if (Stream* last = stream_of(last_ready_)) {
    last->next_ready = link;
  } else {
    first_ready_ = link;
  }
  last_ready_ = link;
}

void VsockStreams::enqueue_if_needed(Stream& stream) {
  if (has_packet(stream)) {
    enqueue(stream);
  }
}

// ---- One stream's two ends ----

/// Ends it for the guest, which hears of it, and for Node.
void VsockStreams::reset(Stream& stream, StreamBreak why) {
  stream.broken = why;
  if (stream.guest == Guest::IsAsked) {
    stream.untold |= bit(StreamEvent::Refused);
  }
  if (stream.guest == Guest::IsAsked && stream.owes_first) {
    forget(stream);
  } else if (stream.guest != Guest::Nothing) {
    stream.guest = Guest::IsRefused;
    stream.owes_first = false;
    enqueue(stream);
  }
  stream.buffered = 0;
  settle(stream);
}

/// Does for Node's end what has become due: call it last, the stream may be gone behind it.
void VsockStreams::settle(Stream& stream) {
  if (stream.fd != 0 && stream.buffered == 0) {
    if (stream.guest_ended && !stream.end_is_shown) {
      stream.untold |= bit(StreamEvent::Ended);
    }
    const bool is_over = stream.guest == Guest::Nothing || stream.guest == Guest::IsRefused;
    if (is_over && (stream.untold & bit(StreamEvent::Refused)) == 0) {
      stream.untold |= bit(StreamEvent::Closed);
    }
  }
  tell(stream);
  update_watch(stream);
  free_if_done(stream);
}

/// In this order, and each before its effect on the socket: so Node knows what the end of it
/// means.
void VsockStreams::tell(Stream& stream) {
  for (const StreamEvent event : {StreamEvent::Requested, StreamEvent::Connected,
                                  StreamEvent::Refused, StreamEvent::Ended, StreamEvent::Closed}) {
    if ((stream.untold & bit(event)) == 0) {
      continue;
    }
    const std::uint32_t detail = event == StreamEvent::Requested ? stream.host_port
                                 : event == StreamEvent::Closed
                                     ? static_cast<std::uint32_t>(stream.broken)
                                     : 0;
    if (!node_.tell(node_.context, event, stream.id, detail, false)) {
      if (!std::exchange(is_retrying_, true)) {
        loop_.set_timer(retry_, sys::monotonic_ns() + retry_after_ns);
      }
      return;
    }
    stream.untold &= static_cast<std::uint8_t>(~bit(event));
    if (event == StreamEvent::Ended) {
      stream.end_is_shown = true;
      sys::call(__NR_shutdown, stream.fd, shut_write);
    } else if (event == StreamEvent::Refused || event == StreamEvent::Closed) {
      close(stream);
    }
  }
}

/// Sends Node what has been kept for it, as far as there is room.
void VsockStreams::flush(Stream& stream) {
  const auto buffer = buffer_of(stream);
  const auto window = static_cast<std::uint32_t>(buffer.size());
  while (stream.buffered > 0) {
    const std::size_t size = std::min(stream.buffered, window - stream.buffer_start);
    const long sent = send(stream, buffer.data() + stream.buffer_start, size);
    const auto count = static_cast<std::uint32_t>(sent);
    stream.buffer_start = (stream.buffer_start + count) % window;
    stream.buffered -= count;
    if (count < size) {
      return;
    }
  }
}

/// There is room: a guest has no more credit than that.
void VsockStreams::keep(Stream& stream, const std::byte* data, std::size_t size) {
  const auto buffer = buffer_of(stream);
  const auto window = static_cast<std::uint32_t>(buffer.size());
  while (size > 0) {
    const std::uint32_t end = (stream.buffer_start + stream.buffered) % window;
    const std::size_t count = std::min<std::size_t>(size, window - end);
    std::memcpy(buffer.data() + end, data, count);
    stream.has_buffered = true;
    stream.buffered += static_cast<std::uint32_t>(count);
    data += count;
    size -= count;
  }
}

/// How much of it is forwarded. Where nobody will ever read it, that is all of it.
long VsockStreams::send(Stream& stream, const std::byte* data, std::size_t size) {
  long sent = static_cast<long>(size);
  if (!stream.host_deaf) {
    sent = sys::call_retry(__NR_sendto, stream.fd, data, size, msg_dontwait | msg_nosignal, nullptr,
                           0);
    if (sent == -EAGAIN) {
      return 0;
    }
    if (sent < 0) {
      stream.host_broke |= sent == -ECONNRESET;
      stream.host_deaf = true;
      stream.is_readable = true;
      sent = static_cast<long>(size);
    }
  }
  stream.forwarded += static_cast<std::uint32_t>(sent);
  // Not for each byte: a quarter of what it may have under way.
  stream.owes_credit |= stream.forwarded - stream.told >= buffer_of(stream).size() / 4;
  return sent;
}

void VsockStreams::update_watch(Stream& stream) {
  if (stream.fd == 0) {
    return;
  }
  // What is told is mostly sent at once: only where it waits, for its turn or for credit, it
  // is not to be told on and on.
  const bool wants_data =
      stream.guest == Guest::Open && !stream.is_stalled && !stream.host_ended && !stream.guest_deaf;
  std::uint8_t watched = static_cast<std::uint8_t>((wants_data ? watch_data : 0) |
                                                   (stream.buffered > 0 ? watch_room : 0));
  if (watched == 0 && stream.host_deaf) {
    watched = watch_nothing;
  }
  if (watched == stream.watched) {
    return;
  }
  stream.watched = watched;
  // A hang-up is always watched for. Known already, it would keep the loop awake: by its
  // edge it comes once more, and that is all.
  const std::uint32_t events = ((watched & watch_data) != 0 ? EPOLLIN : 0u) |
                               ((watched & watch_room) != 0 ? EPOLLOUT : 0u) |
                               (watched == watch_nothing ? EPOLLET : 0u);
  // It allocates nothing, so it does not fail.
  static_cast<void>(loop_.change(storage_.watches[link_of(stream) - 1u].source, events));
}

void VsockStreams::close(Stream& stream) {
  if (stream.fd == 0) {
    return;
  }
  loop_.remove(storage_.watches[link_of(stream) - 1u].source);
  sys::Fd(std::exchange(stream.fd, 0)).reset();
  stream.buffered = 0;
  stream.watched = 0;
}

} // namespace casemate::machine::virtio
