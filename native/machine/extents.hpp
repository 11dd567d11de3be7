// The parts in which a bare-metal guest at CPL 3 is given its memory: the first one before it runs,
// the others when it first touches them. KVM takes time for a slot that grows with its size, where
// it shadows page tables.
#pragma once

#include "machine/guest_memory.hpp"
#include "machine/layout.hpp"

#include <algorithm>
#include <cstdint>
#include <optional>

namespace casemate::machine {

/// Holds what most guests are loaded with, and all that a small one has.
inline constexpr std::uint64_t first_extent_size = 16 << 20;
/// Of the rest of the first gigabyte. From there on an extent is what one entry of the page tables
/// maps.
inline constexpr std::uint64_t small_extent_size = huge_page_size / 4;

struct Extent {
  std::uint32_t number = 0;
  std::uint64_t start = 0;
  std::uint64_t end = 0;
};

/// The extent that `address` lies in, or nothing where that is not RAM. Anything is safe to ask.
inline std::optional<Extent> extent_of(const GuestMemory& memory, std::uint64_t address) {
  const std::uint64_t ram_end = address < GuestMemory::hole_end
                                    ? memory.low_size()
                                    : GuestMemory::hole_end + memory.high_size();
  if (address >= ram_end) {
    return {};
  }
  if (address < first_extent_size) {
    return Extent{0, 0, std::min(first_extent_size, ram_end)};
  }
  const bool is_small = address < huge_page_size;
  const std::uint64_t size = is_small ? small_extent_size : huge_page_size;
  const std::uint64_t index = address / size;
  return Extent{static_cast<std::uint32_t>(is_small ? index + 1 : index + 4),
                std::max(index * size, first_extent_size), std::min((index + 1) * size, ram_end)};
}

/// The last gigabyte of the largest machine is the one behind as many as it has, for the hole.
inline constexpr std::uint32_t max_extents = max_memory_size / huge_page_size + 4 + 1;

} // namespace casemate::machine
