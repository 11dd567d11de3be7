#include "machine/virtio/console.hpp"
#include "test/unit.hpp"
#include "test/virtio.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <string>

using namespace casemate;
using namespace casemate::machine::virtio;
using unit::Driver;
using unit::GuestRam;

namespace {

constexpr std::uint16_t receive = 0;
constexpr std::uint16_t transmit = 1;
constexpr std::uint64_t data = GuestRam::data;
constexpr std::uint32_t big = 0x80000; // more than a socket takes at once

struct Sockets {
  Sockets() { static_cast<void>(socketpair(AF_UNIX, SOCK_STREAM, 0, ends)); }
  ~Sockets() {
    for (int& fd : ends) {
      finish(fd);
    }
  }
  static void finish(int& fd) {
    if (fd >= 0) {
      close(std::exchange(fd, -1));
    }
  }

  int ends[2] = {-1, -1}; // ours, the device's
};

struct Machine {
  Machine() {
    static_cast<void>(loop.open());
    console.attach(ram.memory, loop, {});
  }

  void write(std::uint64_t address, const std::string& text) const {
    std::memcpy(ram.memory.at(address, text.size()), text.data(), text.size());
  }
  std::string read(std::uint64_t address, std::size_t size) const {
    return {reinterpret_cast<const char*>(ram.memory.at(address, size)), size};
  }
  /// What the guest has written by now.
  std::string output() const {
    std::string bytes(2 << 20, '\0');
    const ssize_t size = recv(out.ends[0], bytes.data(), bytes.size(), MSG_DONTWAIT);
    return bytes.substr(0, size > 0 ? static_cast<std::size_t>(size) : 0);
  }
  void type(const std::string& text) const {
    CHECK_EQ(send(in.ends[0], text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  }
  void turn() {
    loop.turn(0);
    driver.settle();
  }

  GuestRam ram;
  Sockets out;
  Sockets in;
  sys::Mutex mutex;
  sys::Lock lock{mutex};
  sys::EventLoop loop{mutex};
  Console console{out.ends[1], in.ends[1]};
  Driver driver{ram, console};
};

} // namespace

TEST("what a guest writes to its console is read, whatever pieces it is in") {
  Machine m;
  CHECK(m.driver.start());
  m.write(data, "hello, world\n");
  m.driver.queues[transmit].add({{data, 5}, {data + 5, 2}, {data + 20, 0}});
  m.driver.queues[transmit].add({{data + 7, 6}});
  m.driver.kick(transmit);
  CHECK_EQ(m.output(), std::string("hello, world\n"));
  CHECK(m.driver.queues[transmit].take_used().has_value());
  CHECK(m.driver.queues[transmit].take_used().has_value());
}

TEST("output that nobody reads waits in the guest, and none of it is lost") {
  Machine m;
  CHECK(m.driver.start());
  std::string all(big, '\0');
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i] = static_cast<char>(i % 251);
  }
  m.write(data, all);
  m.driver.queues[transmit].add({{data, 100}, {data + 100, big - 100}});
  m.driver.kick(transmit);
  CHECK(!m.driver.queues[transmit].take_used().has_value());
  m.driver.kick(transmit); // tells it nothing new
  std::string read;
  while (read.size() < all.size()) {
    read += m.output();
    m.turn();
  }
  CHECK(read == all);
  CHECK(m.driver.queues[transmit].take_used().has_value());
  CHECK(m.output().empty());
}

TEST("output is done with where nobody can read it any more") {
  Machine m;
  CHECK(m.driver.start());
  m.driver.queues[transmit].add({{data, big}});
  m.driver.kick(transmit);
  CHECK(!m.driver.queues[transmit].take_used().has_value());
  Sockets::finish(m.out.ends[0]);
  m.turn();
  CHECK(m.driver.queues[transmit].take_used().has_value());
  m.driver.queues[transmit].add({{data, 1}});
  m.driver.kick(transmit);
  CHECK(m.driver.queues[transmit].take_used().has_value());
}

TEST("what is typed a guest reads, as it gives buffers for it") {
  Machine m;
  CHECK(m.driver.start());
  m.type("hello");
  m.driver.queues[receive].add({{data, 2, true}, {data + 2, 2, true}});
  m.driver.kick(receive);
  auto used = m.driver.queues[receive].take_used();
  REQUIRE(used.has_value());
  CHECK_EQ(used->written, 4u);
  CHECK_EQ(m.read(data, 4), std::string("hell"));

  m.driver.queues[receive].add({{data + 4, 100, true}});
  m.driver.queues[receive].add({{data + 200, 100, true}});
  m.driver.kick(receive);
  used = m.driver.queues[receive].take_used();
  REQUIRE(used.has_value());
  CHECK_EQ(used->written, 1u);
  CHECK(!m.driver.queues[receive].take_used().has_value());
  m.type("there");
  m.turn();
  used = m.driver.queues[receive].take_used();
  REQUIRE(used.has_value());
  CHECK_EQ(m.read(data + 200, used->written), std::string("there"));
}

TEST("the end of input is told to nobody, and keeps nobody awake") {
  Machine m;
  CHECK(m.driver.start());
  m.driver.queues[receive].add({{data, 100, true}});
  m.driver.kick(receive);
  m.type("bye");
  Sockets::finish(m.in.ends[0]);
  m.turn();
  const auto used = m.driver.queues[receive].take_used();
  REQUIRE(used.has_value());
  CHECK_EQ(used->written, 3u);
  m.driver.queues[receive].add({{data, 100, true}});
  m.driver.kick(receive);
  m.turn();
  CHECK(!m.driver.queues[receive].take_used().has_value());
  CHECK(!m.driver.transport.has_work());
  CHECK(!m.driver.needs_reset());
}

TEST("a buffer that input does not fit in is given back, and keeps nobody awake") {
  Machine m;
  CHECK(m.driver.start());
  m.type("x");
  m.driver.queues[receive].add({{data, 100, false}});
  m.driver.queues[receive].add({{data, 100, true}});
  m.driver.kick(receive);
  const auto none = m.driver.queues[receive].take_used();
  REQUIRE(none.has_value());
  CHECK_EQ(none->written, 0u);
  const auto one = m.driver.queues[receive].take_used();
  REQUIRE(one.has_value());
  CHECK_EQ(one->written, 1u);
}

TEST("a console that is reset forgets what it had of its guest, and goes on") {
  Machine m;
  CHECK(m.driver.start());
  m.driver.queues[transmit].add({{data, big}});
  m.driver.kick(transmit);
  m.driver.queues[receive].add({{data, 100, true}});
  m.driver.kick(receive);
  m.driver.reset();
  m.type("x");
  m.ram.write(data, 7);
  while (!m.output().empty()) {
    m.turn();
  }
  CHECK_EQ(m.ram.read<int>(data), 7);

  CHECK(m.driver.start());
  m.write(data, "again");
  m.driver.queues[transmit].add({{data, 5}});
  m.driver.kick(transmit);
  CHECK_EQ(m.output(), std::string("again"));
  m.driver.queues[receive].add({{data, 100, true}});
  m.driver.kick(receive);
  CHECK(m.driver.queues[receive].take_used().has_value());
}
