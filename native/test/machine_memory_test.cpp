#include "machine/guest_memory.hpp"
#include "test/unit.hpp"

#include <array>
#include <cstdint>

using casemate::machine::GuestMemory;

namespace {

constexpr std::uint64_t gib = 1ull << 30;
constexpr std::uint64_t max = UINT64_MAX;

} // namespace

TEST("guest memory gives out what lies in RAM, and null for a single byte outside") {
  std::array<std::byte, 4096> ram{};
  const GuestMemory memory(ram.data(), ram.size());
  CHECK_EQ(memory.at(0, 4096), ram.data());
  CHECK_EQ(memory.at(4095, 1), ram.data() + 4095);
  CHECK_EQ(memory.at(4096, 0), ram.data() + 4096);
  CHECK(memory.at(0, 4097) == nullptr);
  CHECK(memory.at(4095, 2) == nullptr);
  CHECK(memory.at(4096, 1) == nullptr);
  CHECK(memory.at(4097, 0) == nullptr);
}

TEST("no address and length add up to something that wraps around") {
  std::array<std::byte, 4096> ram{};
  const GuestMemory memory(ram.data(), ram.size());
  CHECK(memory.at(max, 1) == nullptr);
  CHECK(memory.at(max, 2) == nullptr);
  CHECK(memory.at(max - 4095, 4096) == nullptr);
  CHECK(memory.at(1, max) == nullptr);
  CHECK(memory.at(4095, max - 4094) == nullptr);
  CHECK(memory.at(max, max) == nullptr);
}

TEST("RAM above 3 GiB goes on at 4 GiB, and nothing lies between") {
  // Only asked for addresses: none of it needs to be there.
  auto* base = reinterpret_cast<std::byte*>(std::uintptr_t{1} << 44);
  const GuestMemory memory(base, 5 * gib);
  CHECK_EQ(memory.low_size(), 3 * gib);
  CHECK_EQ(memory.high_size(), 2 * gib);
  CHECK_EQ(memory.at(0, 3 * gib), base);
  CHECK(memory.at(0, 3 * gib + 1) == nullptr);
  CHECK(memory.at(3 * gib, 1) == nullptr);
  CHECK(memory.at(0xfee00000, 4096) == nullptr);
  CHECK(memory.at(4 * gib - 1, 1) == nullptr);
  CHECK(memory.at(4 * gib - 1, 2) == nullptr);
  CHECK_EQ(memory.at(4 * gib, 2 * gib), base + 3 * gib);
  CHECK_EQ(memory.at(6 * gib - 1, 1), base + 5 * gib - 1);
  CHECK(memory.at(6 * gib - 1, 2) == nullptr);
  CHECK(memory.at(4 * gib, max - 4 * gib + 1) == nullptr);
}

TEST("a machine of 3 GiB has no high memory") {
  auto* base = reinterpret_cast<std::byte*>(std::uintptr_t{1} << 44);
  const GuestMemory memory(base, 3 * gib);
  CHECK_EQ(memory.high_size(), 0u);
  CHECK(memory.at(4 * gib, 1) == nullptr);
  CHECK_EQ(memory.at(3 * gib - 1, 1), base + 3 * gib - 1);
}

TEST("read copies, write stores, and both refuse what is not RAM") {
  std::array<std::byte, 16> ram{};
  const GuestMemory memory(ram.data(), ram.size());
  CHECK(memory.write(3, std::uint32_t{0x04030201}));
  CHECK_EQ(static_cast<int>(ram[3]), 1);
  std::uint32_t value = 0;
  CHECK(memory.read(3, value));
  CHECK_EQ(value, 0x04030201u);
  CHECK(!memory.read(13, value));
  CHECK_EQ(value, 0x04030201u);
  CHECK(!memory.write(13, value));
  CHECK(!memory.write(max, value));
}
