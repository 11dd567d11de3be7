#include "machine/virtio/rng.hpp"
#include "test/unit.hpp"
#include "test/virtio.hpp"

#include <algorithm>
#include <set>
#include <string>

using namespace casemate;
using namespace casemate::machine::virtio;

namespace {

constexpr std::uint64_t data = unit::GuestRam::data;

struct Machine {
  Machine() { CHECK(driver.start()); }

  std::string bytes(std::uint64_t address, std::size_t size) const {
    return {reinterpret_cast<const char*>(ram.memory.at(address, size)), size};
  }

  unit::GuestRam ram;
  Rng device;
  unit::Driver driver{ram, device};
};

} // namespace

TEST("a driver's buffers are filled, each with something else") {
  Machine machine;
  auto& queue = machine.driver.queues[0];
  queue.add({{data, 32, true}, {data + 32, 32, true}});
  queue.add({{data + 64, 64, true}});
  machine.driver.kick(0);
  for (int i = 0; i < 2; ++i) {
    const auto used = queue.take_used();
    REQUIRE(used.has_value());
    CHECK_EQ(used->written, 64u);
  }
  const std::string all = machine.bytes(data, 128);
  CHECK(std::set<char>(all.begin(), all.end()).size() > 20);
  CHECK(all.substr(0, 64) != all.substr(64));
  CHECK(machine.driver.transport.take_interrupt());
}

TEST("of a large buffer a part is filled, and nothing beyond") {
  Machine machine;
  machine.driver.queues[0].add({{data, 0x8000, true}});
  machine.driver.kick(0);
  const auto used = machine.driver.queues[0].take_used();
  REQUIRE(used.has_value());
  CHECK(used->written > 0 && used->written <= 0x8000);
  CHECK_EQ(machine.bytes(data + used->written, 64), std::string(64, '\0'));
}

TEST("buffers that cannot be written to come back empty") {
  Machine machine;
  machine.driver.queues[0].add({{data, 32}});
  machine.driver.kick(0);
  const auto used = machine.driver.queues[0].take_used();
  REQUIRE(used.has_value());
  CHECK_EQ(used->written, 0u);
  CHECK_EQ(machine.bytes(data, 32), std::string(32, '\0'));
}

TEST("a driver that asks without end is served in turns") {
  Machine machine;
  auto& queue = machine.driver.queues[0];
  queue = unit::DriverQueue(machine.ram, 0, 256);
  machine.driver.reset();
  REQUIRE(machine.driver.start());
  for (int i = 0; i < 100; ++i) {
    queue.add({{data, 16, true}});
  }
  machine.driver.transport.kick(0);
  CHECK(queue.used_index() < 100);
  CHECK(machine.driver.transport.has_work());
  machine.driver.settle();
  CHECK_EQ(queue.used_index(), 100);
}
