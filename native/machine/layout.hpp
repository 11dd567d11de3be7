// Where things are in the memory of a bare-metal guest:
//
//   0                    the machine's own pages, out of reach at CPL 3
//   2 MiB                the image
//   image rounded up     2 MiB not mapped: where a stack that grows too far faults
//   + 2 MiB              the stack, 2 MiB; the boot information above it
//   page above that      the input buffer
//   page above that      free memory, up to the end of RAM or the hole at 3 GiB
//   4 GiB                more free memory
//
// The machine's pages end right below the image, and boot information and the first
// of the stack share a page: all that a small guest touches is three runs of pages.
#pragma once

#include "guest/casemate-guest-abi.h"
#include "machine/guest_memory.hpp"

#include <cstdint>

namespace casemate::machine {

// Guests are built apart from the monitor: these never change within a version.
static_assert(sizeof(casemate_boot_info) == 128 && sizeof(casemate_transfer) == 32);

inline constexpr std::uint64_t page_size = 0x1000;
inline constexpr std::uint64_t large_page_size = 0x200000;
inline constexpr std::uint64_t huge_page_size = 0x40000000;

inline constexpr std::uint64_t image_base = CASEMATE_GUEST_BASE;
inline constexpr std::uint64_t pml4_address = image_base - page_size;
inline constexpr std::uint64_t pdpt_address = image_base - 2 * page_size;
inline constexpr std::uint64_t system_page_address = image_base - 3 * page_size;
/// One for each gigabyte of the address space that needs it, downwards from here.
inline constexpr std::uint64_t first_directory_address = image_base - 4 * page_size;

inline constexpr std::uint64_t min_memory_size = 4 * large_page_size;
/// So that the page directories fit below the image without pages of 1 GiB too.
inline constexpr std::uint64_t max_memory_size = 256 * huge_page_size;

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

/// What the machine puts into a guest's memory, by its size in bytes.
struct Contents {
  std::uint64_t image_end = 0; // address
  std::uint64_t argument_count = 0;
  std::uint64_t arguments_size = 0;
  std::uint64_t input_size = 0;
};

struct Layout {
  std::uint64_t guard = 0;
  std::uint64_t stack_low = 0;
  std::uint64_t boot_info = 0;
  std::uint64_t arguments = 0; // argv
  std::uint64_t strings = 0;
  std::uint64_t input = 0;
  std::uint64_t heap = 0;

  /// False where the contents do not fit into low memory. The sizes may be anything;
  /// `image_end` lies in low memory.
  bool place(const GuestMemory& memory, const Contents& contents) {
    const std::uint64_t end = memory.low_size();
    guard = round_up(contents.image_end, large_page_size);
    stack_low = guard + large_page_size;
    const std::uint64_t stack_end = stack_low + large_page_size;
    if (stack_end > end || contents.argument_count > end / 8 || contents.arguments_size > end ||
        contents.input_size > end) {
      return false;
    }
    boot_info = stack_end - page_size / 2;
    arguments = boot_info + sizeof(casemate_boot_info);
    strings = arguments + 8 * (contents.argument_count + 1);
    input = round_up(strings + contents.arguments_size, page_size);
    heap = round_up(input + contents.input_size, page_size);
    return heap <= end;
  }
};

} // namespace casemate::machine
