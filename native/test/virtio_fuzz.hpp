// What a fuzzer's bytes have a driver do, for devices of every kind: 8 bytes a step.
#pragma once

#include "test/virtio.hpp"

#include <cstdint>
#include <cstring>
#include <span>

namespace casemate::unit {

struct Step {
  std::uint8_t kind;
  std::uint8_t number;
  std::uint16_t offset; // of what memory there is behind the rings, or of a register
  std::uint32_t value;
};
static_assert(sizeof(Step) == 8);

/// Calls `take(step)` for each step in `bytes`.
template <typename Take> void for_each_step(std::span<const std::uint8_t> bytes, Take take) {
  for (; bytes.size() >= sizeof(Step); bytes = bytes.subspan(sizeof(Step))) {
    Step step;
    std::memcpy(&step, bytes.data(), sizeof step);
    take(step);
  }
}

/// Kinds of steps below this are the driver's: with memory, rings and registers.
inline constexpr std::uint8_t driver_steps = 7;

inline void take_driver_step(Driver& driver, const Step& step) {
  auto& queue = driver.queues[step.number % driver.queues.size()];
  const std::uint64_t address = GuestRam::data + step.offset;
  switch (step.kind) {
  case 0: // a chain of one buffer, or of two
    queue.add({{address, step.value >> 1, (step.value & 1) != 0}});
    break;
  case 1:
    queue.add({{address, step.value % 64, (step.number & 64) != 0},
               {address + 64, step.value >> 16, (step.number & 128) != 0}});
    break;
  case 2: // what the device finds there
    driver.ram.write(address, step.value);
    break;
  case 3: // anything anywhere, in the rings for example
    driver.ram.write(step.offset * std::uint64_t{step.number}, step.value);
    break;
  case 4:
    driver.kick(step.number);
    break;
  case 5:
    driver.write(step.offset % machine::virtio::Transport::size, step.value);
    driver.settle();
    break;
  default:
    driver.start(step.value);
  }
}

} // namespace casemate::unit
