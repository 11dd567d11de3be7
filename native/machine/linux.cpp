#include "machine/linux.hpp"

#include "machine/acpi.hpp"
#include "machine/layout.hpp"
#include "machine/power.hpp"
#include "sys/syscall.hpp"

#include <asm/bootparam.h>
#include <linux/mman.h>

#include <array>
#include <cstddef>
#include <cstring>

namespace casemate::machine {

namespace {

// Where things are below 1 MiB.
constexpr std::uint64_t boot_gdt_address = 0x500;
constexpr std::uint64_t start_info_address = 0x6000;
constexpr std::uint64_t zero_page_address = 0x7000;
constexpr std::uint64_t stack_top = 0x9000;
constexpr std::uint64_t boot_pml4_address = 0x9000;
constexpr std::uint64_t boot_pdpt_address = 0xa000;
constexpr std::uint64_t directories_address = 0xb000; // one for each gigabyte below the hole
constexpr std::uint64_t seed_address = 0x1f000;
constexpr std::uint64_t command_line_address = 0x20000;
constexpr std::uint64_t reset_vector_address = 0xffff0;
/// RAM ends here for a kernel: above were the firmware's data and the adapters.
constexpr std::uint64_t low_ram_end = 0x9fc00;

/// What every kernel takes as the place of an initrd ends here.
constexpr std::uint64_t initrd_limit = 0x80000000;

constexpr std::uint16_t boot_code_selector = 0x10; // by the protocol, as the next one
constexpr std::uint16_t boot_data_selector = 0x18;
constexpr std::uint16_t boot_task_selector = 0x20;

constexpr std::uint32_t e820_ram = 1;
constexpr std::uint32_t e820_acpi = 3;

/// struct setup_data, with the kernel's generator's first seed: what it has of entropy
/// before any interrupt. The kernel wipes it out.
struct RandomSeed {
  std::uint64_t next = 0;
  std::uint32_t type = 9; // SETUP_RNG_SEED
  std::uint32_t length = sizeof bytes;
  std::byte bytes[64];
};
static_assert(sizeof(RandomSeed) == 80);

sys::SysError write_seed(const GuestMemory& memory) {
  RandomSeed seed;
  // Up to 256 bytes come whole or not at all.
  const long count = sys::call_retry(__NR_getrandom, seed.bytes, sizeof seed.bytes, 0);
  if (count != sizeof seed.bytes) {
    return {"getrandom", count < 0 ? static_cast<int>(-count) : 5 /* EIO */};
  }
  memory.write(seed_address, seed);
  return {};
}

/// Where all initrds are, as one.
struct Initrd {
  std::uint64_t address = 0;
  std::uint64_t size = 0; // 0: there is none
};

/// Kernels take one archive behind another, each at a multiple of four, and skip zeroes.
constexpr std::uint64_t initrd_alignment = 4;

/// Reads them to as high as may be: kernels want what follows on them for themselves.
ImageError load_initrds(const LinuxSource& source, const Image& kernel, const GuestMemory& memory,
                        Initrd& initrd) {
  const std::uint64_t limit = std::min(memory.low_size(), initrd_limit);
  const ImageError too_big{CASEMATE_IMAGE_INITRD_TOO_BIG};
  for (const File& file : source.initrds) {
    initrd.size = round_up(initrd.size, initrd_alignment);
    if (file.size > limit - initrd.size) {
      return too_big;
    }
    initrd.size += file.size;
  }
  initrd.address = (limit - initrd.size) / page_size * page_size;
  if (initrd.size > 0 && initrd.address < kernel.end) {
    return too_big;
  }
  std::uint64_t at = initrd.address;
  for (const File& file : source.initrds) {
    at = round_up(at, initrd_alignment);
    if (auto error = read_exactly(file.descriptor, 0, memory.at(at, file.size), file.size)) {
      return error;
    }
    at += file.size;
  }
  return {};
}

/// RAM and ACPI, as the kernel is told of them; an entry of PVH's memory map.
struct Range {
  std::uint64_t start = 0;
  std::uint64_t size = 0;
  std::uint32_t type = 0;
  std::uint32_t reserved = 0;
};
static_assert(sizeof(Range) == 24);

std::array<Range, 4> memory_map(const GuestMemory& memory) {
  return {{
      {0, low_ram_end, e820_ram},
      {acpi_address, acpi_size, e820_acpi},
      {kernel_base, memory.low_size() - kernel_base, e820_ram},
      {GuestMemory::hole_end, memory.high_size(), e820_ram}, // empty, where there is none
  }};
}

void write_zero_page(const LinuxSource& source, const GuestMemory& memory, const Initrd& initrd) {
  boot_params zero_page{};
  zero_page.acpi_rsdp_addr = acpi_address;
  setup_header& header = zero_page.hdr;
  header.boot_flag = 0xaa55;
  header.header = 0x53726448; // "HdrS"
  header.version = 0x020f;
  header.type_of_loader = 0xff; // none that has a number
  header.loadflags = LOADED_HIGH;
  header.kernel_alignment = large_page_size;
  header.cmd_line_ptr = command_line_address;
  header.cmdline_size = static_cast<std::uint32_t>(source.command_line.size() - 1);
  header.ramdisk_image = initrd.size > 0 ? static_cast<std::uint32_t>(initrd.address) : 0;
  header.ramdisk_size = static_cast<std::uint32_t>(initrd.size);
  header.setup_data = seed_address;
  for (const Range& range : memory_map(memory)) {
    if (range.size > 0) {
      zero_page.e820_table[zero_page.e820_entries++] = {range.start, range.size, range.type};
    }
  }
  memory.write(zero_page_address, zero_page);
}

/// struct hvm_start_info, with the one module and the memory map that it points to.
struct StartInfo {
  std::uint32_t magic = 0x336ec578;
  std::uint32_t version = 1;
  std::uint32_t flags = 0;
  std::uint32_t module_count = 0;
  std::uint64_t modules = start_info_address + sizeof(std::uint64_t[7]);
  std::uint64_t command_line = command_line_address;
  std::uint64_t rsdp = acpi_address;
  std::uint64_t memory_map = modules + sizeof(std::uint64_t[4]);
  std::uint32_t memory_map_size = 0;
  std::uint32_t reserved = 0;
  std::uint64_t initrd = 0; // the module
  std::uint64_t initrd_size = 0;
  std::uint64_t module_command_line = 0;
  std::uint64_t module_reserved = 0;
  std::array<Range, 4> ranges{};
};
static_assert(offsetof(StartInfo, initrd) == sizeof(std::uint64_t[7]));
static_assert(offsetof(StartInfo, ranges) == sizeof(std::uint64_t[11]));

void write_start_info(const GuestMemory& memory, const Initrd& initrd) {
  StartInfo info;
  info.module_count = initrd.size > 0 ? 1 : 0;
  info.initrd = initrd.address;
  info.initrd_size = initrd.size;
  info.ranges = memory_map(memory);
  info.memory_map_size = memory.high_size() > 0 ? 4 : 3;
  memory.write(start_info_address, info);
}

void write_descriptors(const GuestMemory& memory, BootProtocol protocol) {
  memory.write<std::uint64_t>(boot_gdt_address + boot_code_selector, protocol == BootProtocol::Linux
                                                                         ? 0x00af9b000000ffff
                                                                         : 0x00cf9b000000ffff);
  memory.write<std::uint64_t>(boot_gdt_address + boot_data_selector, 0x00cf93000000ffff);
  memory.write<std::uint64_t>(boot_gdt_address + boot_task_selector, 0x00008b0000000067);
}

/// What kernels jump to, back in real mode, when they know of no better way to restart a
/// machine; one whose ACPI is hardware-reduced tries nothing else before.
void write_reset_vector(const GuestMemory& memory) {
  constexpr std::array<std::uint8_t, 9> code{
      0xba,
      reset_port & 0xff,
      reset_port >> 8, // mov $reset_port, %dx
      0xb0,
      reset_value, // mov $reset_value, %al
      0xee,        // out %al, (%dx)
      0xf4,
      0xeb,
      0xfd, // hlt; jmp back to it
  };
  memory.write(reset_vector_address, code);
}

/// Maps all low RAM to itself.
void write_page_tables(const GuestMemory& memory) {
  constexpr std::uint64_t table = 1u << 0 | 1u << 1 | 1u << 5; // present, writable, accessed
  constexpr std::uint64_t page = table | 1u << 6 | 1u << 7;    // dirty, large
  memory.write(boot_pml4_address, boot_pdpt_address | table);
  for (std::uint64_t at = 0; at < memory.low_size(); at += large_page_size) {
    const std::uint64_t directory = directories_address + at / huge_page_size * page_size;
    memory.write(boot_pdpt_address + at / huge_page_size * 8, directory | table);
    memory.write(directory + at % huge_page_size / large_page_size * 8, at | page);
  }
}

} // namespace

ImageError load_linux(const LinuxSource& source, const GuestMemory& memory, std::uint64_t& entry) {
  Image kernel;
  if (auto error =
          parse_kernel(source.kernel, source.kernel_size, source.protocol, memory, kernel)) {
    return error;
  }
  // A kernel touches most of what it has: also where the host hands out huge pages only to
  // those that ask. Where it has none to give, all is as well.
  sys::call(__NR_madvise, memory.base(), memory.size(), MADV_HUGEPAGE);
  Initrd initrd;
  if (auto error = load_initrds(source, kernel, memory, initrd)) {
    return error;
  }
  if (auto error = load_image(source.kernel, kernel, memory)) {
    return error;
  }
  std::memcpy(memory.at(command_line_address, source.command_line.size()),
              source.command_line.data(), source.command_line.size());
  if (source.protocol == BootProtocol::Linux) {
    if (const auto error = write_seed(memory)) {
      return {0, error};
    }
    write_zero_page(source, memory, initrd);
    write_page_tables(memory);
  } else {
    write_start_info(memory, initrd);
  }
  write_descriptors(memory, source.protocol);
  write_acpi_tables(memory, source.vcpu_count, source.device_count);
  write_reset_vector(memory);
  entry = kernel.entry;
  return {};
}

kvm_regs linux_registers(BootProtocol protocol, std::uint64_t entry) {
  kvm_regs regs{};
  regs.rip = entry;
  regs.rsi = protocol == BootProtocol::Linux ? zero_page_address : 0;
  regs.rbx = protocol == BootProtocol::Linux ? 0 : start_info_address;
  regs.rsp = stack_top;
  regs.rflags = 2; // the bit that is always set
  return regs;
}

kvm_sregs linux_system_registers(BootProtocol protocol) {
  const bool is_64_bit = protocol == BootProtocol::Linux;
  kvm_segment code{};
  code.limit = 0xffffffff;
  code.selector = boot_code_selector;
  code.type = 11; // executable, readable, accessed
  code.present = 1;
  code.s = 1;
  code.l = is_64_bit ? 1 : 0;
  code.db = is_64_bit ? 0 : 1;
  code.g = 1;

  kvm_segment data = code;
  data.selector = boot_data_selector;
  data.type = 3; // writable, accessed
  data.l = 0;
  data.db = 1;

  kvm_sregs sregs{};
  sregs.cs = code;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
  sregs.tr.limit = 0x67;
  sregs.tr.selector = boot_task_selector;
  sregs.tr.type = 11; // busy, as Intel's processors demand
  sregs.tr.present = 1;
  sregs.ldt.type = 2;
  sregs.ldt.unusable = 1;
  sregs.gdt.base = boot_gdt_address;
  sregs.gdt.limit = boot_task_selector + 7;
  sregs.cr0 = 0x11; // ET, PE
  if (is_64_bit) {
    sregs.cr0 |= 0x80000000; // PG
    sregs.cr3 = boot_pml4_address;
    sregs.cr4 = 0x20;   // PAE
    sregs.efer = 0x500; // LMA, LME
  }
  // Enabled and on the bootstrap processor, as after reset.
  sregs.apic_base = 0xfee00900;
  return sregs;
}

} // namespace casemate::machine
