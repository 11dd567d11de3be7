#pragma once

#include "machine/guest_memory.hpp"
#include "machine/layout.hpp"

#include <cstdint>

namespace casemate::machine {

/// Maps all RAM to itself, in the largest pages that do: the first 2 MiB for the
/// supervisor only, the 2 MiB at `guard` not at all. Returns what CR3 is to be.
std::uint64_t build_page_tables(const GuestMemory& memory, std::uint64_t guard,
                                bool has_huge_pages);

} // namespace casemate::machine
