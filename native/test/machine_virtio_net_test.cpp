// The network device, with a socket pair in place of a tap (a datagram is a frame) or as a
// stream.
#include "machine/virtio/net.hpp"
#include "sys/clock.hpp"
#include "sys/event_loop.hpp"
#include "sys/fd.hpp"
#include "unit.hpp"
#include "virtio.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <numeric>
#include <sched.h>
#include <string>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace casemate::unit {

namespace {

using machine::virtio::Net;
using machine::virtio::NetBackend;
using machine::virtio::NetOptions;

using Bytes = std::vector<std::uint8_t>;

constexpr std::uint64_t has_mtu = 1u << 3;
constexpr std::uint64_t mergeable = std::uint64_t{1} << 15;
constexpr std::uint64_t guest_csum = 1u << 1;
constexpr std::uint64_t guest_tso4 = 1u << 7;
constexpr std::uint16_t rx = Net::receive_queue;
constexpr std::uint16_t tx = Net::transmit_queue;
constexpr std::uint64_t data = GuestRam::data;

/// A frame whose bytes tell where they belong.
Bytes frame_of(std::size_t size, std::uint8_t first = 1) {
  Bytes bytes(size);
  std::iota(bytes.begin(), bytes.end(), first);
  return bytes;
}

Bytes with_header(const Bytes& frame) {
  Bytes bytes(Net::header_size);
  bytes.insert(bytes.end(), frame.begin(), frame.end());
  return bytes;
}

Bytes with_length(const Bytes& frame) {
  const auto size = static_cast<std::uint32_t>(frame.size());
  Bytes bytes{static_cast<std::uint8_t>(size >> 24), static_cast<std::uint8_t>(size >> 16),
              static_cast<std::uint8_t>(size >> 8), static_cast<std::uint8_t>(size)};
  bytes.insert(bytes.end(), frame.begin(), frame.end());
  return bytes;
}

/// A driver counts on frames of the MTU's size.
NetOptions large_frames() {
  NetOptions options;
  options.mtu = 40'000;
  return options;
}

struct Report {
  std::uint32_t operation;
  int error;
};

/// A device, its driver, and what is behind it.
class World {
public:
  explicit World(NetBackend backend, NetOptions options = {})
      : net_(with_socket(backend, options)), driver(ram, net_) {
    if (loop_.open()) {
      fail(__FILE__, __LINE__, "epoll_create");
    }
    net_.attach(ram.memory, loop_, {note, this});
    for (std::uint16_t i : {rx, tx}) {
      driver.queues[i] = DriverQueue(ram, i, 256);
    }
  }

  /// What the event loop does until nothing is left to be done.
  void settle() {
    for (int turns = 0; turns < 100; ++turns) {
      driver.settle();
      loop_.turn(0);
    }
    driver.settle();
    driver.transport.take_interrupt();
  }

  /// One turn of the event loop, and what follows from it.
  void turn() {
    loop_.turn(0);
    driver.settle();
  }

  /// As the loop waits, for its timers too.
  void wait() {
    loop_.turn(100);
    driver.settle();
  }

  void put(std::uint64_t address, const Bytes& bytes) const {
    std::memcpy(ram.memory.at(address, bytes.size()), bytes.data(), bytes.size());
  }
  Bytes get(std::uint64_t address, std::size_t size) const {
    const auto* from = reinterpret_cast<const std::uint8_t*>(ram.memory.at(address, size));
    return {from, from + size};
  }
  std::uint16_t buffers_of(std::uint64_t address) const {
    return ram.read<std::uint16_t>(address + 10);
  }
  /// Buffers of one size, one behind the other from `data` on.
  void give(unsigned count, std::uint32_t size) {
    for (unsigned i = 0; i < count; ++i) {
      driver.queues[rx].add({{data + std::uint64_t{i} * size, size, true}});
    }
    driver.kick(rx);
  }
  void send_frame(const Bytes& frame) {
    put(data, with_header(frame));
    driver.queues[tx].add({{data, static_cast<std::uint32_t>(12 + frame.size()), false}});
    driver.kick(tx);
  }

  void tell(const Bytes& bytes) {
    CHECK_EQ(::send(peer.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
             static_cast<ssize_t>(bytes.size()));
  }
  /// All that is there, or one datagram.
  Bytes hear(std::size_t most = 1 << 20) {
    Bytes bytes(most);
    const ssize_t size = ::recv(peer.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    bytes.resize(size < 0 ? 0 : static_cast<std::size_t>(size));
    return bytes;
  }
  bool link_is_up() { return (driver.config<std::uint16_t>(6) & 1) != 0; }

  const GuestRam ram{4 << 20};
  sys::Fd peer;
  std::vector<Report> reports;

private:
  NetOptions with_socket(NetBackend backend, NetOptions options) {
    int ends[2];
    ::socketpair(AF_UNIX, (backend == NetBackend::Tap ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK,
                 0, ends);
    own_.reset(ends[0]);
    peer.reset(ends[1]);
    options.backend = backend;
    options.fd = own_.get();
    return options;
  }
  static void note(void* context, const machine::virtio::Device&, std::uint32_t operation,
                   int error) {
    static_cast<World*>(context)->reports.push_back({operation, error});
  }

  sys::Mutex lock_;
  sys::Lock locked_{lock_};
  sys::EventLoop loop_{lock_};
  sys::Fd own_;
  Net net_;

public:
  Driver driver;

  /// What is behind the device goes away, as a tap does that is deleted.
  void lose_tap() { own_.reset(); }
  /// Another tap takes its place.
  void become(int tap) { ::dup2(tap, own_.get()); }
};

} // namespace

TEST("a network device offers what its host's tap can do, and tells its address and MTU") {
  NetOptions options;
  options.mac = {2, 3, 4, 5, 6, 7};
  options.mtu = 9000;
  options.offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_UFO;
  World world(NetBackend::Tap, options);
  CHECK_EQ(world.driver.offered() & 0xffffff,
           0x1ffabu); // up to STATUS, but for CTRL_GUEST_OFFLOADS
  CHECK_EQ(world.driver.config<std::uint32_t>(0), 0x05040302u);
  CHECK_EQ(world.driver.config<std::uint16_t>(4), 0x0706u);
  CHECK(world.link_is_up());
  CHECK_EQ(world.driver.config<std::uint16_t>(10), 9000u);

  World plain(NetBackend::Stream);
  CHECK_EQ(plain.driver.offered() & 0xffffff, 0x18020u); // MAC, MRG_RXBUF, STATUS
}

TEST("a tap leaves to a driver what it has accepted, and nothing else") {
  // In a thread, whose network namespace it is then.
  int error = 0;
  std::vector<long> given;
  std::uint32_t found = 0;
  std::thread([&] {
    sys::Fd tap(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
    if (::unshare(CLONE_NEWNET) == 0) {
      tap.reset(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
    }
    struct ifreq request {};
    std::strcpy(request.ifr_name, "tap0");
    request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
    if (::ioctl(tap.get(), TUNSETIFF, &request) != 0) {
      error = errno;
      return;
    }
    found = Net::probe_offloads(tap.get());
    for (const std::uint64_t features :
         {std::uint64_t{0}, guest_tso4, guest_csum, guest_csum | guest_tso4 | 1u << 9,
          guest_csum | 1u << 9, guest_csum | guest_tso4 | 1u << 8 | 1u << 9 | 1u << 10}) {
      NetOptions options;
      options.offloads = found;
      World world(NetBackend::Tap, options);
      world.become(tap.get());
      CHECK(world.driver.start(features));
      given.push_back(static_cast<long>(world.reports.size()));
    }
  }).join();
  if (error != 0) {
    SKIP("no tap can be made here: it takes root and /dev/net/tun");
  }
  CHECK((found & (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)) == (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6));
  CHECK_EQ(std::accumulate(given.begin(), given.end(), 0L), 0L); // the kernel took them all
  CHECK_EQ(given.size(), 6u);
}

TEST("a frame of the guest leaves behind its header, however it lies in memory") {
  World world(NetBackend::Tap);
  REQUIRE(world.driver.start());
  const Bytes sent = with_header(frame_of(100));
  world.put(data, sent);
  world.send_frame(frame_of(100));
  CHECK(world.hear() == sent);
  auto& queue = world.driver.queues[tx];
  CHECK_EQ(queue.take_used()->written, 0u);

  world.put(data, Bytes(sent.begin(), sent.begin() + 5));
  world.put(data + 1000, Bytes(sent.begin() + 5, sent.begin() + 20));
  world.put(data + 2000, Bytes(sent.begin() + 20, sent.end()));
  const auto head = queue.add({{data, 5}, {data + 1000, 15}, {data + 2000, 92}});
  world.driver.kick(tx);
  CHECK(world.hear() == sent);
  CHECK_EQ(queue.take_used()->id, std::uint32_t{head});
}

TEST("what of the guest's is no frame comes back to it, and goes nowhere") {
  World world(NetBackend::Tap);
  REQUIRE(world.driver.start());
  auto& queue = world.driver.queues[tx];
  for (const std::uint32_t size : {0u, 1u, 11u, 12u, 25u, 65562u, 1u << 20}) {
    queue.add({{data, size}});
  }
  queue.add({{data, 64, true}}); // for the device to write to
  world.driver.kick(tx);
  for (int i = 0; i < 8; ++i) {
    CHECK(queue.take_used().has_value());
  }
  CHECK(world.hear().empty());
  CHECK(world.reports.empty());
  world.send_frame(frame_of(14));
  CHECK_EQ(world.hear().size(), 26u);
}

TEST("a frame arrives in the guest's buffer with its header, and says how many buffers it took") {
  World world(NetBackend::Tap);
  REQUIRE(world.driver.start(mergeable));
  world.give(64, 2048);
  Bytes frame = with_header(frame_of(60));
  frame[0] = 1; // NEEDS_CSUM, as a tap may have it
  world.tell(frame);
  world.settle();
  const auto used = world.driver.queues[rx].take_used();
  REQUIRE(used.has_value());
  CHECK_EQ(used->written, 72u);
  frame[10] = 1;
  CHECK(world.get(data, 72) == frame);
  CHECK(!world.driver.queues[rx].take_used().has_value());
}

TEST("a large frame takes as many buffers as it needs, in the order in which they were given") {
  World world(NetBackend::Tap, large_frames());
  REQUIRE(world.driver.start(mergeable | has_mtu));
  world.give(256, 1000);
  for (std::uint8_t round = 0; round < 6; ++round) {
    const Bytes frame = frame_of(30'000, round);
    world.tell(with_header(frame));
    world.settle();
    auto& queue = world.driver.queues[rx];
    Bytes got;
    for (int i = 0; i < 31; ++i) {
      const auto used = queue.take_used();
      REQUIRE(used.has_value());
      CHECK_EQ(used->id, static_cast<std::uint32_t>(31 * round + i));
      CHECK_EQ(used->written, i < 30 ? 1000u : 12u);
      const Bytes part = world.get(data + std::uint64_t{1000} * used->id, used->written);
      got.insert(got.end(), part.begin(), part.end());
    }
    CHECK_EQ(got[10] | got[11] << 8, 31);
    CHECK(Bytes(got.begin() + 12, got.end()) == frame);
    CHECK(!queue.take_used().has_value());
  }
}

TEST("a header may lie across buffers as small as they like") {
  World world(NetBackend::Tap);
  REQUIRE(world.driver.start(mergeable));
  world.give(256, 11);
  world.tell(with_header(frame_of(43)));
  world.settle();
  Bytes expected = with_header(frame_of(43));
  expected[10] = 5;
  CHECK(world.get(data, 55) == expected);
  CHECK_EQ(world.driver.queues[rx].used_index(), 5u);
}

TEST("without mergeable buffers a frame has one, and what does not fit into it is lost") {
  World world(NetBackend::Tap);
  REQUIRE(world.driver.start());
  world.give(2, 100);
  world.tell(with_header(frame_of(200)));
  world.tell(with_header(frame_of(60)));
  world.tell(with_header(frame_of(61)));
  world.tell(with_header(frame_of(62)));
  world.settle();
  auto& queue = world.driver.queues[rx];
  CHECK_EQ(queue.take_used()->written, 72u);
  CHECK_EQ(queue.take_used()->written, 73u);
  CHECK(!queue.take_used().has_value());
  CHECK_EQ(world.buffers_of(data), 1u);
  queue.add({{data + 4096, 100, true}});
  world.driver.kick(rx);
  world.settle();
  CHECK_EQ(queue.take_used()->written, 74u); // it had waited
}

TEST("frames wait for buffers, and none is cut short for want of them") {
  World world(NetBackend::Tap, large_frames());
  REQUIRE(world.driver.start(mergeable | has_mtu));
  world.give(10, 2000);
  world.tell(with_header(frame_of(30'000)));
  world.settle();
  auto& queue = world.driver.queues[rx];
  CHECK(!queue.take_used().has_value());
  for (std::uint32_t i = 10; i < 40; ++i) {
    queue.add({{data + std::uint64_t{2000} * i, 2000, true}});
  }
  world.driver.kick(rx);
  world.settle();
  CHECK_EQ(queue.used_index(), 16u);
  CHECK_EQ(world.buffers_of(data), 16u);
}

TEST("a driver whose buffers hold no frame is told that the device needs a reset") {
  for (const std::uint32_t size : {0u, 25u}) {
    World world(NetBackend::Tap);
    REQUIRE(world.driver.start());
    world.give(1, size);
    world.settle();
    CHECK(world.driver.needs_reset());
    REQUIRE(world.driver.start());
    world.give(1, 1600);
    world.tell(with_header(frame_of(60)));
    world.settle();
    CHECK(world.driver.queues[rx].take_used().has_value());
  }
}

TEST("a device that was reset writes to none of the buffers that it had") {
  World world(NetBackend::Tap);
  REQUIRE(world.driver.start(mergeable));
  world.give(64, 2048);
  world.settle();
  world.driver.reset();
  world.tell(with_header(frame_of(60)));
  world.settle();
  CHECK(world.get(data, 2048) == Bytes(2048));
  REQUIRE(world.driver.start(mergeable));
  world.driver.queues[rx].add({{data + 65536, 65536, true}});
  world.driver.queues[rx].add({{data + 131072, 65536, true}});
  world.driver.kick(rx);
  world.settle();
  CHECK(world.get(data, 2048) == Bytes(2048));
  CHECK_EQ(world.driver.queues[rx].take_used()->written, 72u);
}

TEST("a tap that is gone is told of once, takes the link down, and costs the guest no buffer") {
  World world(NetBackend::Tap);
  REQUIRE(world.driver.start(mergeable));
  world.lose_tap();
  world.give(64, 2048);
  world.settle();
  REQUIRE(world.reports.size() == 1);
  CHECK_EQ(world.reports[0].error, EBADF);
  CHECK(!world.link_is_up());
  for (int i = 0; i < 100; ++i) {
    world.send_frame(frame_of(60));
  }
  CHECK_EQ(world.driver.queues[tx].used_index(), 100u);
  CHECK_EQ(world.reports.size(), 1u);
  REQUIRE(world.driver.start(mergeable));
  CHECK(!world.link_is_up());
  CHECK_EQ(world.reports.size(), 1u);
}

TEST("a guest that never stops sending has its turns, and no more") {
  World world(NetBackend::Tap);
  REQUIRE(world.driver.start());
  for (int i = 0; i < 200; ++i) {
    world.driver.queues[tx].add({{data, 11}});
  }
  world.driver.transport.kick(tx);
  CHECK(world.driver.queues[tx].used_index() < 200);
  world.driver.settle();
  CHECK_EQ(world.driver.queues[tx].used_index(), 200u);
}

TEST("what a limit allows is sent and received, and the rest when its time has come") {
  NetOptions options;
  options.send_limit = {0, 0, 100, 5};
  options.receive_limit = {100'000, 5000, 0, 0};
  World world(NetBackend::Tap, options);
  const std::uint64_t begun = sys::monotonic_ns();
  REQUIRE(world.driver.start(mergeable));
  world.give(64, 2048);
  for (int i = 0; i < 8; ++i) {
    world.tell(with_header(frame_of(1000)));
    world.driver.queues[tx].add({{data + (1 << 20), 1012}});
  }
  const auto& received = world.driver.queues[rx];
  const auto& sent = world.driver.queues[tx];
  world.driver.kick(tx);
  world.settle();
  CHECK(received.used_index() >= 5 && sent.used_index() >= 5); // a burst
  while (received.used_index() < 8 || sent.used_index() < 8) {
    // The one that empties the bucket may be larger than what is left in it.
    const auto most = 5 + 1 + (sys::monotonic_ns() - begun) / 10'000'000;
    CHECK(received.used_index() <= most && sent.used_index() <= most);
    world.driver.kick(tx); // changes nothing
    world.driver.kick(rx);
    world.wait();
    REQUIRE(sys::monotonic_ns() - begun < 10'000'000'000);
  }
}

TEST("on a stream a frame has its length before it, and no header") {
  World world(NetBackend::Stream);
  REQUIRE(world.driver.start(mergeable));
  world.send_frame(frame_of(60));
  CHECK(world.hear() == with_length(frame_of(60)));
  world.put(data, with_header(frame_of(300)));
  world.driver.queues[tx].add({{data, 7}, {data + 7, 5}, {data + 12, 1}, {data + 13, 299}});
  world.driver.kick(tx);
  CHECK(world.hear() == with_length(frame_of(300)));

  world.give(64, 2048);
  world.tell(with_length(frame_of(60)));
  world.settle();
  Bytes expected = with_header(frame_of(60));
  expected[10] = 1;
  CHECK(world.get(data, 72) == expected);
}

TEST("frames of a stream are put together from whatever pieces they come in") {
  World world(NetBackend::Stream);
  REQUIRE(world.driver.start(mergeable));
  world.give(256, 2048);
  Bytes stream;
  std::vector<Bytes> frames;
  for (const std::size_t size : {14u, 60u, 1514u, 65535u + 14u, 15u, 9000u}) {
    frames.push_back(frame_of(size, static_cast<std::uint8_t>(size)));
    const Bytes part = with_length(frames.back());
    stream.insert(stream.end(), part.begin(), part.end());
  }
  for (std::size_t at = 0, piece = 1; at < stream.size(); at += piece, piece = piece * 3 % 4001) {
    piece = std::min(piece, stream.size() - at);
    world.tell(Bytes(stream.begin() + static_cast<long>(at),
                     stream.begin() + static_cast<long>(at + piece)));
    world.settle();
  }
  auto& queue = world.driver.queues[rx];
  for (const Bytes& frame : frames) {
    Bytes got;
    while (got.size() < 12 + frame.size()) {
      const auto used = queue.take_used();
      REQUIRE(used.has_value());
      const Bytes part = world.get(data + std::uint64_t{2048} * used->id, used->written);
      got.insert(got.end(), part.begin(), part.end());
    }
    CHECK(Bytes(got.begin() + 12, got.end()) == frame);
  }
  CHECK(!queue.take_used().has_value());
}

TEST(
    "of a long stream each frame arrives as it was, however its sender and the driver take turns") {
  World world(NetBackend::Stream);
  REQUIRE(world.driver.start(mergeable));
  auto& queue = world.driver.queues[rx];
  std::uint32_t state = 1;
  const auto random = [&state](std::uint32_t below) {
    state = state * 1664525 + 1013904223;
    return (state >> 8) % below;
  };
  constexpr std::uint32_t size = 1536; // of a buffer; there are as many as the queue has places
  unsigned given = 0;
  unsigned taken = 0;
  std::deque<Bytes> frames; // that have not arrived
  Bytes unsent;
  Bytes arriving;
  for (unsigned turns = 0, made = 0; made < 1000 || !frames.empty(); ++turns) {
    REQUIRE(turns < 50'000);
    if (made < 1000 && unsent.size() < 70'000) {
      const std::size_t length = 14 + (random(16) == 0 ? random(65536) : random(2000));
      frames.push_back(frame_of(length, static_cast<std::uint8_t>(++made)));
      const Bytes part = with_length(frames.back());
      unsent.insert(unsent.end(), part.begin(), part.end());
    }
    const ssize_t sent =
        ::send(world.peer.get(), unsent.data(), std::min<std::size_t>(random(9000), unsent.size()),
               MSG_DONTWAIT | MSG_NOSIGNAL);
    unsent.erase(unsent.begin(), unsent.begin() + std::max<ssize_t>(sent, 0));
    const unsigned before = given;
    for (unsigned more = random(10); more > 0 && given - taken < 256; --more) {
      queue.add({{data + std::uint64_t{given++ % 256} * size, size, true}});
    }
    if (given > before) {
      world.driver.kick(rx);
    }
    world.turn();
    while (const auto used = queue.take_used()) {
      REQUIRE(used->id == taken++ % 256);
      const Bytes part = world.get(data + std::uint64_t{size} * used->id, used->written);
      arriving.insert(arriving.end(), part.begin(), part.end());
      REQUIRE(!frames.empty());
      if (arriving.size() < 12 + frames.front().size()) {
        continue;
      }
      REQUIRE(Bytes(arriving.begin() + 12, arriving.end()) == frames.front());
      frames.pop_front();
      arriving.clear();
    }
  }
  CHECK(world.reports.empty());
}

TEST("a stream waits for the guest's buffers, and its sender with it") {
  World world(NetBackend::Stream);
  REQUIRE(world.driver.start(mergeable));
  const Bytes frame = with_length(frame_of(1000));
  int sent = 0;
  while (::send(world.peer.get(), frame.data(), frame.size(), MSG_DONTWAIT) ==
         static_cast<ssize_t>(frame.size())) {
    ++sent;
    world.settle();
    REQUIRE(sent < 10'000);
  }
  CHECK(world.reports.empty());
  world.give(256, 2048);
  world.settle();
  CHECK_EQ(world.driver.queues[rx].used_index(), static_cast<std::uint16_t>(std::min(sent, 256)));
}

TEST("a length that is no frame's ends the connection") {
  for (const std::uint32_t length : {0u, 13u, 65550u, 0x80000000u, 0xffffffffu}) {
    World world(NetBackend::Stream);
    REQUIRE(world.driver.start(mergeable));
    world.give(64, 2048);
    Bytes bytes(100);
    for (int i = 0; i < 4; ++i) {
      bytes[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(length >> (24 - 8 * i));
    }
    world.tell(bytes);
    world.settle();
    REQUIRE(world.reports.size() == 1);
    CHECK_EQ(world.reports[0].error, EPROTO);
    CHECK(!world.link_is_up());
    CHECK(!world.driver.queues[rx].take_used().has_value());
  }
}

TEST("a stream whose other end hangs up is told of once, and the guest goes on") {
  World world(NetBackend::Stream);
  REQUIRE(world.driver.start(mergeable));
  world.peer.reset();
  world.send_frame(frame_of(60));
  world.settle();
  REQUIRE(world.reports.size() == 1);
  CHECK_EQ(world.reports[0].error, EPIPE);
  CHECK_EQ(world.driver.queues[tx].used_index(), 1u);
  world.give(64, 2048);
  world.settle();
  CHECK_EQ(world.reports.size(), 1u);

  World listening(NetBackend::Stream);
  REQUIRE(listening.driver.start(mergeable));
  listening.give(64, 2048);
  listening.settle();
  listening.peer.reset();
  listening.settle();
  REQUIRE(listening.reports.size() == 1);
  CHECK_EQ(listening.reports[0].error, ECONNRESET);
}

TEST("frames for which a stream has no room wait, and none is torn apart, not even by a reset") {
  World world(NetBackend::Stream);
  REQUIRE(world.driver.start(mergeable));
  auto& queue = world.driver.queues[tx];
  Bytes expected;
  unsigned sent = 0;
  // Until it waits; each frame in memory of its own.
  for (; queue.used_index() == sent && sent < 60; ++sent) {
    const Bytes frame = frame_of(40'000 + sent, static_cast<std::uint8_t>(sent));
    const std::uint64_t at = data + std::uint64_t{sent} * 50'000;
    world.put(at, with_header(frame));
    queue.add({{at, static_cast<std::uint32_t>(12 + frame.size())}});
    world.driver.kick(tx);
    const Bytes part = with_length(frame);
    expected.insert(expected.end(), part.begin(), part.end());
  }
  REQUIRE(sent < 60);
  const unsigned taken = queue.used_index();
  CHECK(taken + 1 >= sent);
  world.driver.reset(); // frames that it had not begun with are gone
  Bytes heard;
  const auto listen = [&] {
    for (Bytes part = world.hear(); !part.empty(); part = world.hear()) {
      heard.insert(heard.end(), part.begin(), part.end());
      world.settle();
    }
  };
  listen();
  REQUIRE(world.driver.start(mergeable));
  const Bytes last = frame_of(60, 99);
  world.send_frame(last);
  listen();
  Bytes whole;
  for (unsigned i = 0, at = 0; i < taken; ++i) {
    const std::size_t size = 4 + 40'000 + i;
    whole.insert(whole.end(), expected.begin() + at,
                 expected.begin() + at + static_cast<long>(size));
    at += static_cast<unsigned>(size);
  }
  const Bytes part = with_length(last);
  whole.insert(whole.end(), part.begin(), part.end());
  CHECK_EQ(heard.size(), whole.size());
  CHECK(heard == whole);
}

} // namespace casemate::unit
