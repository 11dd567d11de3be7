#include "machine/virtio/vsock_streams.hpp"
#include "test/unit.hpp"

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <poll.h>
#include <string>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vector>

using namespace casemate;
using namespace casemate::machine::virtio;

namespace {

constexpr std::uint32_t guest_port = 5000;
constexpr std::uint32_t host_port = 80;
constexpr std::uint32_t guest_window = 100'000;

/// What Node was told, as text: "connected 7", "closed 7 (guest)".
std::string text_of(StreamEvent event, std::uint32_t id, std::uint32_t detail) {
  constexpr const char* names[] = {"requested", "connected", "refused", "ended", "closed"};
  const std::string text = names[static_cast<unsigned>(event)];
  if (event == StreamEvent::Requested) {
    return text + " " + std::to_string(detail);
  }
  constexpr const char* breaks[] = {"", " (guest)", " (driver)", " (violation)", " (host)"};
  return text + " " + std::to_string(id) + (detail < std::size(breaks) ? breaks[detail] : " (?)");
}

struct Packet {
  VsockHeader header;
  std::string data;

  VsockOp op() const { return static_cast<VsockOp>(header.op); }
};

struct FreeStorage {
  void operator()(void* storage) const { munmap(storage, sizeof(VsockStreams::Storage)); }
};

std::unique_ptr<VsockStreams::Storage, FreeStorage> make_storage() {
  void* memory = mmap(nullptr, sizeof(VsockStreams::Storage), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return std::unique_ptr<VsockStreams::Storage, FreeStorage>(
      static_cast<VsockStreams::Storage*>(memory));
}

/// A guest and a Node, and between them what is tested.
struct Pair {
  sys::Mutex lock;
  sys::EventLoop loop{lock};
  std::unique_ptr<VsockStreams::Storage, FreeStorage> storage = make_storage();
  VsockStreams streams{*storage, loop, {tell, this}, {send, this}};
  std::vector<std::string> told;
  std::vector<std::uint32_t> asked; // ids
  bool is_node_slow = false;
  bool has_buffers = true;
  std::size_t buffer_size = 4096;
  std::deque<Packet> packets; // that the guest has got

  Pair() {
    lock.lock();
    static_cast<void>(loop.open());
  }

  static bool tell(void* pair, StreamEvent event, std::uint32_t id, std::uint32_t detail,
                   bool may_wait) {
    auto& self = *static_cast<Pair*>(pair);
    if (self.is_node_slow && !may_wait) {
      return false;
    }
    self.told.push_back(text_of(event, id, detail));
    if (event == StreamEvent::Requested) {
      self.asked.push_back(id);
    }
    return true;
  }

  static void send(void* pair) { static_cast<Pair*>(pair)->carry(); }

  /// Until so much has been told: a turn may see to a socket first, and to its timer next.
  void await_told(std::size_t count) {
    for (int turns = 0; turns < 100 && told.size() < count; ++turns) {
      loop.turn(-1);
    }
  }

  void carry() {
    std::vector<std::byte> bytes(buffer_size);
    // In two parts, the first of which ends within the header's place.
    const Segment segments[] = {{bytes.data(), 100}, {bytes.data() + 100, buffer_size - 100}};
    VsockHeader header;
    while (has_buffers && streams.next(header, {segments, 44, 4000})) {
      packets.push_back({header, std::string(reinterpret_cast<char*>(bytes.data()) + 44,
                                             header.op == 5 ? header.len : 0)});
    }
  }

  /// Until nothing happens any more.
  void settle() {
    carry();
    for (int i = 0; i < 20; ++i) {
      loop.turn(0);
      carry();
    }
  }

  void from_guest(VsockHeader header, const std::string& data = "") {
    std::string bytes = "xxx" + data;
    const Segment segment{reinterpret_cast<std::byte*>(bytes.data()), bytes.size()};
    streams.receive(header, {{&segment, 1}, 3, static_cast<std::uint32_t>(data.size())});
    carry();
  }

  static VsockHeader header(VsockOp op, std::uint32_t ours = host_port,
                            std::uint32_t theirs = guest_port) {
    VsockHeader header;
    header.src_cid = 3;
    header.dst_cid = 2;
    header.src_port = theirs;
    header.dst_port = ours;
    header.type = 1;
    header.op = static_cast<std::uint16_t>(op);
    header.buf_alloc = guest_window;
    return header;
  }

  void from_guest(VsockOp op, std::uint32_t ours = host_port, std::uint32_t theirs = guest_port) {
    from_guest(header(op, ours, theirs));
  }

  void data_from_guest(const std::string& data, std::uint32_t ours = host_port,
                       std::uint32_t theirs = guest_port) {
    VsockHeader packet = header(VsockOp::ReadWrite, ours, theirs);
    packet.len = static_cast<std::uint32_t>(data.size());
    from_guest(packet, data);
  }

  void shutdown_from_guest(std::uint32_t flags) {
    VsockHeader packet = header(VsockOp::Shutdown);
    packet.flags = flags;
    from_guest(packet);
  }

  /// Our end of a socket whose other one is given away.
  struct Socket {
    sys::Fd ours;
    sys::Fd given;
  };
  static Socket make_socket() {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
      return {};
    }
    return {sys::Fd(fds[0]), sys::Fd(fds[1])};
  }

  /// A stream that the guest has begun; the packets about that are taken.
  sys::Fd open(std::uint32_t ours = host_port, std::uint32_t theirs = guest_port) {
    from_guest(VsockOp::Request, ours, theirs);
    Socket socket = make_socket();
    streams.accept(asked.back(), std::move(socket.given));
    carry();
    packets.clear();
    told.clear();
    return std::move(socket.ours);
  }

  Packet take() {
    if (packets.empty()) {
      return {};
    }
    Packet packet = std::move(packets.front());
    packets.pop_front();
    return packet;
  }

  /// All that there is of data, and what else came, by its numbers.
  std::string take_data() {
    std::string data;
    for (const Packet& packet : std::exchange(packets, {})) {
      data +=
          packet.op() == VsockOp::ReadWrite
              ? packet.data
              : "[" + std::to_string(packet.header.op) +
                    (packet.header.flags != 0 ? ":" + std::to_string(packet.header.flags) : "") +
                    "]";
    }
    return data;
  }

  std::string take_told() {
    std::string all;
    for (const std::string& event : std::exchange(told, {})) {
      all += (all.empty() ? "" : ", ") + event;
    }
    return all;
  }
};

std::string read_all(const sys::Fd& socket) {
  std::string all;
  char bytes[65536];
  for (long size; (size = recv(socket.get(), bytes, sizeof bytes, MSG_DONTWAIT)) > 0;) {
    all.append(bytes, static_cast<std::size_t>(size));
  }
  return all;
}

/// Whether nothing more will come: EOF, not only silence.
bool is_at_end(const sys::Fd& socket) {
  char byte;
  return recv(socket.get(), &byte, 1, MSG_DONTWAIT) == 0;
}

bool is_closed(const sys::Fd& socket) {
  pollfd descriptor{socket.get(), 0, 0};
  return poll(&descriptor, 1, 0) == 1 && (descriptor.revents & POLLHUP) != 0;
}

void write_all(const sys::Fd& socket, const std::string& data) {
  static_cast<void>(!::send(socket.get(), data.data(), data.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
}

std::string pattern(std::size_t size) {
  std::string data(size, 0);
  for (std::size_t i = 0; i < size; ++i) {
    data[i] = static_cast<char>('a' + i * 7 / 5 % 26);
  }
  return data;
}

} // namespace

TEST("vsock: Node connects, and both write") {
  Pair pair;
  auto socket = Pair::make_socket();
  pair.streams.connect(7, 1003, std::move(socket.given), true);
  pair.settle();
  REQUIRE(pair.packets.size() == 1);
  const Packet request = pair.take();
  CHECK(request.op() == VsockOp::Request);
  CHECK_EQ(std::uint64_t{request.header.src_cid}, 2u);
  CHECK_EQ(std::uint64_t{request.header.dst_cid}, 3u);
  CHECK_EQ(std::uint32_t{request.header.dst_port}, 1003u);
  CHECK_EQ(std::uint32_t{request.header.buf_alloc}, VsockStreams::window);
  CHECK_EQ(pair.take_told(), "");
  const std::uint32_t port = request.header.src_port;
  pair.from_guest(VsockOp::Response, port, 1003);
  CHECK_EQ(pair.take_told(), "connected 7");
  pair.data_from_guest("hello", port, 1003);
  CHECK_EQ(read_all(socket.ours), "hello");
  write_all(socket.ours, "and hello");
  pair.settle();
  CHECK_EQ(pair.take_data(), "and hello");
}

TEST("vsock: a guest that refuses, or has no driver, or answers something else") {
  Pair pair;
  auto refused = Pair::make_socket();
  pair.streams.connect(7, 1003, std::move(refused.given), true);
  pair.settle();
  pair.from_guest(VsockOp::Reset, pair.take().header.src_port, 1003);
  CHECK_EQ(pair.take_told(), "refused 7");
  CHECK(is_closed(refused.ours));
  pair.streams.connect(8, 1003, Pair::make_socket().given, false);
  CHECK_EQ(pair.take_told(), "refused 8");
  auto early = Pair::make_socket();
  pair.streams.connect(9, 1003, std::move(early.given), true);
  pair.settle();
  pair.data_from_guest("early", pair.take().header.src_port, 1003);
  CHECK_EQ(pair.take_told(), "refused 9");
  CHECK_EQ(pair.take_data(), "[3]");
}

TEST("vsock: an answer before the question has been sent is none") {
  Pair pair;
  auto socket = Pair::make_socket();
  pair.has_buffers = false;
  pair.streams.connect(7, 1003, std::move(socket.given), true);
  pair.from_guest(VsockOp::Response, 0x40000001, 1003);
  CHECK_EQ(pair.take_told(), "refused 7");
  pair.has_buffers = true;
  pair.settle();
  CHECK_EQ(pair.take_data(), "");
}

TEST("vsock: Node gives up before the guest has answered") {
  Pair pair;
  auto socket = Pair::make_socket();
  pair.streams.connect(7, 1003, std::move(socket.given), true);
  pair.settle();
  const std::uint32_t port = pair.take().header.src_port;
  socket.ours.reset();
  pair.settle();
  CHECK_EQ(pair.take_told(), "refused 7");
  CHECK_EQ(pair.take_data(), "[3]");
  pair.from_guest(VsockOp::Response, port, 1003);
  CHECK_EQ(pair.take_data(), "[3]");
}

TEST("vsock: the guest connects, and Node accepts or refuses") {
  Pair pair;
  pair.from_guest(VsockOp::Request, 80);
  pair.from_guest(VsockOp::Request, 81);
  CHECK_EQ(pair.take_told(), "requested 80, requested 81");
  REQUIRE(pair.asked.size() == 2);
  CHECK_EQ(pair.take_data(), "");
  auto socket = Pair::make_socket();
  CHECK(pair.streams.accept(pair.asked[0], std::move(socket.given)));
  CHECK(pair.streams.refuse(pair.asked[1]));
  pair.settle();
  const Packet response = pair.take();
  CHECK(response.op() == VsockOp::Response);
  CHECK_EQ(std::uint32_t{response.header.src_port}, 80u);
  CHECK_EQ(std::uint32_t{response.header.dst_port}, guest_port);
  CHECK(pair.take().op() == VsockOp::Reset);
  pair.data_from_guest("hello", 80);
  CHECK_EQ(read_all(socket.ours), "hello");
}

TEST("vsock: an answer to what was not asked is known as that") {
  Pair pair;
  CHECK(!pair.streams.accept(VsockStreams::guest_id, Pair::make_socket().given));
  CHECK(!pair.streams.refuse(5));
  const sys::Fd socket = pair.open();
  CHECK(!pair.streams.accept(pair.asked[0], Pair::make_socket().given));
  CHECK(!pair.streams.refuse(pair.asked[0]));
}

TEST("vsock: a guest that takes its question back") {
  Pair pair;
  pair.from_guest(VsockOp::Request);
  pair.from_guest(VsockOp::Reset);
  auto socket = Pair::make_socket();
  CHECK(pair.streams.accept(pair.asked[0], std::move(socket.given)));
  pair.settle();
  CHECK_EQ(pair.take_told(), "requested 80, closed 2147483648 (guest)");
  CHECK(is_closed(socket.ours));
  CHECK_EQ(pair.take_data(), "");
}

TEST("vsock: what belongs to no stream is answered by a reset, with its own numbers") {
  Pair pair;
  for (const VsockOp op : {VsockOp::Response, VsockOp::Shutdown, VsockOp::ReadWrite,
                           VsockOp::CreditUpdate, VsockOp::CreditRequest, VsockOp{77}}) {
    pair.from_guest(op);
    pair.carry();
    const Packet answer = pair.take();
    CHECK(answer.op() == VsockOp::Reset);
    CHECK_EQ(std::uint32_t{answer.header.src_port}, host_port);
    CHECK_EQ(std::uint32_t{answer.header.dst_port}, guest_port);
  }
  VsockHeader elsewhere = Pair::header(VsockOp::Request);
  elsewhere.dst_cid = 0x123456789;
  pair.from_guest(elsewhere);
  CHECK_EQ(std::uint64_t{pair.take().header.src_cid}, 0x123456789u);
  VsockHeader packets = Pair::header(VsockOp::Request);
  packets.type = 2;
  pair.from_guest(packets);
  CHECK_EQ(std::uint16_t{pair.take().header.type}, 2u);
  CHECK_EQ(pair.take_told(), "");
}

TEST("vsock: a reset is not answered, nor is who is not the guest") {
  Pair pair;
  pair.from_guest(VsockOp::Reset);
  VsockHeader forged = Pair::header(VsockOp::Request);
  forged.src_cid = 2;
  pair.from_guest(forged);
  CHECK_EQ(pair.take_data(), "");
  CHECK_EQ(pair.take_told(), "");
}

TEST("vsock: answers wait for the guest's buffers, and with them its packets") {
  Pair pair;
  pair.has_buffers = false;
  unsigned answers = 0;
  for (; pair.streams.can_receive() && answers < 1000; ++answers) {
    pair.from_guest(VsockOp::ReadWrite);
  }
  CHECK_EQ(answers, 64u);
  pair.has_buffers = true;
  pair.carry();
  CHECK_EQ(pair.packets.size(), 64u);
  CHECK(pair.streams.can_receive());
}

TEST("vsock: a guest has the credit that it is told, and not a byte more") {
  Pair pair;
  const sys::Fd socket = pair.open();
  int small = 1;
  setsockopt(socket.get(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  // Fill Node's socket until it takes nothing more; all that is taken comes back as credit.
  const std::string chunk = pattern(16 * 1024);
  std::uint32_t sent = 0;
  std::uint32_t forwarded = 0;
  while (sent - forwarded < VsockStreams::window) {
    pair.data_from_guest(chunk);
    sent += static_cast<std::uint32_t>(chunk.size());
    for (const Packet& packet : std::exchange(pair.packets, {})) {
      CHECK(packet.op() == VsockOp::CreditUpdate);
      forwarded = packet.header.fwd_cnt;
    }
    REQUIRE(sent < 64u << 20);
  }
  CHECK_EQ(sent - forwarded, VsockStreams::window);
  // Node reads on, and finds all of it in order; so there is credit again.
  std::string received;
  for (int i = 0; i < 1000 && received.size() < sent; ++i) {
    received += read_all(socket);
    pair.settle();
  }
  CHECK_EQ(received.size(), std::size_t{sent});
  bool is_whole = true;
  for (std::size_t i = 0; i < received.size(); i += chunk.size()) {
    is_whole &= received.compare(i, chunk.size(), chunk) == 0;
  }
  CHECK(is_whole);
  REQUIRE(!pair.packets.empty());
  CHECK_EQ(std::uint32_t{pair.packets.back().header.fwd_cnt}, sent);
}

TEST("vsock: a guest that sends more than it has credit for is reset") {
  Pair pair;
  const sys::Fd socket = pair.open();
  while (pair.packets.empty() || pair.packets.back().op() == VsockOp::CreditUpdate) {
    pair.packets.clear();
    pair.data_from_guest(pattern(30'000)); // and does not look at its credit
    pair.carry();
  }
  CHECK_EQ(pair.take_data(), "[3]");
  CHECK_EQ(pair.take_told(), "closed 2147483648 (violation)");
  pair.data_from_guest("more");
  CHECK_EQ(pair.take_data(), "[3]");
}

TEST("vsock: a packet shorter than it says, or longer than the window, is reset") {
  Pair pair;
  sys::Fd socket = pair.open();
  VsockHeader lying = Pair::header(VsockOp::ReadWrite);
  lying.len = 0xffffffff;
  pair.from_guest(lying, "short");
  CHECK_EQ(pair.take_data(), "[3]");
  CHECK_EQ(read_all(socket), "");
  socket = pair.open(81);
  pair.data_from_guest(pattern(VsockStreams::window + 1), 81);
  CHECK_EQ(pair.take_data(), "[3]");
}

TEST("vsock: where many streams are open, each more has little credit, and all of it is whole") {
  CHECK(sizeof(VsockStreams::Storage) < 9u << 20);
  Pair pair;
  std::vector<sys::Fd> ample;
  for (std::uint32_t i = 0; i < VsockStreams::ample_streams; ++i) {
    pair.from_guest(VsockOp::Request, host_port, 6000 + i);
    Pair::Socket socket = Pair::make_socket();
    pair.streams.accept(pair.asked.back(), std::move(socket.given));
    ample.push_back(std::move(socket.ours));
    pair.carry();
    CHECK_EQ(std::uint32_t{pair.take().header.buf_alloc}, VsockStreams::window);
  }
  pair.from_guest(VsockOp::Request);
  Pair::Socket socket = Pair::make_socket();
  pair.streams.accept(pair.asked.back(), std::move(socket.given));
  pair.carry();
  CHECK_EQ(std::uint32_t{pair.take().header.buf_alloc}, VsockStreams::small_window);
  std::string sent;
  std::uint32_t forwarded = 0;
  while (sent.size() - forwarded < VsockStreams::small_window) {
    const std::string chunk = pattern(
        std::min<std::size_t>(1000, VsockStreams::small_window - (sent.size() - forwarded)));
    pair.data_from_guest(chunk);
    sent += chunk;
    for (const Packet& packet : std::exchange(pair.packets, {})) {
      CHECK(packet.op() == VsockOp::CreditUpdate);
      forwarded = packet.header.fwd_cnt;
    }
    REQUIRE(sent.size() < 64u << 20);
  }
  std::string received;
  for (int i = 0; i < 1000 && received.size() < sent.size(); ++i) {
    received += read_all(socket.ours);
    pair.settle();
  }
  CHECK(received == sent);
  pair.packets.clear();
  pair.data_from_guest(pattern(VsockStreams::small_window + 1));
  CHECK_EQ(pair.take_data(), "[3]");
}

TEST("vsock: the guest is sent what it has credit for, and asked for more once") {
  Pair pair;
  const sys::Fd socket = pair.open();
  const std::string data = pattern(150'000);
  write_all(socket, data);
  pair.settle();
  std::string got = pair.take_data();
  REQUIRE(got.size() == guest_window + 3);
  CHECK_EQ(got.substr(guest_window), "[7]");
  got.resize(guest_window);
  pair.settle();
  CHECK_EQ(pair.take_data(), "");
  VsockHeader update = Pair::header(VsockOp::CreditUpdate);
  update.fwd_cnt = 100;
  pair.from_guest(update);
  pair.settle();
  got += pair.take_data();
  CHECK_EQ(got.substr(guest_window + 100), "[7]");
  got.resize(guest_window + 100);
  update.fwd_cnt = guest_window + 100;
  pair.from_guest(update);
  pair.settle();
  got += pair.take_data();
  CHECK(got == data);
}

TEST("vsock: credit that cannot be is none") {
  for (const std::uint32_t fwd_cnt : {1u, 0x80000000u, 0xffffffffu}) {
    Pair pair;
    const sys::Fd socket = pair.open();
    VsockHeader update = Pair::header(VsockOp::CreditUpdate);
    update.fwd_cnt = fwd_cnt; // of nothing that was sent
    update.buf_alloc = 0;
    pair.from_guest(update);
    write_all(socket, "data");
    pair.settle();
    CHECK_EQ(pair.take_data(), "[7]");
  }
}

TEST("vsock: a guest that asks for its credit is told") {
  Pair pair;
  const sys::Fd socket = pair.open();
  pair.data_from_guest("12345");
  CHECK_EQ(pair.packets.size(), 0u);
  pair.from_guest(VsockOp::CreditRequest);
  const Packet update = pair.take();
  CHECK(update.op() == VsockOp::CreditUpdate);
  CHECK_EQ(std::uint32_t{update.header.fwd_cnt}, 5u);
}

TEST("vsock: Node ends, and hears the guest still") {
  Pair pair;
  const sys::Fd socket = pair.open();
  write_all(socket, "last");
  shutdown(socket.get(), SHUT_WR);
  pair.settle();
  CHECK_EQ(pair.take_data(), "last[4:2]");
  pair.data_from_guest("still here");
  CHECK_EQ(read_all(socket), "still here");
  CHECK_EQ(pair.take_told(), "");
  pair.shutdown_from_guest(2);
  pair.settle();
  CHECK(is_at_end(socket));
  // Nothing more in either direction.
  CHECK_EQ(pair.take_told(), "ended 2147483648, closed 2147483648");
  CHECK_EQ(pair.take_data(), "[4:3]");
}

TEST("vsock: the guest ends, and hears Node still") {
  Pair pair;
  const sys::Fd socket = pair.open();
  pair.data_from_guest("last");
  pair.shutdown_from_guest(2);
  CHECK_EQ(pair.take_told(), "ended 2147483648");
  CHECK_EQ(read_all(socket), "last");
  CHECK(is_at_end(socket));
  write_all(socket, "still here");
  pair.settle();
  CHECK_EQ(pair.take_data(), "still here");
  pair.data_from_guest("behind my end");
  CHECK_EQ(pair.take_data(), "[3]");
  CHECK_EQ(pair.take_told(), "closed 2147483648 (violation)");
}

TEST("vsock: a guest that receives no more has Node's writes fail") {
  Pair pair;
  const sys::Fd socket = pair.open();
  pair.shutdown_from_guest(1);
  pair.settle();
  CHECK_EQ(::send(socket.get(), "x", 1, MSG_NOSIGNAL), -1);
  pair.data_from_guest("still here");
  CHECK_EQ(read_all(socket), "still here");
}

TEST("vsock: a guest that closes is answered at once, and all that it sent is delivered") {
  Pair pair;
  const sys::Fd socket = pair.open();
  // More than Node's socket takes.
  std::uint32_t sent = 0;
  std::uint32_t forwarded = 0;
  while (sent - forwarded < VsockStreams::window / 2) {
    pair.data_from_guest(pattern(4096));
    sent += 4096;
    if (!pair.packets.empty()) {
      forwarded = pair.packets.back().header.fwd_cnt;
    }
  }
  pair.packets.clear();
  pair.shutdown_from_guest(3);
  CHECK_EQ(pair.take_data(), "[3]");
  CHECK_EQ(pair.take_told(), "");
  // Its port may be used again meanwhile.
  pair.from_guest(VsockOp::Request);
  CHECK_EQ(pair.take_told(), "requested 80");
  std::size_t received = 0;
  for (int i = 0; i < 1000 && !is_closed(socket); ++i) {
    received += read_all(socket).size();
    pair.settle();
  }
  received += read_all(socket).size();
  CHECK_EQ(received, std::size_t{sent});
  CHECK_EQ(pair.take_told(), "ended 2147483648, closed 2147483648");
}

TEST("vsock: a guest that resets has sent no end") {
  Pair pair;
  const sys::Fd socket = pair.open();
  pair.data_from_guest("part");
  pair.from_guest(VsockOp::Reset);
  CHECK_EQ(read_all(socket), "part");
  CHECK_EQ(pair.take_told(), "closed 2147483648 (guest)");
  CHECK(is_closed(socket));
  CHECK_EQ(pair.take_data(), "");
}

TEST("vsock: Node closes: the guest gets all that Node wrote") {
  Pair pair;
  sys::Fd socket = pair.open();
  pair.has_buffers = false;
  write_all(socket, "last");
  socket.reset();
  pair.settle();
  pair.has_buffers = true;
  pair.settle();
  CHECK_EQ(pair.take_data(), "last[4:3]");
  CHECK_EQ(pair.take_told(), "closed 2147483648");
  pair.data_from_guest("unheard");
  CHECK_EQ(pair.take_data(), "[3]");
}

TEST("vsock: Node closes while the guest has no credit for what it wrote") {
  Pair pair;
  sys::Fd socket = pair.open();
  write_all(socket, pattern(guest_window + 10));
  pair.settle();
  pair.packets.clear();
  socket.reset();
  pair.settle();
  CHECK_EQ(pair.take_data(), "[4:1]");
  pair.data_from_guest("nobody reads this");
  VsockHeader update = Pair::header(VsockOp::CreditUpdate);
  update.fwd_cnt = guest_window;
  pair.from_guest(update);
  pair.settle();
  CHECK_EQ(pair.take_data(), pattern(guest_window + 10).substr(guest_window) + "[4:3]");
}

TEST("vsock: Node throws away what it has not read: the guest's stream is reset") {
  Pair pair;
  sys::Fd socket = pair.open();
  pair.data_from_guest("unread");
  socket.reset();
  pair.settle();
  CHECK_EQ(pair.take_data(), "[3]");
  CHECK_EQ(pair.take_told(), "closed 2147483648");
}

TEST("vsock: a hang-up that waits for credit does not keep the loop awake") {
  Pair pair;
  sys::Fd socket = pair.open();
  write_all(socket, pattern(guest_window + 10));
  pair.settle();
  socket.reset();
  pair.settle();
  pair.packets.clear();
  // A turn without a limit of its own would return at once, again and again.
  sys::EventLoop::Timer timer;
  int rings = 0;
  timer.due = [](void* count) { ++*static_cast<int*>(count); };
  timer.context = &rings;
  pair.loop.set_timer(timer, 0);
  int turns = 0;
  for (; rings == 0 && turns < 5; ++turns) {
    pair.loop.turn(-1);
  }
  CHECK_EQ(turns, 1);
}

TEST("vsock: one stream that nobody reads leaves the others alone") {
  Pair pair;
  const sys::Fd stuck = pair.open(80, 1);
  const sys::Fd other = pair.open(80, 2);
  std::uint32_t sent = 0;
  std::uint32_t forwarded = 0;
  while (sent - forwarded < VsockStreams::window) {
    pair.data_from_guest(pattern(8192), 80, 1);
    sent += 8192;
    if (!pair.packets.empty()) {
      forwarded = pair.packets.back().header.fwd_cnt;
    }
  }
  pair.packets.clear();
  std::string received;
  for (int i = 0; i < 100; ++i) {
    pair.data_from_guest(pattern(8192), 80, 2);
    received += read_all(other);
  }
  CHECK_EQ(received.size(), 100u * 8192);
  write_all(other, "answer");
  pair.settle();
  CHECK(pair.take_data().ends_with("answer"));
}

TEST("vsock: streams take turns") {
  Pair pair;
  const sys::Fd first = pair.open(80, 1);
  const sys::Fd second = pair.open(80, 2);
  pair.has_buffers = false;
  write_all(first, pattern(20'000));
  write_all(second, pattern(20'000));
  pair.settle();
  pair.has_buffers = true;
  pair.carry();
  REQUIRE(pair.packets.size() >= 4);
  CHECK(pair.packets[0].header.dst_port != pair.packets[1].header.dst_port);
  CHECK(pair.packets[0].header.dst_port == pair.packets[2].header.dst_port);
}

TEST("vsock: as many streams as there is room for, and room again behind them") {
  Pair pair;
  for (std::uint32_t round = 0; round < 2; ++round) {
    for (std::uint32_t i = 0; i < VsockStreams::max_streams; ++i) {
      pair.from_guest(VsockOp::Request, 80, i);
    }
    CHECK_EQ(pair.told.size(), VsockStreams::max_streams);
    CHECK_EQ(pair.take_data(), "");
    pair.from_guest(VsockOp::Request, 80, 5000);
    CHECK_EQ(pair.take_data(), "[3]");
    pair.streams.connect(7, 1003, Pair::make_socket().given, true);
    CHECK_EQ(pair.told.back(), "refused 7");
    for (const std::uint32_t id : std::exchange(pair.asked, {})) {
      CHECK(pair.streams.refuse(id));
    }
    pair.carry();
    CHECK_EQ(pair.packets.size(), VsockStreams::max_streams);
    pair.packets.clear();
    pair.told.clear();
  }
}

TEST("vsock: a Node that has no room for what it is told hears it later, in order") {
  Pair pair;
  pair.is_node_slow = true;
  pair.from_guest(VsockOp::Request);
  pair.settle();
  CHECK_EQ(pair.take_told(), "");
  pair.is_node_slow = false;
  pair.await_told(1);
  CHECK_EQ(pair.take_told(), "requested 80");
  auto socket = Pair::make_socket();
  CHECK(pair.streams.accept(pair.asked[0], std::move(socket.given)));
  pair.is_node_slow = true;
  pair.data_from_guest("all");
  pair.shutdown_from_guest(3);
  pair.settle();
  CHECK_EQ(read_all(socket.ours), "all");
  CHECK(!is_at_end(socket.ours)); // as long as it does not know what that means
  pair.is_node_slow = false;
  pair.await_told(2);
  CHECK_EQ(pair.take_told(), "ended 2147483648, closed 2147483648");
  CHECK(is_closed(socket.ours));
}

TEST("vsock: a driver that goes takes all streams with it") {
  Pair pair;
  const sys::Fd open = pair.open();
  pair.from_guest(VsockOp::Request, 81);
  auto asked = Pair::make_socket();
  pair.streams.connect(7, 1003, std::move(asked.given), true);
  write_all(open, "unheard");
  pair.told.clear();
  pair.has_buffers = false;
  pair.settle();
  pair.from_guest(VsockOp::ReadWrite, 99);
  pair.streams.disconnect();
  CHECK(!pair.streams.has_packets());
  CHECK_EQ(pair.take_told(), "closed 2147483648 (driver), refused 7");
  CHECK(is_closed(open));
  CHECK(is_closed(asked.ours));
  // Node answers what it was asked before that.
  CHECK(pair.streams.refuse(pair.asked.back()));
  pair.has_buffers = true;
  const sys::Fd again = pair.open();
  pair.data_from_guest("a new one");
  CHECK_EQ(read_all(again), "a new one");
}
