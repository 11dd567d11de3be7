#include "machine/virtio/transport.hpp"
#include "test/unit.hpp"
#include "test/virtio.hpp"

#include <string>

using namespace casemate;
using namespace casemate::machine;
using namespace casemate::machine::virtio;
using unit::Driver;
using unit::GuestRam;

namespace mmio = unit::mmio;

namespace {

constexpr std::uint64_t data = GuestRam::data;
constexpr std::uint64_t own_feature = 1 << 5;

/// Notes what it is told. What it is given it gives back.
class Recorder : public DeviceOf<Recorder> {
public:
  Recorder() : DeviceOf(DeviceType::Rng, own_feature, 2) {}

  void on_activate(std::uint64_t features) {
    log += "activate ";
    features_seen = features;
  }
  void on_reset() { log += "reset "; }
  void on_kick(std::uint16_t index) {
    log += "kick" + std::to_string(index) + ' ';
    while (queue(index).pop(chain)) {
      queue(index).push(chain.head(), 0);
    }
    notify(queue(index));
    if (std::exchange(wants_more, false)) {
      kick_again(index);
    }
  }
  void on_read_config(std::uint32_t offset, std::span<std::byte> value) {
    read_from_config(config, offset, value);
  }
  void on_write_config(std::uint32_t offset, std::span<const std::byte> value) {
    written = {offset, value.size()};
  }
  using Device::fail, Device::notify_config;

  std::string take_log() { return std::exchange(log, {}); }

  std::string log;
  std::uint64_t features_seen = 0;
  std::pair<std::uint32_t, std::size_t> written;
  std::uint64_t config = 0x1122334455667788;
  bool wants_more = false;
  Chain chain;
};

struct Machine {
  GuestRam ram;
  Recorder device;
  Driver driver{ram, device};
};

} // namespace

TEST("a driver finds a device of version 2, and what it offers") {
  Machine m;
  CHECK_EQ(m.driver.read(mmio::magic), 0x74726976u);
  CHECK_EQ(m.driver.read(mmio::version), 2u);
  CHECK_EQ(m.driver.read(mmio::device_id), 4u);
  CHECK_EQ(m.driver.offered(),
           own_feature | feature_version_1 | feature_indirect | feature_event_index);
  m.driver.write(mmio::device_features_select, 2);
  CHECK_EQ(m.driver.read(mmio::device_features), 0u);
  m.driver.write(mmio::queue_select, 1);
  CHECK_EQ(m.driver.read(mmio::queue_size_max), 256u);
  m.driver.write(mmio::queue_select, 2);
  CHECK_EQ(m.driver.read(mmio::queue_size_max), 0u);
  CHECK_EQ(m.driver.read(0xb0), 0xffffffffu); // no shared memory
}

TEST("a device starts when its driver is ready, with the features that both want") {
  Machine m;
  REQUIRE(m.driver.start(own_feature | feature_indirect));
  CHECK_EQ(m.device.take_log(), "reset activate ");
  CHECK_EQ(m.device.features_seen, own_feature | feature_indirect | feature_version_1);
  CHECK_EQ(m.driver.read(mmio::status), 15u);
}

TEST("features that are not offered, and devices before version 1, are not accepted") {
  Machine m;
  CHECK(!m.driver.start(1 << 6));
  m.driver.write(mmio::status, 15); // goes on all the same
  m.driver.settle();
  CHECK_EQ(m.device.take_log(), "reset ");
  m.driver.reset();
  m.driver.write(mmio::status, 3);
  m.driver.accept(own_feature);
  m.driver.write(mmio::status, 11);
  CHECK_EQ(m.driver.read(mmio::status), 3u);
}

TEST("features are settled once FEATURES_OK is") {
  Machine m;
  m.driver.write(mmio::status, 3);
  m.driver.accept(feature_version_1);
  m.driver.write(mmio::status, 11);
  m.driver.accept(feature_version_1 | own_feature);
  m.driver.write(mmio::status, 15);
  m.driver.settle();
  CHECK_EQ(m.device.features_seen, feature_version_1);
}

TEST("a status never loses a bit but by a reset, and the driver cannot set the device's own") {
  Machine m;
  m.driver.write(mmio::status, 3);
  m.driver.write(mmio::status, 1);
  CHECK_EQ(m.driver.read(mmio::status), 3u);
  m.driver.write(mmio::status, 0xffffff40);
  CHECK_EQ(m.driver.read(mmio::status), 3u);
  m.driver.write(mmio::status, 0);
  CHECK(m.driver.transport.is_settling());
  m.driver.write(mmio::status, 1); // too early: the reset is not over
  m.driver.settle();
  CHECK(!m.driver.transport.is_settling());
  CHECK_EQ(m.driver.read(mmio::status), 0u);
}

TEST("queues are frozen once the driver is ready") {
  Machine m;
  REQUIRE(m.driver.start());
  m.driver.write(mmio::queue_select, 0);
  m.driver.write(mmio::queue_ready, 0);
  CHECK_EQ(m.driver.read(mmio::queue_ready), 1u);
  m.driver.write(mmio::descriptors, 0x10);
  m.driver.write(mmio::available, 0xfffffff0);
  m.driver.write(mmio::used, 0xfffffff0);
  m.driver.write(mmio::queue_size, 1);
  auto& queue = m.driver.queues[0];
  for (int i = 0; i < 5; ++i) {
    queue.add({{data, 8, true}});
  }
  m.driver.kick(0);
  CHECK_EQ(queue.used_index(), 5);
  CHECK(!m.driver.needs_reset());
}

TEST("a queue that lies nowhere breaks the device when it is to start") {
  for (const auto& [at, value] : {std::pair{mmio::descriptors, 0xfff00000u},
                                  {mmio::available, 0xfff00000u},
                                  {mmio::used, 0xfff00000u},
                                  {mmio::used + 4, 1u},
                                  {mmio::descriptors, 8u},
                                  {mmio::queue_size, 3u},
                                  {mmio::queue_size, 0x10010u},
                                  {mmio::queue_size, 0u}}) {
    Machine m;
    m.driver.write(mmio::status, 3);
    m.driver.accept(feature_version_1);
    m.driver.write(mmio::status, 11);
    m.driver.set_queue(0);
    m.driver.write(at, value);
    m.driver.write(mmio::status, 15);
    m.driver.settle();
    CHECK(m.driver.needs_reset());
    CHECK(m.driver.transport.take_interrupt());
    CHECK_EQ(m.driver.read(mmio::interrupt_status), 2u);
    m.driver.kick(0);
    CHECK_EQ(m.device.take_log(), "");
    m.driver.reset();
    CHECK(!m.driver.needs_reset());
    CHECK(m.driver.start());
  }
}

TEST("kicks come by the register and by the event loop, and only to a device that runs") {
  Machine m;
  m.driver.kick(0);
  m.driver.write(mmio::queue_notify, 1);
  CHECK_EQ(m.device.take_log(), "");
  REQUIRE(m.driver.start());
  CHECK_EQ(m.device.take_log(), "reset activate ");
  m.driver.kick(0);
  CHECK_EQ(m.device.take_log(), "kick0 ");
  m.driver.write(mmio::queue_notify, 1);
  CHECK_EQ(m.device.take_log(), ""); // not on the vCPU's thread
  CHECK(m.driver.transport.has_work() && !m.driver.transport.is_settling());
  m.driver.settle();
  CHECK_EQ(m.device.take_log(), "kick1 ");
  m.driver.write(mmio::queue_notify, 2);
  m.driver.write(mmio::queue_notify, 0xffffffff);
  m.driver.kick(2);
  m.driver.kick(0xffff);
  CHECK_EQ(m.device.take_log(), "");
}

TEST("a device that wants to go on has another turn") {
  Machine m;
  REQUIRE(m.driver.start());
  m.device.take_log();
  m.device.wants_more = true;
  m.driver.transport.kick(1);
  CHECK_EQ(m.device.take_log(), "kick1 ");
  CHECK(m.driver.transport.has_work());
  m.driver.transport.work();
  CHECK_EQ(m.device.take_log(), "kick1 ");
  CHECK(!m.driver.transport.has_work());
}

TEST("used buffers interrupt once until the driver has acknowledged") {
  Machine m;
  REQUIRE(m.driver.start());
  const auto use_one = [&] {
    m.driver.queues[0].add({{data, 8, true}});
    m.driver.kick(0);
    return m.driver.transport.take_interrupt();
  };
  CHECK(!m.driver.transport.take_interrupt());
  CHECK(use_one());
  CHECK_EQ(m.driver.read(mmio::interrupt_status), 1u);
  CHECK(!use_one());
  m.device.notify_config(); // behind the driver's look at the status
  CHECK(m.driver.transport.take_interrupt());
  m.driver.write(mmio::interrupt_acknowledge, 1);
  CHECK_EQ(m.driver.read(mmio::interrupt_status), 2u);
  CHECK(use_one());
}

TEST("a change of the configuration is told, with a new generation") {
  Machine m;
  const std::uint32_t before = m.driver.read(mmio::config_generation);
  m.device.notify_config();
  CHECK(!m.driver.transport.take_interrupt()); // nobody is there yet
  CHECK(m.driver.read(mmio::config_generation) != before);
  REQUIRE(m.driver.start());
  m.device.notify_config();
  CHECK(m.driver.transport.take_interrupt());
  CHECK_EQ(m.driver.read(mmio::interrupt_status), 2u);
}

TEST("the configuration is read and written at any width") {
  Machine m;
  CHECK_EQ(m.driver.config<std::uint64_t>(0), m.device.config);
  CHECK_EQ(m.driver.config<std::uint16_t>(2), 0x5566);
  CHECK_EQ(m.driver.config<std::uint32_t>(6), 0x1122u);
  CHECK_EQ(m.driver.config<std::uint8_t>(0xeff), 0);
  const std::byte two[2]{};
  m.driver.transport.write(mmio::config + 6, two);
  CHECK(m.device.written == (std::pair<std::uint32_t, std::size_t>{6, 2}));
}

TEST("registers are 32 bits wide") {
  Machine m;
  std::uint64_t wide = ~0ull;
  m.driver.transport.read(mmio::magic, std::as_writable_bytes(std::span(&wide, 1)));
  CHECK_EQ(wide, 0u);
  const std::uint8_t narrow = 3;
  m.driver.transport.write(mmio::status, std::as_bytes(std::span(&narrow, 1)));
  CHECK_EQ(m.driver.read(mmio::status), 0u);
}

TEST("a broken queue makes the device need a reset, told once; nothing moves until then") {
  Machine m;
  REQUIRE(m.driver.start());
  m.device.take_log();
  m.driver.queues[0].offer(999);
  m.driver.kick(0);
  CHECK(m.driver.transport.take_interrupt());
  CHECK(m.driver.needs_reset());
  CHECK_EQ(m.driver.read(mmio::interrupt_status), 2u);
  m.driver.write(mmio::interrupt_acknowledge, 2);
  CHECK(!m.driver.transport.take_interrupt());
  CHECK_EQ(m.device.take_log(), "kick0 ");
  m.driver.queues[1].add({{data, 8, true}});
  m.driver.kick(1);
  m.driver.write(mmio::queue_notify, 1);
  m.driver.settle();
  CHECK_EQ(m.device.take_log(), "");
  CHECK_EQ(m.driver.queues[1].used_index(), 0);
  REQUIRE(m.driver.start());
  m.driver.queues[0].add({{data, 8, true}});
  m.driver.kick(0);
  CHECK_EQ(m.driver.queues[0].used_index(), 1);
  CHECK(!m.driver.needs_reset());
}

TEST("a device that cannot go on says so in the same way") {
  Machine m;
  REQUIRE(m.driver.start());
  m.device.fail();
  CHECK(m.driver.transport.take_interrupt());
  CHECK(m.driver.needs_reset());
  m.driver.reset();
  CHECK(!m.driver.needs_reset());
  CHECK(!m.driver.transport.take_interrupt());
}

TEST("a reset forgets everything the driver has said") {
  Machine m;
  REQUIRE(m.driver.start(own_feature));
  m.driver.queues[0].add({{data, 8, true}});
  m.driver.kick(0);
  m.driver.reset();
  CHECK_EQ(m.driver.read(mmio::interrupt_status), 0u);
  CHECK(!m.driver.transport.take_interrupt());
  for (std::uint32_t i = 0; i < 2; ++i) {
    m.driver.write(mmio::queue_select, i);
    CHECK_EQ(m.driver.read(mmio::queue_ready), 0u);
  }
  CHECK(!m.device.queue(0).is_started());
  m.device.take_log();
  m.driver.kick(0);
  CHECK_EQ(m.device.take_log(), "");
  REQUIRE(m.driver.start());
  CHECK_EQ(m.device.features_seen, feature_version_1);
}
