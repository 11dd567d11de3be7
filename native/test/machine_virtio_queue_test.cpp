#include "machine/virtio/queue.hpp"
#include "test/unit.hpp"
#include "test/virtio.hpp"

#include <string>

using namespace casemate;
using namespace casemate::machine;
using namespace casemate::machine::virtio;
using unit::GuestRam;

namespace {

constexpr std::uint64_t data = GuestRam::data;

/// A queue with both its ends.
struct Pair {
  explicit Pair(std::uint64_t features = feature_indirect, std::uint16_t size = 16)
      : driver(ram, 0, size) {
    CHECK(queue.start(ram.memory, driver.layout(), features));
  }
  bool pop() { return queue.pop(chain); }
  std::string readable() const {
    std::string text(chain.readable_size(), '\0');
    CHECK(chain.read(0, std::as_writable_bytes(std::span(text))));
    return text;
  }
  void put(std::uint64_t address, const std::string& text) const {
    std::memcpy(ram.memory.at(address, text.size()), text.data(), text.size());
  }
  /// Whether the queue is broken by what has been made available.
  bool breaks() { return !pop() && queue.is_broken() && !pop(); }

  GuestRam ram;
  unit::DriverQueue driver;
  Queue queue;
  Chain chain;
};

} // namespace

TEST("a queue takes chains in the driver's order, readable before writable") {
  Pair pair;
  pair.put(data, "first");
  pair.put(data + 100, "second");
  CHECK(!pair.pop());
  const std::uint16_t one = pair.driver.add({{data, 5}, {data + 1000, 7, true}});
  const std::uint16_t two = pair.driver.add({{data + 100, 3}, {data + 103, 3}});
  REQUIRE(pair.pop());
  CHECK_EQ(pair.chain.head(), one);
  CHECK_EQ(pair.readable(), "first");
  CHECK_EQ(pair.chain.writable_size(), 7u);
  REQUIRE(pair.pop());
  CHECK_EQ(pair.chain.head(), two);
  CHECK_EQ(pair.readable(), "second");
  CHECK_EQ(pair.chain.writable().size(), 0u);
  CHECK(!pair.pop());
  CHECK(!pair.queue.is_broken());
}

TEST("what a device gives back the driver finds, in the order of giving") {
  Pair pair;
  const std::uint16_t one = pair.driver.add({{data, 5, true}});
  const std::uint16_t two = pair.driver.add({{data + 5, 5, true}});
  CHECK(pair.pop() && pair.pop());
  pair.queue.push(two, 3);
  pair.queue.push(one, 5);
  auto used = pair.driver.take_used();
  REQUIRE(used.has_value());
  CHECK(used->id == two && used->written == 3);
  used = pair.driver.take_used();
  REQUIRE(used.has_value());
  CHECK(used->id == one && used->written == 5);
  CHECK(!pair.driver.take_used());
}

TEST("chains that are staged are seen by the driver all at once") {
  Pair pair;
  pair.driver.add({{data, 5, true}});
  pair.driver.add({{data + 5, 5, true}});
  CHECK(pair.pop() && pair.pop());
  pair.queue.stage(0, 5);
  pair.queue.stage(1, 2);
  CHECK_EQ(pair.driver.used_index(), 0u);
  pair.queue.publish();
  CHECK_EQ(pair.driver.used_index(), 2u);
  CHECK_EQ(pair.driver.take_used()->written, 5u);
  CHECK_EQ(pair.driver.take_used()->written, 2u);
}

TEST("a queue goes round its rings, and its indices round 65536") {
  Pair pair(0, 4);
  for (int i = 0; i < 70'000; ++i) {
    const std::uint16_t head = pair.driver.add({{data, 1, true}});
    REQUIRE(pair.pop());
    CHECK_EQ(pair.chain.head(), head);
    pair.queue.push(head, 1);
    REQUIRE(pair.driver.take_used().has_value());
  }
  CHECK(!pair.queue.is_broken());
}

TEST("a chain is copied piece by piece, and not beyond its end") {
  Pair pair;
  pair.put(data, "abcdef");
  pair.driver.add(
      {{data, 2}, {data + 2, 1}, {data + 3, 3}, {data + 64, 2, true}, {data + 80, 3, true}});
  REQUIRE(pair.pop());
  std::array<std::byte, 4> bytes{};
  CHECK(pair.chain.read(1, bytes));
  CHECK(std::memcmp(bytes.data(), "bcde", 4) == 0);
  CHECK(pair.chain.read(6, std::span(bytes).first(0)));
  CHECK(!pair.chain.read(3, bytes));
  CHECK(!pair.chain.read(7, std::span(bytes).first(0)));
  CHECK(!pair.chain.read(0xffffffff, bytes));
  CHECK(pair.chain.write(1, std::as_bytes(std::span("wxyz", 4))));
  CHECK(!pair.chain.write(2, std::as_bytes(std::span("wxyz", 4))));
  CHECK_EQ(pair.ram.read<char>(data + 65), 'w');
  CHECK_EQ(pair.ram.read<char>(data + 80), 'x');
  CHECK_EQ(pair.ram.read<char>(data + 82), 'z');
  CHECK_EQ(pair.ram.read<char>(data + 83), '\0');
}

TEST("an indirect table is followed, alone or behind descriptors of the queue") {
  Pair pair;
  pair.put(data, "in the table");
  pair.put(data + 32, "before ");
  pair.ram.write(data + 0x1000, unit::Descriptor{data, 6, unit::has_next, 2});
  pair.ram.write(data + 0x1010, unit::Descriptor{data + 64, 9, unit::is_writable, 0});
  pair.ram.write(data + 0x1020, unit::Descriptor{data + 6, 6, unit::has_next, 1});
  // That a table is "writable" says nothing.
  pair.driver.set(0, {data + 0x1000, 48, unit::is_indirect | unit::is_writable, 0});
  pair.driver.offer(0);
  REQUIRE(pair.pop());
  CHECK_EQ(pair.readable(), "in the table");
  CHECK_EQ(pair.chain.writable_size(), 9u);
  pair.driver.set(1, {data + 32, 7, unit::has_next, 2});
  pair.driver.set(2, {data + 0x1000, 48, unit::is_indirect, 0});
  pair.driver.offer(1);
  REQUIRE(pair.pop());
  CHECK_EQ(pair.readable(), "before in the table");
}

TEST("an empty buffer is none, and a chain of nothing else is one to give back") {
  Pair pair;
  pair.driver.add({{data, 0}, {UINT64_MAX, 0, true}});
  REQUIRE(pair.pop());
  CHECK_EQ(pair.chain.readable().size(), 0u);
  CHECK_EQ(pair.chain.writable().size(), 0u);
}

TEST("a layout is refused that is misaligned, of no size, or not all in RAM") {
  const GuestRam ram;
  const QueueLayout good = unit::DriverQueue(ram, 0).layout();
  const std::uint64_t end = ram.memory.size();
  Queue queue;
  Chain chain;
  for (const QueueLayout& bad : {
           QueueLayout{0, good.descriptors, good.available, good.used},
           QueueLayout{15, good.descriptors, good.available, good.used},
           QueueLayout{512, good.descriptors, good.available, good.used},
           QueueLayout{16, good.descriptors + 8, good.available, good.used},
           QueueLayout{16, good.descriptors, good.available + 1, good.used},
           QueueLayout{16, good.descriptors, good.available, good.used + 2},
           QueueLayout{16, end - 255, good.available, good.used},
           QueueLayout{16, end - 240, good.available, good.used},
           QueueLayout{16, good.descriptors, end - 36, good.used},
           QueueLayout{16, good.descriptors, good.available, end - 132},
           QueueLayout{16, UINT64_MAX - 15, good.available, good.used},
           QueueLayout{16, good.descriptors, UINT64_MAX - 1, good.used},
           QueueLayout{16, good.descriptors, good.available, 0xfee00000},
       }) {
    CHECK(!queue.start(ram.memory, bad, 0));
    CHECK(!queue.is_started());
    CHECK(!queue.pop(chain));
  }
  CHECK(queue.start(ram.memory, {16, end - 256, good.available, good.used}, 0));
  CHECK(queue.start(ram.memory, {16, good.descriptors, end - 38, good.used}, 0));
  CHECK(queue.start(ram.memory, {16, good.descriptors, good.available, end - 136}, 0));
}

TEST("chains that cannot be break their queue, for good") {
  const auto breaks = [](auto make) {
    Pair pair;
    make(pair);
    return pair.breaks();
  };
  using unit::Descriptor, unit::has_next, unit::is_indirect, unit::is_writable;
  constexpr std::uint64_t table = data + 0x1000;
  // One that bites its tail; one that is longer than its table; heads and links outside.
  CHECK(breaks([](Pair& p) {
    p.driver.set(0, {data, 1, has_next, 0});
    p.driver.offer(0);
  }));
  CHECK(breaks([](Pair& p) {
    p.driver.set(0, {data, 0, has_next, 1});
    p.driver.set(1, {data, 0, has_next, 0});
    p.driver.offer(0);
  }));
  CHECK(breaks([](Pair& p) { p.driver.offer(16); }));
  CHECK(breaks([](Pair& p) { p.driver.offer(0xffff); }));
  CHECK(breaks([](Pair& p) {
    p.driver.set(0, {data, 1, has_next, 16});
    p.driver.offer(0);
  }));
  // More made available than there is room for.
  CHECK(breaks([](Pair& p) { p.ram.write(p.driver.available + 2, std::uint16_t{17}); }));
  CHECK(breaks([](Pair& p) { p.ram.write(p.driver.available + 2, std::uint16_t{0xffff}); }));
  // Memory that is not there, in part or by wrapping around.
  CHECK(breaks([](Pair& p) { p.driver.add({{p.ram.memory.size() - 1, 2}}); }));
  CHECK(breaks([](Pair& p) { p.driver.add({{p.ram.memory.size(), 1, true}}); }));
  CHECK(breaks([](Pair& p) { p.driver.add({{UINT64_MAX, 2}}); }));
  CHECK(breaks([](Pair& p) { p.driver.add({{data, 0xffffffff}}); }));
  CHECK(breaks([](Pair& p) { p.driver.add({{GuestMemory::hole_start, 1}}); }));
  // Readable behind writable.
  CHECK(breaks([](Pair& p) { p.driver.add({{data, 1, true}, {data, 1}}); }));
  // Tables: in a table, of themselves, with a link, of odd sizes, too big, not there.
  CHECK(breaks([](Pair& p) {
    p.ram.write(table, Descriptor{table, 16, is_indirect, 0});
    p.driver.set(0, {table, 16, is_indirect, 0});
    p.driver.offer(0);
  }));
  CHECK(breaks([](Pair& p) {
    p.driver.set(0, {table, 16, is_indirect | has_next, 1});
    p.driver.offer(0);
  }));
  CHECK(breaks([](Pair& p) {
    p.ram.write(table, Descriptor{data, 1, has_next, 1});
    p.driver.set(0, {table, 16, is_indirect, 0});
    p.driver.offer(0);
  }));
  for (const std::uint32_t length : {0u, 8u, 17u, 257u * 16, 0xfffffff0u}) {
    CHECK(breaks([=](Pair& p) {
      p.driver.set(0, {table, length, is_indirect, 0});
      p.driver.offer(0);
    }));
  }
  CHECK(breaks([](Pair& p) {
    p.driver.set(0, {p.ram.memory.size() - 8, 16, is_indirect, 0});
    p.driver.offer(0);
  }));
}

TEST("an indirect table that has not been negotiated breaks the queue") {
  Pair pair(0);
  pair.ram.write(data + 0x1000, unit::Descriptor{data, 1, 0, 0});
  pair.driver.set(0, {data + 0x1000, 16, unit::is_indirect, 0});
  pair.driver.offer(0);
  CHECK(pair.breaks());
}

TEST("a chain of more buffers than any queue has breaks the queue") {
  Pair pair(feature_indirect, 256);
  for (std::uint16_t i = 0; i < 256; ++i) {
    const auto next = static_cast<std::uint16_t>(i + 1);
    pair.ram.write(data + 0x1000 + 16 * i,
                   unit::Descriptor{data, 1, i < 255 ? unit::has_next : std::uint16_t{0}, next});
  }
  pair.driver.set(0, {data + 0x1000, 256 * 16, unit::is_indirect, 0});
  pair.driver.offer(0);
  REQUIRE(pair.pop());
  CHECK_EQ(pair.chain.readable().size(), 256u);
  pair.driver.set(1, {data, 1, unit::has_next, 0}); // one before the table
  pair.driver.offer(1);
  CHECK(pair.breaks());
}

TEST("a broken queue neither gives nor takes") {
  Pair pair;
  const std::uint16_t head = pair.driver.add({{data, 1, true}});
  REQUIRE(pair.pop());
  pair.driver.offer(99);
  CHECK(pair.breaks());
  pair.queue.push(head, 1);
  CHECK(!pair.driver.take_used());
  CHECK(!pair.queue.take_notification());
  CHECK(!pair.queue.enable_kicks());
}

TEST("chains put back come again") {
  Pair pair;
  const std::uint16_t one = pair.driver.add({{data, 1, true}});
  const std::uint16_t two = pair.driver.add({{data, 1, true}});
  CHECK(pair.pop() && pair.pop());
  pair.queue.put_back(2);
  CHECK(pair.pop() && pair.chain.head() == one);
  pair.queue.push(one, 1);
  CHECK(pair.pop() && pair.chain.head() == two);
}

TEST("without event indices the driver's flag decides about interrupts") {
  Pair pair(0);
  CHECK(!pair.queue.take_notification());
  pair.queue.push(pair.driver.add({{data, 1, true}}), 1);
  CHECK(pair.queue.take_notification());
  CHECK(!pair.queue.take_notification());
  pair.ram.write(pair.driver.available, std::uint16_t{1});
  pair.queue.push(pair.driver.add({{data, 1, true}}), 1);
  CHECK(!pair.queue.take_notification());
}

TEST("with event indices the driver is interrupted when the index it waits for is passed") {
  Pair pair(feature_event_index);
  const auto push = [&](int count) {
    for (int i = 0; i < count; ++i) {
      pair.queue.push(0, 0);
    }
    return pair.queue.take_notification();
  };
  pair.driver.set_used_event(0);
  CHECK(push(1));
  CHECK(!push(1)); // it has not looked yet
  pair.driver.set_used_event(3);
  CHECK(!push(1));
  CHECK(push(2));
  pair.driver.set_used_event(4); // passed long ago
  CHECK(!push(1));
}

TEST("kicks are asked for by a flag, or by an index, and what came before is not lost") {
  Pair flags(0);
  flags.queue.disable_kicks();
  CHECK_EQ(flags.ram.read<std::uint16_t>(flags.driver.used), 1);
  CHECK(!flags.queue.enable_kicks());
  CHECK_EQ(flags.ram.read<std::uint16_t>(flags.driver.used), 0);
  flags.driver.add({{data, 1}});
  CHECK(flags.queue.enable_kicks());

  Pair indices(feature_event_index);
  indices.driver.add({{data, 1}});
  CHECK(indices.queue.enable_kicks());
  CHECK_EQ(indices.driver.available_event(), 0);
  CHECK(indices.pop());
  CHECK(!indices.queue.enable_kicks());
  CHECK_EQ(indices.driver.available_event(), 1);
}
