#include "machine/boot.hpp"

#include "machine/extents.hpp"
#include "machine/layout.hpp"
#include "machine/paging.hpp"
#include "machine/system_page.hpp"
#include "sys/syscall.hpp"

#include <linux/mman.h>

#include <cstring>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace casemate::machine {

namespace {

/// Where the host hands out huge pages unasked, the first touch of each takes 0.2 ms to
/// clear it: not for the few pages that a guest with a small image starts with. Of small
/// memory that is all: to divide its mapping takes longer than it is worth.
void avoid_huge_pages(const GuestMemory& memory, const Layout& layout) {
  if (layout.guard == image_base + large_page_size) {
    const std::uint64_t start = layout.stack_low + large_page_size;
    sys::call(__NR_madvise, memory.base(),
              memory.size() <= first_extent_size ? memory.size() : start, MADV_NOHUGEPAGE);
  }
}

/// Has the kernel provide these pages in one go: a fault for each costs more. Where it
/// cannot (before Linux 5.14), they come by faults.
void populate(const GuestMemory& memory, std::uint64_t start, std::uint64_t end) {
  start = start / page_size * page_size;
  end = round_up(end, page_size);
  if (std::byte* at = memory.at(start, end - start)) {
    sys::call(__NR_madvise, at, end - start, MADV_POPULATE_WRITE);
  }
}

ImageError write_boot_info(const BootSource& source, const GuestMemory& memory,
                           const Layout& layout) {
  casemate_boot_info info{};
  info.magic = CASEMATE_GUEST_MAGIC;
  info.version = CASEMATE_GUEST_VERSION;
  info.size = sizeof info;
  info.memory_size = memory.size();
  info.cpl = source.cpl;
  info.argument_count = source.argument_count;
  info.arguments = layout.arguments;
  info.input = layout.input;
  info.input_size = source.input_size;
  info.heap = layout.heap;
  info.heap_size = memory.low_size() - layout.heap;
  info.high = GuestMemory::hole_end;
  info.high_size = memory.high_size();
  info.stack_low = layout.stack_low;
  // Up to 256 bytes come whole or not at all.
  const long count = sys::call_retry(__NR_getrandom, info.seed, sizeof info.seed, 0);
  if (count != sizeof info.seed) {
    return {0, {"getrandom", count < 0 ? static_cast<int>(-count) : 5 /* EIO */}};
  }
  memory.write(layout.boot_info, info);
  return {};
}

void write_arguments(const BootSource& source, const GuestMemory& memory, const Layout& layout) {
  std::byte* to = memory.at(layout.strings, source.arguments.size());
  if (to != nullptr && !source.arguments.empty()) {
    std::memcpy(to, source.arguments.data(), source.arguments.size());
  }
  std::uint64_t pointer = layout.arguments;
  bool at_start = true;
  for (std::size_t i = 0; i < source.arguments.size(); ++i) {
    if (at_start) {
      memory.write(pointer, layout.strings + i);
      pointer += 8;
    }
    at_start = source.arguments[i] == std::byte{0};
  }
}

} // namespace

ImageError load_guest(const BootSource& source, const GuestMemory& memory, Entry& entry) {
  Image image;
  if (auto error = parse_image(source.image, source.image_size, source.format, memory, image)) {
    return error;
  }
  Layout layout;
  if (!layout.place(
          memory, {image.end, source.argument_count, source.arguments.size(), source.input_size})) {
    return {CASEMATE_IMAGE_INPUT_TOO_BIG};
  }

  avoid_huge_pages(memory, layout);
  // The machine's pages and an image that casemate-guest.ld laid out are one run.
  // Segments elsewhere come by faults.
  std::uint64_t end = image_base;
  for (const Segment& segment : image.segments()) {
    if (segment.address <= round_up(end, page_size)) {
      end = segment.address + segment.file_size;
    }
  }
  populate(memory, first_directory_address, end);
  if (auto error = load_image(source.image, image, memory)) {
    return error;
  }
  build_system_page(*reinterpret_cast<SystemPage*>(memory.at(system_page_address, page_size)));
  const std::uint64_t mapped_end =
      source.has_memory_on_demand ? extent_of(memory, layout.heap - 1)->end : memory.end();
  build_page_tables(memory, mapped_end, layout.guard, source.has_huge_pages);
  if (auto error = write_boot_info(source, memory, layout)) {
    return error;
  }
  write_arguments(source, memory, layout);
  if (source.input_size > 0) {
    if (auto error = read_exactly(source.input, 0, memory.at(layout.input, source.input_size),
                                  source.input_size)) {
      return error;
    }
  }

  // As after a call: the return address is the 8 bytes of zeros below the alignment.
  entry = {image.entry, layout.boot_info - 8, layout.boot_info, mapped_end};
  return {};
}

kvm_regs entry_registers(const Entry& entry) {
  kvm_regs regs{};
  regs.rip = entry.rip;
  regs.rsp = entry.rsp;
  regs.rdi = entry.boot_info;
  regs.rflags = 2; // the bit that is always set; interrupts off, IOPL 0
  return regs;
}

kvm_sregs entry_system_registers(std::uint32_t cpl, bool is_amd) {
  const auto dpl = static_cast<std::uint8_t>(cpl);
  kvm_segment code{};
  code.limit = 0xffffffff;
  code.selector =
      static_cast<std::uint16_t>(cpl == 3 ? user_code_selector | 3 : kernel_code_selector);
  code.type = 11; // executable, readable, accessed
  code.present = 1;
  code.dpl = dpl;
  code.s = 1;
  code.l = 1;
  code.g = 1;

  kvm_segment data = code;
  data.selector =
      static_cast<std::uint16_t>(cpl == 3 ? user_data_selector | 3 : kernel_data_selector);
  data.type = 3; // writable, accessed
  data.l = 0;
  data.db = 1;

  kvm_sregs sregs{};
  sregs.cs = code;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
  sregs.tr.base = task_address;
  sregs.tr.limit = task_limit;
  sregs.tr.selector = task_selector;
  // Busy, as Intel's processors demand. AMD's take either, and QEMU's emulation of them
  // finds I/O permissions only in one that is not.
  sregs.tr.type = is_amd ? 9 : 11;
  sregs.tr.present = 1;
  sregs.ldt.type = 2;
  sregs.ldt.unusable = 1;
  sregs.gdt.base = gdt_address;
  sregs.gdt.limit = sizeof(SystemPage::gdt) - 1;
  sregs.idt.base = idt_address;
  sregs.idt.limit = sizeof(SystemPage::idt) - 1;

  sregs.cr0 = 0x80010033; // PG, WP, NE, ET, MP, PE
  sregs.cr3 = pml4_address;
  sregs.cr4 = 0x620;  // OSXMMEXCPT, OSFXSR, PAE
  sregs.efer = 0x500; // LMA, LME; not SCE, so that SYSCALL is #UD
  // Enabled and on the bootstrap processor, as after reset: switching a local APIC off
  // or on toggles a static key of the host's kernel.
  sregs.apic_base = 0xfee00900;
  return sregs;
}

void return_from_exception(const ExceptionFrame& frame, bool is_amd, kvm_regs& regs,
                           kvm_sregs& sregs) {
  regs.rip = frame.rip;
  regs.rsp = frame.rsp;
  regs.rflags = frame.rflags;
  // The frame has their selectors: there are no others that it could run with. KVM says of an
  // AMD's task that it is busy, also where it is not.
  const kvm_sregs entry = entry_system_registers(3, is_amd);
  sregs.cs = entry.cs;
  sregs.ss = entry.ss;
  sregs.tr = entry.tr;
}

} // namespace casemate::machine
