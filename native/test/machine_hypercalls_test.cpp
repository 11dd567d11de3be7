#include "machine/hypercalls.hpp"
#include "machine/layout.hpp"
#include "sys/clock.hpp"
#include "sys/fd.hpp"
#include "sys/mapping.hpp"
#include "test/unit.hpp"

#include <cstring>
#include <string>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

using namespace casemate;
using namespace casemate::machine;

namespace {

constexpr std::uint64_t ram_size = 16 << 20;
constexpr std::uint32_t request = image_base + 64;
constexpr std::uint64_t buffer = image_base + 4096;

struct Stream {
  Stream() {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0) {
      guest.reset(ends[0]);
      world.reset(ends[1]);
    }
  }
  sys::Fd guest;
  sys::Fd world;
};

/// A guest's memory and console, without a guest.
struct Machine {
  Stream output;
  Stream input;
  sys::Fd control{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  sys::Mapping mapping =
      sys::Mapping::map(ram_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS).value();
  GuestMemory memory{mapping.data(), ram_size};
  Console console{output.guest.get(), input.guest.get(), control.get()};
  Hypercalls hypercalls{memory, console};

  HypercallStatus transfer(std::uint16_t port, std::uint64_t address, std::uint64_t size,
                           std::uint64_t flags = 0) {
    memory.write(request, casemate_transfer{address, size, flags, -99});
    return hypercalls.start(port, request);
  }
  std::int64_t result() const {
    casemate_transfer transfer{};
    memory.read(request, transfer);
    return transfer.result;
  }
  std::string bytes(std::uint64_t address, std::size_t size) const {
    return {reinterpret_cast<const char*>(memory.at(address, size)), size};
  }
};

void say(const sys::Fd& fd, const std::string& text) {
  CHECK_EQ(write(fd.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
}

std::string hear(const sys::Fd& fd, std::size_t size) {
  std::string text(size, 0);
  const ssize_t count = recv(fd.get(), text.data(), size, MSG_DONTWAIT);
  text.resize(count < 0 ? 0 : static_cast<std::size_t>(count));
  return text;
}

} // namespace

TEST("a write arrives, and its result is its size") {
  Machine machine;
  std::memcpy(machine.memory.at(buffer, 5), "hello", 5);
  CHECK(machine.transfer(CASEMATE_PORT_WRITE, buffer, 5) == HypercallStatus::Done);
  CHECK_EQ(machine.result(), 5);
  CHECK_EQ(hear(machine.output.world, 100), "hello");
}

TEST("a read takes what there is, and is 0 at the end of input") {
  Machine machine;
  say(machine.input.world, "input");
  CHECK(machine.transfer(CASEMATE_PORT_READ, buffer, 100) == HypercallStatus::Done);
  CHECK_EQ(machine.result(), 5);
  CHECK_EQ(machine.bytes(buffer, 5), "input");
  machine.input.world.reset();
  CHECK(machine.transfer(CASEMATE_PORT_READ, buffer, 100) == HypercallStatus::Done);
  CHECK_EQ(machine.result(), 0);
}

TEST("a read that is not to wait says that there is nothing") {
  Machine machine;
  CHECK(machine.transfer(CASEMATE_PORT_READ, buffer, 100, CASEMATE_NONBLOCK) ==
        HypercallStatus::Done);
  CHECK_EQ(machine.result(), std::int64_t{CASEMATE_AGAIN});
}

TEST("a read that waits is interrupted, and goes on with the same request") {
  Machine machine;
  eventfd_write(machine.control.get(), 1);
  CHECK(machine.transfer(CASEMATE_PORT_READ, buffer, 100) == HypercallStatus::Interrupted);
  CHECK(machine.hypercalls.proceed() == HypercallStatus::Interrupted);
  // What the guest writes over its request meanwhile is of no consequence.
  machine.memory.write(request, casemate_transfer{0, UINT64_MAX, UINT64_MAX, 0});
  eventfd_t value;
  eventfd_read(machine.control.get(), &value);
  say(machine.input.world, "late");
  CHECK(machine.hypercalls.proceed() == HypercallStatus::Done);
  CHECK_EQ(machine.result(), 4);
  CHECK_EQ(machine.bytes(buffer, 4), "late");
}

TEST("a write larger than the socket's buffer is interrupted, and arrives whole in the end") {
  Machine machine;
  constexpr std::size_t size = 8 << 20;
  for (std::size_t i = 0; i < size; ++i) {
    *machine.memory.at(buffer + i, 1) = static_cast<std::byte>(i * 7);
  }
  eventfd_write(machine.control.get(), 1);
  HypercallStatus status = machine.transfer(CASEMATE_PORT_WRITE, buffer, size);
  std::string received;
  int interruptions = 0;
  while (status == HypercallStatus::Interrupted && interruptions < 10000) {
    ++interruptions;
    for (std::string part = hear(machine.output.world, 1 << 20); !part.empty();
         part = hear(machine.output.world, 1 << 20)) {
      received += part;
    }
    status = machine.hypercalls.proceed();
  }
  received += hear(machine.output.world, 1 << 20);
  CHECK(status == HypercallStatus::Done);
  CHECK(interruptions > 1);
  CHECK_EQ(machine.result(), static_cast<std::int64_t>(size));
  CHECK(received == machine.bytes(buffer, size));
}

TEST("a write to a console that nobody holds any more says so") {
  Machine machine;
  machine.output.world.reset();
  CHECK(machine.transfer(CASEMATE_PORT_WRITE, buffer, 5) == HypercallStatus::Done);
  CHECK_EQ(machine.result(), std::int64_t{CASEMATE_CLOSED});
}

TEST("without a console, writes vanish and reads are at the end") {
  Machine machine;
  const Console none(-1, -1, machine.control.get());
  Hypercalls hypercalls(machine.memory, none);
  machine.memory.write(request, casemate_transfer{buffer, 1000, 0, -99});
  CHECK(hypercalls.start(CASEMATE_PORT_WRITE, request) == HypercallStatus::Done);
  CHECK_EQ(machine.result(), 1000);
  CHECK(hypercalls.start(CASEMATE_PORT_READ, request) == HypercallStatus::Done);
  CHECK_EQ(machine.result(), 0);
}

TEST("random bytes come, and a guest is told how many") {
  Machine machine;
  CHECK(machine.transfer(CASEMATE_PORT_RANDOM, buffer, 32) == HypercallStatus::Done);
  CHECK_EQ(machine.result(), 32);
  CHECK(machine.bytes(buffer, 32) != std::string(32, 0));
  CHECK_EQ(machine.bytes(buffer + 32, 32), std::string(32, 0));
  CHECK(machine.transfer(CASEMATE_PORT_RANDOM, buffer, 1 << 20) == HypercallStatus::Done);
  CHECK_EQ(machine.result(), 256);
}

TEST("time is counted from the entry into the guest") {
  Machine machine;
  machine.hypercalls.set_entered_at(sys::monotonic_ns() - 5'000'000'000u);
  CHECK(machine.hypercalls.start(CASEMATE_PORT_TIME, request) == HypercallStatus::Done);
  casemate_time time{};
  machine.memory.read(request, time);
  CHECK(time.ns >= 5'000'000'000u && time.ns < 60'000'000'000u);
}

TEST("an exit code is a byte") {
  Machine machine;
  CHECK(machine.hypercalls.start(CASEMATE_PORT_EXIT, 255) == HypercallStatus::Exit);
  CHECK_EQ(machine.hypercalls.exit_code(), 255u);
  CHECK(machine.hypercalls.start(CASEMATE_PORT_EXIT, 256) == HypercallStatus::Violation);
}

TEST("requests and buffers outside of the guest's memory are violations") {
  Machine machine;
  for (const std::uint16_t port : {CASEMATE_PORT_WRITE, CASEMATE_PORT_READ, CASEMATE_PORT_RANDOM}) {
    for (const std::uint32_t address :
         {0u, std::uint32_t{image_base} - 1, std::uint32_t{ram_size} - 8, 0xffffffffu}) {
      CHECK(machine.hypercalls.start(port, address) == HypercallStatus::Violation);
      CHECK(machine.hypercalls.start(CASEMATE_PORT_TIME,
                                     address == ram_size - 8 ? ram_size - 7 : address) ==
            HypercallStatus::Violation);
    }
    CHECK(machine.transfer(port, buffer, ram_size) == HypercallStatus::Violation);
    CHECK(machine.transfer(port, buffer, UINT64_MAX) == HypercallStatus::Violation);
    CHECK(machine.transfer(port, UINT64_MAX, 2) == HypercallStatus::Violation);
    CHECK(machine.transfer(port, ram_size - 1, 2) == HypercallStatus::Violation);
    CHECK(machine.transfer(port, image_base - 1, 2) == HypercallStatus::Violation);
    CHECK(machine.transfer(port, pml4_address, 8) == HypercallStatus::Violation);
    CHECK_EQ(machine.result(), -99);
  }
}

TEST("flags and ports that mean nothing are violations") {
  Machine machine;
  CHECK(machine.transfer(CASEMATE_PORT_WRITE, buffer, 1, CASEMATE_NONBLOCK) ==
        HypercallStatus::Violation);
  CHECK(machine.transfer(CASEMATE_PORT_RANDOM, buffer, 1, 2) == HypercallStatus::Violation);
  CHECK(machine.transfer(CASEMATE_PORT_READ, buffer, 1, 1ull << 32) == HypercallStatus::Violation);
  for (const std::uint16_t port : {0, 0x80, 0xe1, 0xe3, 0xf8, 0xfc, 0x3f8}) {
    CHECK(machine.hypercalls.start(port, request) == HypercallStatus::Violation);
  }
}

TEST("nothing to transfer is done at once, wherever its buffer is") {
  Machine machine;
  for (const std::uint16_t port : {CASEMATE_PORT_WRITE, CASEMATE_PORT_READ, CASEMATE_PORT_RANDOM}) {
    CHECK(machine.transfer(port, 0, 0) == HypercallStatus::Done);
    CHECK_EQ(machine.result(), 0);
  }
}
