#include "machine/virtio/vsock.hpp"
#include "test/unit.hpp"
#include "test/virtio.hpp"

#include <memory>
#include <string>
#include <sys/mman.h>
#include <sys/socket.h>
#include <vector>

using namespace casemate;
using namespace casemate::machine::virtio;
using unit::Driver;
using unit::GuestRam;

namespace {

constexpr std::uint16_t rx = 0, tx = 1, events = 2;
constexpr std::uint64_t packet_at = GuestRam::data;
constexpr std::uint64_t rx_at = GuestRam::data + 0x10000;
constexpr std::uint32_t rx_size = 0x1000;

struct FreeStorage {
  void operator()(void* storage) const { munmap(storage, sizeof(Vsock::Storage)); }
};

/// The device with a driver and a Node.
struct Machine {
  Machine() {
    lock.lock();
    static_cast<void>(loop.open());
    device.attach(ram.memory, loop, {});
  }

  void give_buffers(int count, std::uint32_t size = rx_size) {
    for (int i = 0; i < count; ++i) {
      const std::uint64_t at = rx_at + std::uint64_t{rx_size} * (driver.queues[rx].next_descriptor);
      // The header ends within the second.
      driver.queues[rx].add({{at, 40, true}, {at + 40, size - 40, true}});
    }
    driver.kick(rx);
  }

  VsockHeader header(VsockOp op, std::uint32_t guest_port = 5000) {
    VsockHeader header;
    header.src_cid = 3;
    header.dst_cid = 2;
    header.src_port = guest_port;
    header.dst_port = 80;
    header.type = 1;
    header.op = static_cast<std::uint16_t>(op);
    header.buf_alloc = 1 << 16;
    return header;
  }

  void from_guest(VsockHeader packet, const std::string& data = "") {
    packet.len = static_cast<std::uint32_t>(data.size());
    ram.write(packet_at, packet);
    for (std::size_t i = 0; i < data.size(); ++i) {
      ram.write(packet_at + sizeof packet + i, data[i]);
    }
    driver.queues[tx].add({{packet_at, sizeof packet}, {packet_at + 44, packet.len}});
    driver.kick(tx);
  }

  /// The next packet that the guest has got, as its op and its data; "" for none.
  std::string take() {
    const auto used = driver.queues[rx].take_used();
    if (!used) {
      return "";
    }
    const std::uint64_t at = rx_at + std::uint64_t{rx_size} * used->id;
    const auto packet = ram.read<VsockHeader>(at);
    CHECK_EQ(used->written, used->written == 0 ? 0 : 44 + packet.len);
    std::string text = used->written == 0 ? "unused" : std::to_string(packet.op);
    for (std::uint32_t i = 0; used->written > 0 && i < packet.len; ++i) {
      text += ram.read<char>(at + 44 + i);
    }
    return text;
  }

  static bool tell(void* machine, StreamEvent event, std::uint32_t id, std::uint32_t, bool) {
    static_cast<Machine*>(machine)->told.push_back(event);
    static_cast<Machine*>(machine)->id = id;
    return true;
  }

  /// Our end of a stream that the guest has begun.
  sys::Fd open() {
    from_guest(header(VsockOp::Request));
    int fds[2] = {-1, -1};
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    CHECK(device.accept(id, sys::Fd(fds[1])));
    driver.settle();
    CHECK_EQ(take(), "2");
    return sys::Fd(fds[0]);
  }

  GuestRam ram;
  sys::Mutex lock;
  sys::EventLoop loop{lock};
  std::unique_ptr<Vsock::Storage, FreeStorage> storage{
      static_cast<Vsock::Storage*>(mmap(nullptr, sizeof(Vsock::Storage), PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))};
  Vsock device{*storage, loop, {tell, this}};
  Driver driver{ram, device};
  std::vector<StreamEvent> told;
  std::uint32_t id = 0;
};

} // namespace

TEST("vsock device: it says who the guest is") {
  Machine machine;
  CHECK_EQ(machine.driver.config<std::uint64_t>(0), 3u);
  CHECK_EQ(machine.driver.config<std::uint32_t>(4), 0u);
  CHECK_EQ(machine.driver.config<std::uint64_t>(8), 0u);
}

TEST("vsock device: data goes both ways, in the guest's buffers") {
  Machine machine;
  REQUIRE(machine.driver.start());
  machine.give_buffers(6);
  const sys::Fd socket = machine.open();
  machine.from_guest(machine.header(VsockOp::ReadWrite), "hello");
  char bytes[64];
  CHECK_EQ(recv(socket.get(), bytes, sizeof bytes, MSG_DONTWAIT), 5);
  CHECK_EQ(std::string(bytes, 5), "hello");
  CHECK_EQ(send(socket.get(), "and hello", 9, 0), 9);
  machine.loop.turn(0);
  machine.driver.settle();
  CHECK_EQ(machine.take(), "5and hello");
  CHECK_EQ(machine.take(), "");
}

TEST("vsock device: packets wait for buffers, and buffers for packets") {
  Machine machine;
  REQUIRE(machine.driver.start());
  machine.give_buffers(1);
  const sys::Fd socket = machine.open();
  CHECK_EQ(send(socket.get(), "data", 4, 0), 4);
  machine.loop.turn(0);
  machine.driver.settle();
  CHECK_EQ(machine.take(), "");
  machine.give_buffers(3);
  CHECK_EQ(machine.take(), "5data");
  CHECK_EQ(machine.take(), "");
  CHECK_EQ(send(socket.get(), "more", 4, 0), 4);
  machine.loop.turn(0);
  CHECK_EQ(machine.take(), "5more");
}

TEST("vsock device: a buffer without room for a packet is given back unused") {
  Machine machine;
  REQUIRE(machine.driver.start());
  machine.give_buffers(1, 44);
  machine.give_buffers(1);
  machine.from_guest(machine.header(VsockOp::ReadWrite));
  CHECK_EQ(machine.take(), "unused");
  CHECK_EQ(machine.take(), "3");
}

TEST("vsock device: a packet without a whole header is nothing") {
  Machine machine;
  REQUIRE(machine.driver.start());
  machine.give_buffers(1);
  machine.ram.write(packet_at, machine.header(VsockOp::ReadWrite));
  machine.driver.queues[tx].add({{packet_at, 43}});
  machine.driver.queues[tx].add({{packet_at, 44, true}});
  machine.driver.kick(tx);
  CHECK(machine.driver.queues[tx].take_used().has_value());
  CHECK(machine.driver.queues[tx].take_used().has_value());
  CHECK_EQ(machine.take(), "");
}

TEST("vsock device: a guest that takes no answers is not listened to, until it does") {
  Machine machine;
  REQUIRE(machine.driver.start());
  for (int i = 0; i < 70; ++i) {
    machine.from_guest(machine.header(VsockOp::ReadWrite, static_cast<std::uint32_t>(i)));
  }
  CHECK_EQ(machine.driver.queues[tx].used_index(), 64u);
  int answers = 0;
  for (int i = 0; i < 70; ++i) {
    machine.give_buffers(1);
    answers += machine.take() == "3" ? 1 : 0;
  }
  CHECK_EQ(answers, 70);
  CHECK_EQ(machine.driver.queues[tx].used_index(), 70u);
}

TEST("vsock device: a reset ends all streams, and the next driver is told of it") {
  Machine machine;
  REQUIRE(machine.driver.start());
  machine.give_buffers(4);
  machine.driver.queues[events].add({{packet_at + 0x1000, 4, true}});
  machine.driver.kick(events);
  CHECK(!machine.driver.queues[events].take_used().has_value());
  const sys::Fd socket = machine.open();
  machine.told.clear();
  machine.driver.reset();
  REQUIRE(machine.told.size() == 1);
  CHECK(machine.told[0] == StreamEvent::Closed);
  char byte;
  CHECK_EQ(recv(socket.get(), &byte, 1, MSG_DONTWAIT), 0);
  REQUIRE(machine.driver.start());
  machine.ram.write(packet_at + 0x1000, ~std::uint32_t{0});
  machine.driver.queues[events].add({{packet_at + 0x1000, 4, true}});
  machine.driver.kick(events);
  const auto used = machine.driver.queues[events].take_used();
  REQUIRE(used.has_value());
  CHECK_EQ(used->written, 4u);
  CHECK_EQ(machine.ram.read<std::uint32_t>(packet_at + 0x1000), 0u);
}

TEST("vsock device: without a driver nobody is there to connect to") {
  Machine machine;
  machine.device.connect(7, 1003, sys::Fd());
  REQUIRE(machine.told.size() == 1);
  CHECK(machine.told[0] == StreamEvent::Refused);
}
