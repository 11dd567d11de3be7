#include "machine/paging.hpp"

#include <cstddef>

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

class Builder {
public:
  Builder(const GuestMemory& memory, std::uint64_t guard, bool has_huge_pages)
      : memory_(memory), guard_(guard), has_huge_pages_(has_huge_pages) {}

  void map(std::uint64_t start, std::uint64_t end) {
    for (std::uint64_t at = start; at < end; at += huge_page_size) {
      set(pdpt_address, at / huge_page_size, huge_entry(at, end));
    }
  }

  void set(std::uint64_t table, std::uint64_t index, std::uint64_t entry) {
    memory_.write(table + 8 * index, entry);
  }

private:
  std::uint64_t huge_entry(std::uint64_t start, std::uint64_t end) {
    const bool is_uniform = start != 0 && start + huge_page_size <= end &&
                            (guard_ < start || guard_ >= start + huge_page_size);
    return is_uniform && has_huge_pages_ ? start | page_entry | user
                                         : directory(start, end) | table_entry;
  }

  std::uint64_t directory(std::uint64_t start, std::uint64_t end) {
    const std::uint64_t table = next_directory_;
    next_directory_ -= page_size;
    for (std::uint64_t index = 0; index < 512; ++index) {
      const std::uint64_t page = start + index * large_page_size;
      if (page < end && page != guard_) {
        set(table, index, page | page_entry | (page == 0 ? 0 : user));
      }
    }
    return table;
  }

  const GuestMemory& memory_;
  std::uint64_t guard_;
  bool has_huge_pages_;
  std::uint64_t next_directory_ = first_directory_address;
};

} // namespace

std::uint64_t build_page_tables(const GuestMemory& memory, std::uint64_t guard,
                                bool has_huge_pages) {
  Builder builder(memory, guard, has_huge_pages);
  builder.set(pml4_address, 0, pdpt_address | table_entry);
  builder.map(0, memory.low_size());
  builder.map(GuestMemory::hole_end, GuestMemory::hole_end + memory.high_size());
  return pml4_address;
}

} // namespace casemate::machine
