#include "machine/virtio/balloon.hpp"
#include "test/unit.hpp"
#include "test/virtio.hpp"

#include <array>
#include <optional>
#include <string>
#include <vector>

using namespace casemate;
using namespace casemate::machine::virtio;
using unit::Driver;
using unit::GuestRam;

namespace mmio = unit::mmio;

namespace {

constexpr std::uint64_t page = Balloon::page_size;
constexpr std::uint64_t statistics = 1 << 1;
constexpr std::uint64_t poison = 1 << 4;
constexpr std::uint64_t reporting = 1 << 5;

constexpr std::uint16_t inflate = 0;
constexpr std::uint16_t deflate = 1;

/// A megabyte, with the balloon's lists in its first pages and sevens in all others.
struct Machine {
  explicit Machine(const Balloon::Settings& settings = {false, true})
      : balloon(settings, {hear, this}) {
    static_cast<void>(loop.open());
    balloon.attach(ram.memory, loop, {});
    for (std::uint64_t address = pages * page; address < ram.memory.size(); address += page) {
      ram.write(address, 7);
    }
  }

  static void hear(void* machine, const MemoryStatistics& told) {
    static_cast<Machine*>(machine)->heard.push_back(told);
  }

  /// Numbers of pages, as a driver sends them, and kicks.
  void send(std::uint16_t queue, const std::vector<std::uint32_t>& numbers) {
    std::uint64_t address = list;
    for (const std::uint32_t number : numbers) {
      ram.write(address, number);
      address += sizeof number;
    }
    driver.queues[queue].add({{list, static_cast<std::uint32_t>(address - list)}});
    driver.kick(queue);
  }

  /// Which of the pages are still there, as "1" and "0".
  std::string kept(std::uint64_t first, std::uint64_t count) const {
    std::string text;
    for (std::uint64_t i = first; i < first + count; ++i) {
      text += ram.read<int>(i * page) == 7 ? '1' : '0';
    }
    return text;
  }

  static constexpr std::uint64_t list = GuestRam::data;
  static constexpr std::uint64_t pages = list / page + 4; // the first that are for the balloon

  GuestRam ram;
  sys::Mutex mutex;
  sys::Lock lock{mutex};
  sys::EventLoop loop{mutex};
  Balloon balloon;
  Driver driver{ram, balloon};
  std::vector<MemoryStatistics> heard;
};

struct [[gnu::packed]] Statistic {
  std::uint16_t tag;
  std::uint64_t value;
};

} // namespace

TEST("a balloon's driver is told how large it is to be, and says how large it is") {
  Machine m;
  CHECK(m.driver.start());
  CHECK(!m.driver.transport.take_interrupt());
  m.balloon.set_target(300);
  CHECK(m.driver.transport.take_interrupt());
  CHECK_EQ(m.driver.config<std::uint32_t>(0), 300u);
  m.driver.write(mmio::config + 4, 299);
  CHECK_EQ(m.balloon.actual(), 299u);
  CHECK_EQ(m.driver.config<std::uint32_t>(4), 299u);
  m.driver.write(mmio::config, 1); // is not its to write
  CHECK_EQ(m.balloon.target(), 300u);
  m.driver.reset();
  CHECK_EQ(m.balloon.actual(), 0u);
  CHECK_EQ(m.balloon.target(), 300u);
}

TEST("what is put into the balloon is dropped, page by page, in whatever order") {
  Machine m;
  CHECK(m.driver.start());
  const auto first = static_cast<std::uint32_t>(m.pages);
  m.send(inflate, {first + 1, first + 2, first + 3, first + 8, first + 7, first + 6, first + 10});
  CHECK_EQ(m.kept(first, 12), std::string("100011000101"));
  CHECK_EQ(m.ram.read<int>((first + 2) * page), 0);
  const auto used = m.driver.queues[inflate].take_used();
  REQUIRE(used.has_value());
  CHECK_EQ(used->written, 0u);
  m.send(deflate, {first + 1});
  CHECK(m.driver.queues[deflate].take_used().has_value());
}

TEST("of a list without end the first thousand pages are dropped, of lists without end all") {
  Machine m;
  CHECK(m.driver.start());
  const auto first = static_cast<std::uint32_t>(m.pages);
  std::vector<std::uint32_t> numbers(1025, first);
  numbers[1023] = first + 1;
  numbers[1024] = first + 2;
  m.send(inflate, numbers);
  CHECK_EQ(m.kept(first, 4), std::string("0011"));

  auto& queue = m.driver.queues[inflate];
  queue.size = 64;
  CHECK(m.driver.start());
  for (std::uint32_t i = 0; i < 40; ++i) {
    m.ram.write(m.list + 4 * i, first + 2 + i);
    queue.add({{m.list + 4 * std::uint64_t{i}, 4}});
  }
  m.driver.kick(inflate);
  CHECK_EQ(m.kept(first, 43), std::string(42, '0') + "1");
}

TEST("pages that are not the guest's, and half a number, are passed over") {
  Machine m;
  CHECK(m.driver.start());
  const auto first = static_cast<std::uint32_t>(m.pages);
  const auto end = static_cast<std::uint32_t>(m.ram.memory.size() / page);
  m.send(inflate, {end, 0xffffffff, 0xfffffffe, 0xc0000, first});
  CHECK_EQ(m.kept(first, 2), std::string("01"));
  CHECK(m.driver.queues[inflate].take_used().has_value());
  m.ram.write(m.list, first + 1);
  m.driver.queues[inflate].add({{m.list, 3}});
  m.driver.kick(inflate);
  CHECK_EQ(m.kept(first, 2), std::string("01"));
  CHECK(m.driver.queues[inflate].take_used().has_value());
  CHECK(!m.driver.needs_reset());
}

TEST("reports of free pages drop the whole pages in them, by either numbering of queues") {
  for (const std::uint16_t queue : {2, 3, 4}) {
    Machine m;
    CHECK(m.driver.start(reporting | (queue == 3 ? statistics : 0)));
    const std::uint64_t start = m.pages * page;
    m.driver.queues[queue].add({{start + 1, 3 * page, true}, {start + 5 * page, page, true}});
    m.driver.kick(queue);
    CHECK_EQ(m.kept(m.pages, 7), std::string("1001101"));
    CHECK(m.driver.queues[queue].take_used().has_value());
  }
}

TEST("free pages that a driver counts on finding poisoned are left alone") {
  Machine m;
  CHECK(m.driver.start(reporting | poison));
  m.driver.write(mmio::config + 12, 0xaaaaaaaa);
  m.driver.queues[2].add({{m.pages * page, page, true}});
  m.driver.kick(2);
  CHECK_EQ(m.kept(m.pages, 1), std::string("1"));
  m.driver.write(mmio::config + 12, 0);
  m.driver.queues[2].add({{m.pages * page, page, true}});
  m.driver.kick(2);
  CHECK_EQ(m.kept(m.pages, 1), std::string("0"));
}

TEST("a balloon without reports offers none, and takes none") {
  Machine m({true, false});
  CHECK_EQ(m.driver.offered() & 0xff, std::uint64_t{statistics | 1 << 2});
  CHECK(!m.driver.start(reporting));
}

TEST("statistics are asked for by giving the driver its buffer back") {
  Machine m;
  CHECK(m.driver.start(statistics));
  auto& queue = m.driver.queues[2];
  m.ram.write(m.list, Statistic{4, 1});
  queue.add({{m.list, sizeof(Statistic)}});
  m.driver.kick(2);
  CHECK(!queue.take_used().has_value());

  m.balloon.ask_statistics();
  m.balloon.ask_statistics();
  CHECK(queue.take_used().has_value());
  CHECK(!queue.take_used().has_value());
  CHECK(m.heard.empty());
  m.ram.write(m.list, std::array{Statistic{4, 1000}, Statistic{5, 2000}, Statistic{99, 1}});
  queue.add({{m.list, 3 * sizeof(Statistic) + 1}});
  m.driver.kick(2);
  REQUIRE(m.heard.size() == 1);
  CHECK_EQ(m.heard[0].known, 1u << 4 | 1u << 5);
  CHECK_EQ(m.heard[0].values[4], 1000u);
  CHECK_EQ(m.heard[0].values[5], 2000u);
}

TEST("statistics that were there before the driver was ready are found") {
  Machine m;
  m.driver.reset();
  m.driver.write(mmio::status, 3);
  m.driver.accept(statistics | feature_version_1);
  m.driver.write(mmio::status, 11);
  for (std::size_t i = 0; i < m.driver.queues.size(); ++i) {
    m.driver.set_queue(static_cast<std::uint16_t>(i));
  }
  m.driver.queues[2].add({{m.list, sizeof(Statistic)}});
  m.driver.kick(2);
  m.driver.write(mmio::status, 15);
  m.driver.settle();
  m.balloon.ask_statistics();
  CHECK(m.driver.queues[2].take_used().has_value());
}

TEST("without a driver, or one that answers, there are no statistics, and that is said") {
  Machine m;
  m.balloon.ask_statistics();
  CHECK_EQ(m.heard.size(), 1u);
  CHECK(m.driver.start(statistics));
  m.balloon.ask_statistics();
  CHECK_EQ(m.heard.size(), 1u);
  m.driver.reset();
  CHECK_EQ(m.heard.size(), 2u);

  CHECK(m.driver.start(statistics));
  m.balloon.ask_statistics();
  while (m.heard.size() == 2) {
    m.loop.turn();
  }
  CHECK_EQ(m.heard[2].known, 0u);
}

TEST("a driver that sends its statistics again and again does not keep the device to itself") {
  Machine m;
  CHECK(m.driver.start(statistics));
  for (int i = 0; i < 100; ++i) {
    m.driver.queues[2].add({{m.list, sizeof(Statistic)}});
    m.driver.kick(2);
  }
  CHECK(!m.driver.needs_reset());
  m.balloon.ask_statistics();
  CHECK(m.driver.queues[2].take_used().has_value());
}
