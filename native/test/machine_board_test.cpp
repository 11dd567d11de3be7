#include "machine/board.hpp"
#include "test/unit.hpp"
#include "test/virtio.hpp"

#include <array>
#include <cstring>
#include <random>
#include <string>

using namespace casemate;
using namespace casemate::machine;

namespace {

constexpr std::uint16_t com1 = Serial::port;
constexpr std::uint64_t select_register = Ioapic::address;
constexpr std::uint64_t window = Ioapic::address + 0x10;

/// A board as a guest sees it.
struct Machine {
  Board board;

  Power out(std::uint16_t port, std::uint8_t value) {
    const auto byte = std::byte{value};
    const Power power = board.write_port(port, {&byte, 1});
    board.update_interrupts();
    return power;
  }
  int in(std::uint16_t port) {
    std::byte byte{};
    board.read_port(port, {&byte, 1});
    board.update_interrupts();
    return static_cast<int>(byte);
  }
  void type(const std::string& text) {
    board.serial().receive(std::as_bytes(std::span(text)));
    board.update_interrupts();
  }
  std::string output() {
    const auto bytes = board.serial().output();
    std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    board.serial().take_output(board.serial().output().size());
    return text;
  }
  void set_pin(std::uint32_t pin, std::uint64_t entry) {
    write_register(0x11 + 2 * pin, static_cast<std::uint32_t>(entry >> 32));
    write_register(0x10 + 2 * pin, static_cast<std::uint32_t>(entry));
  }
  void write_register(std::uint32_t index, std::uint32_t value) {
    write_memory(select_register, index);
    write_memory(window, value);
  }
  std::uint32_t read_register(std::uint32_t index) {
    write_memory(select_register, index);
    std::uint32_t value = 0;
    board.read_memory(window, std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }
  void write_memory(std::uint64_t address, std::uint32_t value) {
    board.write_memory(address, std::as_bytes(std::span(&value, 1)));
  }
  /// Vectors of all messages since.
  std::string vectors() {
    std::string list;
    while (const auto message = board.take_message()) {
      list += std::to_string(message->data & 0xff) + ' ';
    }
    return list;
  }
  /// With its interrupts on, those of `enabled`, at vector 0x30.
  void start_serial(std::uint8_t enabled) {
    set_pin(Serial::pin, 0x30);
    out(com1 + 2, 1);
    out(com1 + 4, 0x0b);
    out(com1 + 1, enabled);
  }
};

} // namespace

TEST("what is not on the board reads as ones, and takes what is written") {
  Machine machine;
  for (const std::uint16_t port : {0x20, 0x40, 0x60, 0x64, 0x2f8, 0xcf8, 0xcfc, 0xffff}) {
    CHECK_EQ(machine.in(port), 0xff);
    CHECK(machine.out(port, 0) == Power::On);
  }
  std::array<std::byte, 8> bytes{};
  machine.board.read_memory(0xd0000000, bytes);
  CHECK(bytes[0] == std::byte{0xff} && bytes[7] == std::byte{0xff});
}

TEST("a guest switches its machine off by ACPI's S5 alone") {
  Machine machine;
  CHECK(machine.out(0x600, 0x20 | 5 << 2) == Power::Off);
  CHECK(machine.out(0x600, 5 << 2) == Power::On);
  CHECK(machine.out(0x600, 0x20 | 3 << 2) == Power::On);
  CHECK_EQ(machine.in(0x601), 0);
}

TEST("a guest resets its machine in three ways") {
  Machine machine;
  CHECK(machine.out(0xcf9, 0x06) == Power::Reset);
  CHECK(machine.out(0xcf9, 0x0e) == Power::Reset);
  CHECK(machine.out(0xcf9, 0x02) == Power::On);
  CHECK(machine.out(0x64, 0xfe) == Power::Reset);
  CHECK(machine.out(0x64, 0xd1) == Power::On);
}

TEST("PCI's configuration address is no reset, though that lies within") {
  Machine machine;
  const std::uint32_t address = 0x80000000 | 0x0600;
  CHECK(machine.board.write_port(0xcf8, std::as_bytes(std::span(&address, 1))) == Power::On);
  CHECK(machine.board.write_port(0xcf9, std::as_bytes(std::span(&address, 1))) == Power::On);
}

TEST("a guest's panic is told by pvpanic") {
  Machine machine;
  CHECK_EQ(machine.in(0x505), 1);
  CHECK(machine.out(0x505, 1) == Power::Panic);
  CHECK(machine.out(0x505, 2) == Power::On);
}

TEST("the serial port passes a driver's tests for a 16550A") {
  Machine machine;
  machine.out(com1 + 1, 0);
  CHECK_EQ(machine.in(com1 + 1), 0);
  machine.out(com1 + 1, 0xff);
  CHECK_EQ(machine.in(com1 + 1), 0x0f);
  machine.out(com1 + 7, 0xa5);
  CHECK_EQ(machine.in(com1 + 7), 0xa5);
  machine.out(com1 + 4, 0x1a); // loopback, OUT2, RTS
  CHECK_EQ(machine.in(com1 + 6) & 0xf0, 0x90);
  machine.out(com1 + 2, 1);
  CHECK_EQ(machine.in(com1 + 2) >> 6, 3);
  machine.out(com1 + 2, 0);
  CHECK_EQ(machine.in(com1 + 2) >> 6, 0);
}

TEST("the divisor is apart from data and interrupts") {
  Machine machine;
  machine.out(com1 + 1, 0x05);
  machine.out(com1 + 3, 0x83);
  machine.out(com1, 0x12);
  machine.out(com1 + 1, 0x34);
  CHECK_EQ(machine.in(com1), 0x12);
  CHECK_EQ(machine.in(com1 + 1), 0x34);
  machine.out(com1 + 3, 0x03);
  CHECK_EQ(machine.in(com1 + 1), 0x05);
  CHECK_EQ(machine.output(), "");
}

TEST("output is taken in its order, as much as there is taker for") {
  Machine machine;
  for (const char character : std::string("login: ")) {
    machine.out(com1, static_cast<std::uint8_t>(character));
  }
  machine.board.serial().take_output(3);
  machine.out(com1, 'x');
  CHECK_EQ(machine.output(), "in: x");
  CHECK_EQ(machine.output(), "");
}

TEST("a serial port whose output nobody takes says so, and loses what is written all the same") {
  Machine machine;
  CHECK(machine.board.can_write_port(com1));
  for (int i = 0; i < 10'000; ++i) {
    machine.out(com1, 'x');
  }
  CHECK(!machine.board.can_write_port(com1));
  CHECK(machine.board.can_write_port(reset_port));
  CHECK_EQ(machine.output().size(), 4096u);
  CHECK(machine.board.can_write_port(com1));
}

TEST("input is read in its order, and no more than there is") {
  Machine machine;
  machine.type("abc");
  CHECK_EQ(machine.in(com1 + 5) & 1, 1);
  CHECK_EQ(machine.in(com1), 'a');
  machine.type(std::string(62, 'x')); // round the ring
  CHECK_EQ(machine.board.serial().input_room(), 0u);
  machine.type("lost");
  CHECK_EQ(machine.in(com1), 'b');
  CHECK_EQ(machine.in(com1), 'c');
  for (int i = 0; i < 62; ++i) {
    CHECK_EQ(machine.in(com1), 'x');
  }
  CHECK_EQ(machine.in(com1 + 5) & 1, 0);
  CHECK_EQ(machine.in(com1), 0);
}

TEST("a driver empties the input at once") {
  Machine machine;
  machine.type("abc");
  machine.out(com1 + 2, 0x03);
  CHECK_EQ(machine.in(com1 + 5) & 1, 0);
}

TEST("loopback leads to the input") {
  Machine machine;
  machine.out(com1 + 4, 0x10);
  machine.out(com1, 'l');
  CHECK_EQ(machine.in(com1), 'l');
  CHECK_EQ(machine.output(), "");
}

TEST("the transmitter interrupts when it is asked to, and after each byte") {
  Machine machine;
  machine.start_serial(0x02);
  CHECK_EQ(machine.vectors(), "48 ");
  CHECK_EQ(machine.in(com1 + 2) & 0x0f, 0x02);
  CHECK_EQ(machine.in(com1 + 2) & 0x0f, 0x01); // told, and with that over
  CHECK_EQ(machine.vectors(), "");
  machine.out(com1, 'x');
  CHECK_EQ(machine.vectors(), "48 ");
  machine.out(com1, 'y'); // no edge: the line is up
  CHECK_EQ(machine.vectors(), "");
}

TEST("input interrupts until it is read, and comes before the transmitter") {
  Machine machine;
  machine.start_serial(0x03);
  machine.vectors();
  machine.in(com1 + 2);
  machine.type("ab");
  CHECK_EQ(machine.vectors(), "48 ");
  machine.out(com1, 'x');
  CHECK_EQ(machine.in(com1 + 2) & 0x0f, 0x04);
  machine.in(com1);
  CHECK_EQ(machine.in(com1 + 2) & 0x0f, 0x04);
  machine.in(com1);
  CHECK_EQ(machine.in(com1 + 2) & 0x0f, 0x02);
}

TEST("without OUT2 the serial port interrupts nobody, as on a PC") {
  Machine machine;
  machine.start_serial(0x01);
  machine.out(com1 + 4, 0x03);
  machine.type("a");
  CHECK_EQ(machine.vectors(), "");
  machine.out(com1 + 4, 0x0b);
  CHECK_EQ(machine.vectors(), "48 ");
}

TEST("the I/O APIC tells its version and its pins") {
  Machine machine;
  CHECK_EQ(machine.read_register(1), 0x00170011u);
  machine.write_register(0, 0xff000000);
  CHECK_EQ(machine.read_register(0), 0x0f000000u);
  CHECK_EQ(machine.read_register(0x10), 0x10000u); // masked
  CHECK_EQ(machine.read_register(0x40), 0u);       // there is no such
  CHECK_EQ(machine.read_register(0xff), 0u);
}

TEST("the I/O APIC sends what its guest has set for a pin") {
  Machine machine;
  // Lowest priority, logical, to the APICs of 0x81; level and low, which here is all one.
  machine.set_pin(Serial::pin, 0x81ull << 56 | 0xa000 | 1 << 11 | 1 << 8 | 0x55);
  machine.start_serial(0);
  machine.set_pin(Serial::pin, 0x81ull << 56 | 0xa000 | 1 << 11 | 1 << 8 | 0x55);
  machine.out(com1 + 1, 0x02);
  const auto message = machine.board.take_message();
  REQUIRE(message.has_value());
  CHECK_EQ(message->address, 0xfee81000u | 1u << 3 | 1u << 2);
  CHECK_EQ(message->data, 0x155u);
  CHECK(!machine.board.take_message().has_value());
}

TEST("an edge on a masked pin waits until it is unmasked, and is one") {
  Machine machine;
  machine.start_serial(0);
  machine.set_pin(Serial::pin, 1 << 16 | 0x30);
  machine.out(com1 + 1, 0x02);
  machine.out(com1 + 1, 0x00);
  machine.out(com1 + 1, 0x02);
  CHECK_EQ(machine.vectors(), "");
  machine.set_pin(Serial::pin, 0x31);
  CHECK_EQ(machine.vectors(), "49 ");
  CHECK_EQ(machine.vectors(), "");
}

TEST("the I/O APIC's own bits are not its guest's to set") {
  Machine machine;
  machine.write_register(0x10, 0xffffffff);
  CHECK_EQ(machine.read_register(0x10), 0xffffffffu & ~(1u << 12 | 1u << 14));
  machine.write_register(1, 0);
  CHECK_EQ(machine.read_register(1), 0x00170011u);
}

TEST("the I/O APIC takes no accesses but of 32 bits at its two registers") {
  Machine machine;
  const std::byte wide[8]{std::byte{0x10}};
  for (std::size_t size : {1, 2, 8}) {
    machine.board.write_memory(select_register, std::span(wide).first(size));
    std::array<std::byte, 8> read{};
    machine.board.read_memory(select_register, std::span(read).first(size));
    CHECK(read[0] == std::byte{0xff});
  }
  machine.write_memory(select_register + 4, 1);
  machine.write_memory(Ioapic::address + Ioapic::size, 1);
  machine.write_memory(Ioapic::address - 4, 1);
  std::uint32_t selected = 99;
  machine.board.read_memory(select_register, std::as_writable_bytes(std::span(&selected, 1)));
  CHECK_EQ(selected, 0u);
}

TEST("no access of any kind upsets the board") {
  Machine machine;
  std::mt19937_64 random(1); // the same accesses every time
  for (int i = 0; i < 300'000; ++i) {
    const std::uint64_t bits = random();
    std::array<std::byte, 8> value;
    const std::uint64_t content = random();
    std::memcpy(value.data(), &content, sizeof content);
    const auto some = std::span(value).first(1 + bits % 8);
    constexpr std::uint16_t near[] = {com1, com1, 0x500, 0x600, 0xcf0, 0x60};
    const auto port = static_cast<std::uint16_t>(near[bits >> 8 & 3] + (bits >> 16 & 15));
    const std::uint64_t address = Ioapic::address - 8 + (bits >> 24 & 63);
    switch (bits >> 40 & 3) {
    case 0:
      static_cast<void>(machine.board.write_port(port, some));
      break;
    case 1:
      machine.board.read_port(port, some);
      break;
    case 2:
      machine.board.write_memory(address, some);
      break;
    default:
      machine.board.read_memory(address, some);
      machine.board.serial().receive(some);
    }
    machine.board.update_interrupts();
    int messages = 0;
    while (const auto message = machine.board.take_message()) {
      ++messages;
      CHECK_EQ(message->address & 0xfff00003, 0xfee00000u);
      CHECK((message->data & ~0x7ffu) == 0);
    }
    CHECK(messages <= 1); // one device, one line
    CHECK(machine.board.serial().input_room() <= 64);
    CHECK(machine.board.serial().output().size() <= 4096);
  }
}

TEST("virtio devices have a window and a pin each, in their order") {
  struct Quiet : virtio::DeviceOf<Quiet> {
    explicit Quiet(virtio::DeviceType type) : DeviceOf(type, 0, 1) {}
    using Device::notify_config;
  };
  const unit::GuestRam ram;
  Quiet first(virtio::DeviceType::Rng);
  Quiet second(virtio::DeviceType::Block);
  virtio::Transport transports[] = {{first, ram.memory}, {second, ram.memory}};
  Machine machine;
  machine.board.add_device(transports[0]);
  machine.board.add_device(transports[1]);
  const auto read = [&](std::uint64_t address) {
    std::uint32_t value = 0;
    machine.board.read_memory(address, std::as_writable_bytes(std::span(&value, 1)));
    return value;
  };
  CHECK_EQ(read(0xd0000008), 4u);
  CHECK_EQ(read(0xd0001008), 2u);
  CHECK_EQ(read(0xd0002008), 0xffffffffu);
  CHECK_EQ(read(0xcffffffc), 0xffffffffu);

  machine.set_pin(5, 0x41);
  machine.set_pin(6, 0x42);
  for (const std::uint64_t window : {0xd0000000, 0xd0001000}) {
    machine.write_memory(window + 0x70, 3);
    machine.write_memory(window + 0x24, 1);
    machine.write_memory(window + 0x20, 1); // version 1
    machine.write_memory(window + 0x70, 11);
    CHECK(!machine.board.has_work());
    machine.write_memory(window + 0x70, 15);
    CHECK(machine.board.has_work() && machine.board.is_settling());
    machine.board.work();
    CHECK(!machine.board.has_work() && !machine.board.is_settling());
  }
  second.notify_config();
  machine.board.update_interrupts();
  CHECK_EQ(machine.vectors(), "66 ");
  first.notify_config();
  machine.board.update_interrupts();
  machine.board.update_interrupts();
  CHECK_EQ(machine.vectors(), "65 ");
}
