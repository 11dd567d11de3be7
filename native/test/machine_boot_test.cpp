#include "kvm/ioctl.hpp"
#include "machine/boot.hpp"
#include "machine/cpuid.hpp"
#include "machine/extents.hpp"
#include "machine/layout.hpp"
#include "machine/paging.hpp"
#include "machine/system_page.hpp"
#include "sys/fd.hpp"
#include "sys/mapping.hpp"
#include "test/unit.hpp"

#include <cstring>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

using namespace casemate;
using namespace casemate::machine;

namespace {

constexpr std::uint64_t mib = 1 << 20;
constexpr std::uint64_t gib = 1 << 30;

struct Ram {
  explicit Ram(std::uint64_t size)
      : mapping(sys::Mapping::map(size, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
                    .value()),
        memory(mapping.data(), size) {}

  sys::Mapping mapping;
  GuestMemory memory;
};

enum class Access { None, Supervisor, User };

struct Translation {
  Access access = Access::None;
  std::uint64_t physical = 0;
};

/// As the processor would, from CR3 on.
Translation translate(const GuestMemory& memory, std::uint64_t cr3, std::uint64_t address) {
  std::uint64_t table = cr3;
  bool user = true;
  for (int shift = 39; shift >= 12; shift -= 9) {
    std::uint64_t entry = 0;
    if (!memory.read(table + 8 * (address >> shift & 511), entry)) {
      unit::fail(__FILE__, __LINE__, "a page table outside of RAM");
      return {};
    }
    if ((entry & 3) != 3) { // present, writable
      return {};
    }
    user = user && (entry & 4) != 0;
    const std::uint64_t size = 1ull << shift;
    if (shift < 39 && (entry & 0x80) != 0) {
      const std::uint64_t page = entry & 0x000ffffffffff000;
      CHECK_EQ(page % size, 0u);
      return {user ? Access::User : Access::Supervisor, page | (address & (size - 1))};
    }
    table = entry & 0x000ffffffffff000;
  }
  return {};
}

void check_page_tables(const GuestMemory& memory, std::uint64_t mapped_end, std::uint64_t guard) {
  for (std::uint64_t page = 0; page < memory.end() + 4 * large_page_size; page += large_page_size) {
    const bool is_ram = memory.at(page, large_page_size) != nullptr && page < mapped_end;
    const Access expected = !is_ram || page == guard ? Access::None
                            : page == 0              ? Access::Supervisor
                                                     : Access::User;
    for (const std::uint64_t address : {page, page + 0x12345, page + large_page_size - 1}) {
      const Translation found = translate(memory, pml4_address, address);
      if (found.access != expected || (expected != Access::None && found.physical != address)) {
        unit::fail(__FILE__, __LINE__,
                   "address " + std::to_string(address) + " of " + std::to_string(memory.size()));
        return;
      }
    }
  }
  for (const std::uint64_t address :
       {memory.end(), std::uint64_t{1} << 39, std::uint64_t{1} << 46, ~std::uint64_t{0} << 47}) {
    CHECK(translate(memory, pml4_address, address).access == Access::None);
  }
  // Nothing of it lies where the image will be, or in the system page.
  const std::byte zeros[sizeof(SystemPage)]{};
  CHECK(std::memcmp(memory.at(system_page_address, sizeof zeros), zeros, sizeof zeros) == 0);
  CHECK_EQ(static_cast<int>(*memory.at(image_base, 1)), 0);
}

void check_page_tables(std::uint64_t size, std::uint64_t guard, bool has_huge_pages) {
  const Ram whole(size);
  build_page_tables(whole.memory, whole.memory.end(), guard, has_huge_pages);
  check_page_tables(whole.memory, whole.memory.end(), guard);

  // The same memory comes in parts, the last one first.
  const Ram parts(size);
  const std::uint64_t first = extent_of(parts.memory, guard)->end;
  build_page_tables(parts.memory, first, guard, has_huge_pages);
  check_page_tables(parts.memory, first, guard);
  for (std::uint64_t gigabyte = parts.memory.end() / gib + 1; gigabyte-- > 0;) {
    for (std::uint64_t part = 4; part-- > 0;) {
      const auto extent = extent_of(parts.memory, gigabyte * gib + part * (gib / 4));
      if (extent && extent->start >= first) {
        map_memory(parts.memory, extent->start, extent->end, no_guard, has_huge_pages);
      }
    }
  }
  if (const auto rest = extent_of(parts.memory, 16 * mib); rest && rest->start >= first) {
    map_memory(parts.memory, rest->start, rest->end, no_guard, has_huge_pages);
  }
  check_page_tables(parts.memory, parts.memory.end(), guard);
}

/// Of a guest whose image ends below 4 MiB.
void check_mapped(const GuestMemory& memory, std::uint64_t end) {
  for (const std::uint64_t address : {end - 1, end, end + 1, memory.end() - 1}) {
    const bool is_mapped = translate(memory, pml4_address, address).access == Access::User;
    CHECK_EQ(is_mapped, address < end);
  }
}

sys::Fd file_of(const void* bytes, std::size_t size) {
  sys::Fd file(memfd_create("file", MFD_CLOEXEC));
  if (write(file.get(), bytes, size) != static_cast<ssize_t>(size)) {
    unit::fail(__FILE__, __LINE__, "no memfd");
  }
  return file;
}

} // namespace

TEST("all RAM is mapped to itself, the guard and what is not RAM are not") {
  for (const bool has_huge_pages : {false, true}) {
    check_page_tables(8 * mib, 4 * mib, has_huge_pages);
    check_page_tables(1 * gib, 4 * mib, has_huge_pages);
    check_page_tables(1 * gib + 2 * mib, 1 * gib - 2 * mib, has_huge_pages);
    check_page_tables(3 * gib, 2 * gib + 6 * mib, has_huge_pages);
    check_page_tables(3 * gib + 2 * mib, 4 * mib, has_huge_pages);
    check_page_tables(5 * gib + 4 * mib, 1 * gib, has_huge_pages);
    check_page_tables(max_memory_size, 4 * mib, has_huge_pages);
  }
}

TEST("pages of 1 GiB take the place of directories") {
  const Ram ram(3 * gib);
  build_page_tables(ram.memory, 3 * gib, 4 * mib, true);
  std::uint64_t entry = 0;
  ram.memory.read(pdpt_address + 8, entry);
  CHECK_EQ(entry & ~0x7full, gib | 0x80);
  ram.memory.read(first_directory_address - page_size, entry);
  CHECK_EQ(entry, 0u); // there is one directory only
}

TEST("extents are the memory without a gap, and nothing else is one") {
  // Only asked for addresses: none of it needs to be there.
  auto* base = reinterpret_cast<std::byte*>(std::uintptr_t{1} << 44);
  for (const std::uint64_t size :
       {8 * mib, 16 * mib, 18 * mib, 256 * mib, 258 * mib, 1 * gib, 3 * gib - 2 * mib, 3 * gib,
        3 * gib + 2 * mib, 5 * gib + 4 * mib, 64 * gib, max_memory_size}) {
    const GuestMemory memory(base, size);
    std::uint64_t covered = 0;
    std::uint64_t last = 0;
    for (std::uint64_t at = 0; at < memory.end();) {
      const auto extent = extent_of(memory, at);
      if (!extent) {
        CHECK_EQ(at, GuestMemory::hole_start);
        CHECK(!extent_of(memory, GuestMemory::hole_end - 1));
        at = GuestMemory::hole_end;
        continue;
      }
      CHECK_EQ(extent->start, at);
      CHECK(extent->end > at && extent->end - at <= gib && extent->end % large_page_size == 0);
      CHECK(memory.at(extent->start, extent->end - extent->start) != nullptr);
      CHECK(extent->number < max_extents && (at == 0 || extent->number > last));
      const auto same = extent_of(memory, extent->end - 1);
      CHECK(same && same->number == extent->number && same->start == at);
      last = extent->number;
      covered += extent->end - at;
      at = extent->end;
    }
    CHECK_EQ(covered, size);
    for (const std::uint64_t address :
         {memory.end(), memory.end() + 1, std::uint64_t{1} << 63, UINT64_MAX - 7, UINT64_MAX}) {
      CHECK(!extent_of(memory, address));
    }
  }
  // Numbers are those of slots: KVM had 509 of them for long.
  CHECK_EQ(extent_of(GuestMemory(base, max_memory_size), 257 * gib - 1)->number, max_extents - 1);
  CHECK(max_extents < 509);
}

TEST("a small guest has all of its memory from the start, a bigger one what it is loaded with") {
  CHECK_EQ(extent_of(GuestMemory(nullptr, 16 * mib), 0)->end, 16 * mib);
  const GuestMemory memory(nullptr, 2 * gib);
  CHECK_EQ(extent_of(memory, 16 * mib - 1)->end, 16 * mib);
  CHECK_EQ(extent_of(memory, 16 * mib)->start, 16 * mib);
  CHECK_EQ(extent_of(memory, 16 * mib)->end, 256 * mib);
  CHECK_EQ(extent_of(memory, 1 * gib)->end, 2 * gib);
}

TEST("the layout keeps everything apart and in low memory") {
  const GuestMemory memory(nullptr, 64 * mib);
  for (const std::uint64_t image_end : {image_base + 1, 4 * mib, 4 * mib + 1, 30 * mib}) {
    for (const std::uint64_t input : {std::uint64_t{0}, std::uint64_t{1}, 5 * mib}) {
      Layout layout;
      REQUIRE(layout.place(memory, {image_end, 3, 100, input}));
      CHECK(layout.guard >= image_end && layout.guard % large_page_size == 0);
      CHECK_EQ(layout.stack_low, layout.guard + large_page_size);
      CHECK(layout.boot_info > layout.stack_low + mib);
      CHECK_EQ(layout.boot_info % 16, 0u);
      CHECK(layout.arguments >= layout.boot_info + sizeof(casemate_boot_info));
      CHECK_EQ(layout.strings, layout.arguments + 8 * 4);
      CHECK(layout.input >= layout.strings + 100 && layout.input % page_size == 0);
      CHECK(layout.heap >= layout.input + input && layout.heap % page_size == 0);
      CHECK(layout.heap <= 64 * mib);
    }
  }
}

TEST("contents that do not fit are refused, whatever their numbers") {
  const GuestMemory memory(nullptr, 8 * mib);
  Layout layout;
  CHECK(layout.place(memory, {image_base + 1, 0, 0, 0}));
  CHECK_EQ(layout.heap, 8 * mib);
  CHECK(!layout.place(memory, {image_base + 2 * mib + 1, 0, 0, 0}));
  CHECK(!layout.place(memory, {image_base + 1, 0, 0, 1}));
  CHECK(!layout.place(memory, {image_base + 1, 0, 4096, 0}));
  CHECK(!layout.place(memory, {8 * mib, 0, 0, 0}));
  for (const std::uint64_t huge : {8 * mib, std::uint64_t{1} << 61, UINT64_MAX}) {
    CHECK(!layout.place(memory, {image_base + 1, huge, 0, 0}));
    CHECK(!layout.place(memory, {image_base + 1, 0, huge, 0}));
    CHECK(!layout.place(memory, {image_base + 1, 0, 0, huge}));
  }
  // High memory does not help: the image and what comes with it stay below 4 GiB.
  CHECK(!layout.place(GuestMemory(nullptr, 16 * gib), {image_base + 1, 0, 0, 4 * gib}));
}

TEST("CPL 3 may use the ports of the guest ABI, four each, and no other") {
  SystemPage page{};
  build_system_page(page);
  CHECK_EQ(page.task.permissions_offset, 104);
  CHECK_EQ(task_limit, 136u);
  const auto* bitmap = reinterpret_cast<const std::uint8_t*>(&page.task) + 104;
  for (unsigned port = 0; port < 264; ++port) {
    const bool is_denied = (bitmap[port / 8] >> port % 8 & 1) != 0;
    CHECK_EQ(is_denied, port < 0xe0 || port >= 0xf8);
  }
}

TEST("every exception has a handler that reports at an address of its own") {
  SystemPage page{};
  build_system_page(page);
  for (std::uint32_t vector = 0; vector < exception_count; ++vector) {
    const Gate& gate = page.idt[vector];
    const std::uint64_t handler = gate.offset_low | std::uint64_t{gate.offset_middle} << 16 |
                                  std::uint64_t{gate.offset_high} << 32;
    CHECK_EQ(handler, handlers_address + 4 * vector);
    CHECK_EQ(gate.selector, kernel_code_selector);
    CHECK_EQ(gate.interrupt_stack, 1);
    CHECK_EQ(gate.attributes, vector == 3 || vector == 4 ? 0xee : 0x8e);
    const std::uint8_t code[] = {0xe6, fault_port, 0xeb, 0xfc}; // out; jmp to it
    CHECK(std::memcmp(page.handlers[vector].code, code, 4) == 0);
  }
  std::uint64_t top = 0;
  std::memcpy(&top, &page.task.interrupt_stacks, 8);
  CHECK_EQ(top, exception_stack_top);
  CHECK_EQ(top % 16, 0u);
  CHECK(top <= system_page_address + page_size);
}

TEST("exceptions with an error code are known") {
  for (std::uint32_t vector = 0; vector < 40; ++vector) {
    const bool expected = vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 ||
                          vector == 21 || vector == 29 || vector == 30;
    CHECK_EQ(has_error_code(vector), expected);
  }
}

TEST("the registers say what the descriptor table says") {
  SystemPage page{};
  build_system_page(page);
  for (const std::uint32_t cpl : {0u, 3u}) {
    const kvm_sregs sregs = entry_system_registers(cpl, false);
    for (const kvm_segment& segment : {sregs.cs, sregs.ss, sregs.tr}) {
      const std::uint64_t entry = page.gdt[segment.selector / 8];
      CHECK_EQ(entry >> 40 & 15, segment.type);
      CHECK_EQ(entry >> 44 & 1, segment.s);
      CHECK_EQ(entry >> 45 & 3, segment.dpl);
      CHECK_EQ(entry >> 47 & 1, segment.present);
      CHECK_EQ(entry >> 53 & 1, segment.l);
      CHECK_EQ(entry >> 55 & 1, segment.g);
    }
    CHECK_EQ(sregs.cs.selector & 3u, cpl);
    CHECK_EQ(sregs.ss.selector & 3u, cpl);
    CHECK_EQ(sregs.cs.dpl, cpl);
    const std::uint64_t* task = &page.gdt[sregs.tr.selector / 8];
    CHECK_EQ((task[0] >> 16 & 0xffffff) | (task[0] >> 56 & 0xff) << 24 | task[1] << 32,
             sregs.tr.base);
    CHECK_EQ(task[0] & 0xffff, sregs.tr.limit);
    CHECK_EQ(sregs.gdt.limit, 55);
    CHECK_EQ(sregs.idt.limit, 511);
    CHECK_EQ(sregs.cr3, pml4_address);
  }
}

TEST("on AMD the task is not busy, and that is all the difference") {
  kvm_sregs amd = entry_system_registers(3, true);
  const kvm_sregs intel = entry_system_registers(3, false);
  CHECK_EQ(amd.tr.type, 9);
  CHECK_EQ(intel.tr.type, 11);
  amd.tr.type = intel.tr.type;
  CHECK(std::memcmp(&amd, &intel, sizeof amd) == 0);
}

TEST("what is asked of a CPUID table is found in it, or is not there") {
  kvm::Table<casemate_kvm_cpuid2, kvm_cpuid_entry2, 2> table;
  CHECK(!has_huge_pages(*table.get()));
  CHECK(!is_amd(*table.get()));
  table->nent = 2;
  std::memcpy(&table->entries[0].ebx, "Auth", 4);
  std::memcpy(&table->entries[0].edx, "enti", 4);
  std::memcpy(&table->entries[0].ecx, "cAMD", 4);
  table->entries[1].function = 0x80000001;
  CHECK(!has_huge_pages(*table.get()));
  CHECK(is_amd(*table.get()));
  table->entries[1].edx = 1u << 26;
  CHECK(has_huge_pages(*table.get()));
  table->nent = 1;
  CHECK(!has_huge_pages(*table.get()));
}

TEST("a guest finds its boot information, arguments and input") {
  const Ram ram(16 * mib);
  const std::string code(5000, '\x90');
  const std::string input = "all of the input";
  const std::string arguments("one\0\0three\0", 11);
  const sys::Fd image_file = file_of(code.data(), code.size());
  const sys::Fd input_file = file_of(input.data(), input.size());
  BootSource source;
  source.image = image_file.get();
  source.image_size = code.size();
  source.input = input_file.get();
  source.input_size = input.size();
  source.argument_count = 3;
  source.arguments = {reinterpret_cast<const std::byte*>(arguments.data()), arguments.size()};
  Entry entry;
  CHECK(!load_guest(source, ram.memory, entry));

  CHECK_EQ(entry.rip, image_base);
  CHECK_EQ(entry.rsp % 16, 8u);
  CHECK_EQ(std::memcmp(ram.memory.at(image_base, code.size()), code.data(), code.size()), 0);
  casemate_boot_info info{};
  REQUIRE(ram.memory.read(entry.boot_info, info));
  CHECK_EQ(info.magic, CASEMATE_GUEST_MAGIC);
  CHECK_EQ(info.version, CASEMATE_GUEST_VERSION);
  CHECK_EQ(info.size, sizeof info);
  CHECK_EQ(info.memory_size, 16 * mib);
  CHECK_EQ(info.cpl, 3u);
  CHECK_EQ(entry.mapped_end, 16 * mib);
  CHECK_EQ(info.heap + info.heap_size, 16 * mib);
  CHECK_EQ(info.high_size, 0u);
  CHECK(entry.rsp > info.stack_low && entry.rsp < entry.boot_info);
  REQUIRE(info.input_size == input.size());
  CHECK_EQ(std::memcmp(ram.memory.at(info.input, input.size()), input.data(), input.size()), 0);
  REQUIRE(info.argument_count == 3);
  for (std::uint64_t i = 0; i < 3; ++i) {
    const char* const expected[] = {"one", "", "three"};
    std::uint64_t pointer = 0;
    REQUIRE(ram.memory.read(info.arguments + 8 * i, pointer));
    const std::size_t size = std::strlen(expected[i]) + 1;
    REQUIRE(ram.memory.at(pointer, size) != nullptr);
    CHECK_EQ(std::memcmp(ram.memory.at(pointer, size), expected[i], size), 0);
  }
  std::uint64_t last = 1;
  CHECK(ram.memory.read(info.arguments + 24, last) && last == 0);
  const std::uint8_t no_seed[32]{};
  CHECK(std::memcmp(info.seed, no_seed, 32) != 0);
}

TEST("of memory on demand what the guest is loaded with is mapped, and the extent to its end") {
  const Ram ram(64 * mib + 1 * gib);
  const std::string input(20 * mib, 'i');
  const sys::Fd image_file = file_of("\x90", 1);
  const sys::Fd input_file = file_of(input.data(), input.size());
  BootSource source;
  source.image = image_file.get();
  source.image_size = 1;
  source.has_memory_on_demand = true;
  Entry entry;
  CHECK(!load_guest(source, ram.memory, entry));
  CHECK_EQ(entry.mapped_end, first_extent_size);
  check_mapped(ram.memory, entry.mapped_end);

  const Ram more(64 * mib + 1 * gib);
  source.input = input_file.get();
  source.input_size = input.size();
  CHECK(!load_guest(source, more.memory, entry));
  CHECK_EQ(entry.mapped_end, small_extent_size);
  check_mapped(more.memory, entry.mapped_end);
}

TEST("behind an exception a guest goes on where it was, at its own level") {
  kvm_regs regs{};
  regs.rax = 1;
  kvm_sregs sregs = entry_system_registers(3, true);
  sregs.fs.selector = 0;
  sregs.cs = entry_system_registers(0, true).cs;
  sregs.ss.unusable = 1;
  sregs.cr2 = 5;
  sregs.tr.type = 11; // as KVM tells it
  return_from_exception({0x200123, 0x23, 0x10202, 0x7ffff0, 0x1b}, true, regs, sregs);
  CHECK_EQ(regs.rip, 0x200123u);
  CHECK_EQ(regs.rsp, 0x7ffff0u);
  CHECK_EQ(regs.rflags, 0x10202u);
  CHECK_EQ(regs.rax, 1u);
  CHECK_EQ(sregs.cr2, 5u);
  CHECK_EQ(sregs.fs.selector, 0);
  const kvm_sregs entry = entry_system_registers(3, true);
  CHECK(std::memcmp(&sregs.cs, &entry.cs, sizeof entry.cs) == 0);
  CHECK(std::memcmp(&sregs.ss, &entry.ss, sizeof entry.ss) == 0);
  CHECK(std::memcmp(&sregs.tr, &entry.tr, sizeof entry.tr) == 0);
}

TEST("input that does not fit, or that ends early, is refused") {
  const Ram ram(8 * mib);
  const sys::Fd image_file = file_of("\x90", 1);
  const sys::Fd input_file = file_of("short", 5);
  BootSource source;
  source.image = image_file.get();
  source.image_size = 1;
  source.input = input_file.get();
  source.input_size = 5;
  Entry entry;
  CHECK_EQ(load_guest(source, ram.memory, entry).reason,
           std::uint32_t{CASEMATE_IMAGE_INPUT_TOO_BIG});
  const Ram more(10 * mib);
  source.input_size = 6;
  CHECK_EQ(load_guest(source, more.memory, entry).reason, std::uint32_t{CASEMATE_IMAGE_TRUNCATED});
}
