#include "machine/paging.hpp"

#include <algorithm>

namespace casemate::machine {

namespace {

constexpr std::uint64_t present = 1u << 0;
constexpr std::uint64_t writable = 1u << 1;
constexpr std::uint64_t user = 1u << 2;
constexpr std::uint64_t accessed = 1u << 5;
constexpr std::uint64_t dirty = 1u << 6;
constexpr std::uint64_t large = 1u << 7;

constexpr std::uint64_t table_entry = present | writable | user | accessed;
// Accessed and dirty from the start: or the processor writes to the tables, and a KVM
// that shadows them has to be told of it by another exit for every page.
constexpr std::uint64_t page_entry = present | writable | accessed | dirty | large;

/// Directories have fixed places, so that what is mapped later finds them: the gigabytes of RAM one
/// after the other, downwards.
constexpr std::uint64_t directory_of(std::uint64_t address) {
  const std::uint64_t index = address / huge_page_size;
  constexpr std::uint64_t hole = (GuestMemory::hole_end - GuestMemory::hole_start) / huge_page_size;
  return first_directory_address -
         (address < GuestMemory::hole_end ? index : index - hole) * page_size;
}
static_assert(directory_of(0) == first_directory_address);

void set(const GuestMemory& memory, std::uint64_t table, std::uint64_t index, std::uint64_t entry) {
  memory.write(table + 8 * index, entry);
}

} // namespace

void map_memory(const GuestMemory& memory, std::uint64_t start, std::uint64_t end,
                std::uint64_t guard, bool has_huge_pages) {
  while (start < end) {
    const std::uint64_t gigabyte = start / huge_page_size * huge_page_size;
    const std::uint64_t next = std::min(gigabyte + huge_page_size, end);
    const bool is_uniform =
        start != 0 && next - start == huge_page_size && (guard < start || guard >= next);
    std::uint64_t entry = gigabyte | page_entry | user;
    if (!is_uniform || !has_huge_pages) {
      const std::uint64_t directory = directory_of(start);
      for (std::uint64_t page = start; page < next; page += large_page_size) {
        if (page != guard) {
          set(memory, directory, page % huge_page_size / large_page_size,
              page | page_entry | (page == 0 ? 0 : user));
        }
      }
      entry = directory | table_entry;
    }
    set(memory, pdpt_address, gigabyte / huge_page_size, entry);
    start = next;
  }
}

std::uint64_t build_page_tables(const GuestMemory& memory, std::uint64_t end, std::uint64_t guard,
                                bool has_huge_pages) {
  set(memory, pml4_address, 0, pdpt_address | table_entry);
  map_memory(memory, 0, std::min(end, memory.low_size()), guard, has_huge_pages);
  map_memory(memory, GuestMemory::hole_end, end, guard, has_huge_pages);
  return pml4_address;
}

} // namespace casemate::machine
