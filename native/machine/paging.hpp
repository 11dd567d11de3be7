#pragma once

#include "machine/guest_memory.hpp"
#include "machine/layout.hpp"

#include <cstdint>

namespace casemate::machine {

inline constexpr std::uint64_t no_guard = UINT64_MAX;

/// Maps the RAM from `start` to `end`, multiples of 2 MiB, to itself, in the largest pages that do:
/// the first 2 MiB for the supervisor only, the 2 MiB at `guard` not at all.
void map_memory(const GuestMemory& memory, std::uint64_t start, std::uint64_t end,
                std::uint64_t guard, bool has_huge_pages);

/// The tables, with the RAM below `end` in them. Returns what CR3 is to be.
std::uint64_t build_page_tables(const GuestMemory& memory, std::uint64_t end, std::uint64_t guard,
                                bool has_huge_pages);

} // namespace casemate::machine
