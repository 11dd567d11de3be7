// Stream sockets between a guest and its host, without the queues that carry them: packets
// in, packets out. The host's ends are sockets that Node hands in, one for each stream; there
// is no address on the host that a guest could reach. VIRTIO 1.2, section 5.10.6
//
// All storage is fixed. What a stream's reader does not take fills the buffer of that stream
// and no other; its writer then has no credit, and waits.
#pragma once

#include "machine/virtio/queue.hpp"
#include "sys/event_loop.hpp"
#include "sys/fd.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace casemate::machine::virtio {

/// struct virtio_vsock_hdr, with the names that the specification has.
struct [[gnu::packed]] VsockHeader {
  std::uint64_t src_cid = 0;
  std::uint64_t dst_cid = 0;
  std::uint32_t src_port = 0;
  std::uint32_t dst_port = 0;
  std::uint32_t len = 0;
  std::uint16_t type = 0;
  std::uint16_t op = 0;
  std::uint32_t flags = 0;
  std::uint32_t buf_alloc = 0;
  std::uint32_t fwd_cnt = 0;
};
static_assert(sizeof(VsockHeader) == 44);

inline constexpr std::uint16_t vsock_type_stream = 1;

enum class VsockOp : std::uint16_t {
  Request = 1,
  Response = 2,
  Reset = 3,
  Shutdown = 4,
  ReadWrite = 5,
  CreditUpdate = 6,
  CreditRequest = 7
};

inline constexpr std::uint8_t vsock_shutdown_receive = 1;
inline constexpr std::uint8_t vsock_shutdown_send = 2;
inline constexpr std::uint8_t vsock_shutdown_both = 3;

/// What Node is told of a stream, in the order in which it can be.
enum class StreamEvent : std::uint8_t {
  Requested, // by the guest: to be accepted or refused
  Connected, // the guest has accepted
  Refused,   // it has not, or there was no room: the last word
  Ended,     // the guest sends nothing more, and all of it is in the socket
  Closed     // nothing more in either direction, and likewise: the last word
};

/// Why a stream is closed that the guest had not ended: enum casemate_stream_break.
enum class StreamBreak : std::uint8_t { None, Guest, Driver, Violation, Host };

class VsockStreams {
public:
  static constexpr std::uint64_t host_cid = 2;
  static constexpr std::uint64_t guest_cid = 3;
  static constexpr std::uint32_t max_streams = 1024;
  /// What a guest may send on a stream before any of it has been taken: buf_alloc. Each of as
  /// many streams as programs use at once has the first; what all others may have under way
  /// besides is no more than what these have.
  static constexpr std::uint32_t window = 64 * 1024;
  static constexpr std::uint32_t ample_streams = 64;
  static constexpr std::uint32_t small_window = 4 * 1024;
  /// Ids of streams that the guest began; Node's are below.
  static constexpr std::uint32_t guest_id = 0x80000000;

  /// Node, as far as it is told of streams.
  struct Listener {
    /// `detail` is the port of what is Requested, and a StreamBreak of what is Closed. False where
    /// that would have to wait, unless it may.
    bool (*tell)(void* context, StreamEvent event, std::uint32_t id, std::uint32_t detail,
                 bool may_wait) = nullptr;
    void* context = nullptr;
  };

  /// Whoever sends the packets: Node has done something at its end of a stream, so there may be
  /// some.
  struct Carrier {
    void (*send)(void* context) = nullptr;
    void* context = nullptr;
  };

  /// The memory behind a packet's header: `size` bytes from `offset` on.
  struct Payload {
    std::span<const Segment> segments;
    std::uint32_t offset = 0;
    std::uint32_t size = 0;
  };

  struct Storage;

  /// `storage` is all zeroes. Most of it is never touched.
  VsockStreams(Storage& storage, sys::EventLoop& loop, const Listener& node,
               const Carrier& carrier);

  // ---- From Node ----

  /// To the guest's `port`. Refused where the guest `is_there` not.
  void connect(std::uint32_t id, std::uint32_t port, sys::Fd socket, bool is_there);
  /// The answers to StreamEvent::Requested. False where this has not been asked.
  bool accept(std::uint32_t id, sys::Fd socket);
  bool refuse(std::uint32_t id);

  // ---- From the guest ----

  /// Whether there is room for the answer to any packet: if not, send first.
  bool can_receive() const { return reset_count_ < resets_.size(); }
  void receive(const VsockHeader& header, const Payload& payload);

  /// The guest's driver is gone, and all that it knew of.
  void disconnect();

  // ---- To the guest ----

  /// Whether next() is worth a call.
  bool has_packets() const { return reset_count_ > 0 || first_ready_ != 0; }
  /// The next packet, `header.len` bytes of it in `room`. False where there is none.
  bool next(VsockHeader& header, const Payload& room);

private:
  /// What the guest knows of a stream.
  enum class Guest : std::uint8_t {
    Nothing, // or nothing any more
    Asks,    // it has sent a Request, which Node has not answered
    IsAsked, // it is sent a Request, which it has not answered
    Open,
    IsRefused // it is sent a Reset
  };

  /// Of streams: number in the table + 1, and 0 for none, so that all zeroes are an empty table.
  using Link = std::uint16_t;

  /// A free one is all zeroes, but for `next`.
  struct Stream {
    std::uint32_t id;
    std::uint32_t guest_port;
    std::uint32_t host_port;
    int fd; // 0 is none
    Guest guest;
    std::uint8_t untold;  // events that Node is to be told, a bit for each
    std::uint8_t watched; // what the loop watches `fd` for
    std::uint8_t shutdown_sent;
    StreamBreak broken;
    bool is_asked;    // Node is to accept or refuse it
    bool is_queued;   // among those that may have a packet
    bool is_readable; // Node has written
    bool is_stalled;  // and that has been told again
    bool owes_first;  // Request or Response
    bool owes_credit;
    bool asks_credit; // once for each time that it runs out
    bool guest_ended; // it sends no more
    bool guest_deaf;  // it receives no more
    bool host_ended;
    bool host_deaf;
    bool host_broke;   // Node has thrown away what the guest sent
    bool end_is_shown; // in the socket
    bool has_buffered; // at any time
    Link next;         // in its bucket, or of those that are free
    Link next_ready;
    // Flow control: counts of bytes, which wrap.
    std::uint32_t peer_buf_alloc;
    std::uint32_t peer_fwd_cnt;
    std::uint32_t sent;
    std::uint32_t received;
    std::uint32_t forwarded;
    std::uint32_t told; // `forwarded`, as the guest knows it
    // What is received and not forwarded: in its buffer, a ring.
    std::uint32_t buffer_start;
    std::uint32_t buffered;
  };

  /// What the event loop knows of a stream.
  struct Watch {
    sys::EventLoop::Source source;
    VsockStreams* streams;
  };

  /// A Reset for a packet that belongs to no stream.
  struct Stray {
    std::uint64_t cid;
    std::uint32_t guest_port;
    std::uint32_t host_port;
    std::uint16_t type;
  };

  static constexpr std::uint32_t bucket_count = 1024;

  Stream* stream_of(Link link) { return link == 0 ? nullptr : &streams()[link - 1u]; }
  Link link_of(const Stream& stream) { return static_cast<Link>(&stream - streams() + 1); }
  Stream* streams();
  std::span<std::byte> buffer_of(const Stream& stream);
  Link& bucket_of(std::uint32_t guest_port, std::uint32_t host_port);
  Stream* find(std::uint32_t guest_port, std::uint32_t host_port);

  Stream* begin(std::uint32_t guest_port, std::uint32_t host_port);
  bool give_socket(Stream& stream, sys::Fd socket);
  void forget(Stream& stream);
  void free_if_done(Stream& stream);

  static void on_ready(void* watch, std::uint32_t events);
  void handle(Stream& stream, std::uint32_t events);
  static void on_retry(void* streams);

  void receive_request(const VsockHeader& header);
  void receive_for(Stream& stream, const VsockHeader& header, const Payload& payload);
  void receive_shutdown(Stream& stream, std::uint32_t flags);
  void receive_reset(Stream& stream, StreamBreak why);
  bool receive_data(Stream& stream, const Payload& payload);
  void answer_reset(const VsockHeader& header);

  bool produce(Stream& stream, VsockHeader& header, const Payload& room);
  bool produce_data(Stream& stream, VsockHeader& header, const Payload& room);
  bool has_packet(const Stream& stream) const;
  std::uint8_t shutdown_of(const Stream& stream) const;

  void enqueue(Stream& stream);
  void enqueue_if_needed(Stream& stream);
  void reset(Stream& stream, StreamBreak why);
  void settle(Stream& stream);
  void tell(Stream& stream);
  void flush(Stream& stream);
  void keep(Stream& stream, const std::byte* data, std::size_t size);
  long send(Stream& stream, const std::byte* data, std::size_t size);
  void forwarded(Stream& stream, std::uint32_t count);
  void update_watch(Stream& stream);
  void close(Stream& stream);

  Storage& storage_;
  sys::EventLoop& loop_;
  Listener node_;
  Carrier carrier_;
  sys::EventLoop::Timer retry_;
  std::array<Stray, 64> resets_{}; // a ring
  std::uint32_t reset_start_ = 0;
  std::uint32_t reset_count_ = 0;
  std::uint32_t next_host_port_ = 0x40000000;
  std::uint16_t used_streams_ = 0; // of the table: behind them none has ever been used
  Link first_free_ = 0;
  Link first_ready_ = 0;
  Link last_ready_ = 0;
  bool is_retrying_ = false;
};

/// 8 MiB of addresses. Memory is what has been touched of them: a few pages, and the buffers of
/// streams whose readers do not keep pace.
struct VsockStreams::Storage {
  std::array<Stream, max_streams> streams;
  std::array<Link, bucket_count> buckets;
  std::array<Watch, max_streams> watches;
  alignas(4096) std::array<std::array<std::byte, window>, ample_streams> buffers;
  std::array<std::array<std::byte, small_window>, max_streams - ample_streams> small_buffers;
};

} // namespace casemate::machine::virtio
