#include "machine/linux.hpp"

#include "machine/acpi.hpp"
#include "machine/kernel.hpp"
#include "machine/power.hpp"
#include "sys/fd.hpp"
#include "sys/mapping.hpp"
#include "test/files.hpp"
#include "test/unit.hpp"

#include <asm/bootparam.h>
#include <elf.h>

#include <array>
#include <cstring>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>
#include <vector>

using namespace casemate;
using namespace casemate::machine;
using unit::file_of;

namespace {

constexpr std::uint64_t mib = 1 << 20;
constexpr std::uint64_t gib = 1 << 30;
constexpr std::uint64_t kernel_at = 16 * mib;
constexpr std::uint64_t kernel_end = kernel_at + 2 * mib;

struct Kernel {
  Elf64_Ehdr header{};
  Elf64_Phdr segment{};
  char code[8] = "kernel!";

  Kernel() {
    header = unit::elf_header(kernel_at + 4, offsetof(Kernel, segment), 1);
    segment = {PT_LOAD, PF_R | PF_X, offsetof(Kernel, code), kernel_at, kernel_at, sizeof(code),
               2 * mib, 4096};
  }
};

/// A guest that has been loaded, or not.
struct Guest {
  explicit Guest(std::uint64_t memory_size, const std::string& initrd = "the initrd",
                 const std::string& command_line = "console=ttyS0", std::uint32_t vcpu_count = 1)
      : mapping(sys::Mapping::map(memory_size, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
                    .value()),
        memory(mapping.data(), memory_size) {
    const Kernel image;
    const sys::Fd kernel = file_of(&image, sizeof image);
    const sys::Fd ramdisk = file_of(initrd.data(), initrd.size());
    LinuxSource source;
    source.kernel = kernel.get();
    source.kernel_size = sizeof image;
    const File initrds[] = {{ramdisk.get(), initrd.size()}};
    source.initrds = initrds;
    source.command_line = std::as_bytes(std::span(command_line.c_str(), command_line.size() + 1));
    source.vcpu_count = vcpu_count;
    error = load_linux(source, memory, entry);
    registers = linux_registers(BootProtocol::Linux, entry);
    memory.read(registers.rsi, zero_page);
  }

  std::string text(std::uint64_t address, std::size_t size) const {
    const std::byte* at = memory.at(address, size);
    return at == nullptr ? "outside of RAM" : std::string(reinterpret_cast<const char*>(at), size);
  }

  sys::Mapping mapping;
  GuestMemory memory;
  std::uint64_t entry = 0;
  ImageError error;
  kvm_regs registers{};
  boot_params zero_page{};
};

struct Range {
  std::uint64_t start;
  std::uint64_t end;
  bool operator==(const Range&) const = default;
};

std::vector<Range> ram_of(const boot_params& zero_page) {
  std::vector<Range> ranges;
  for (const boot_e820_entry& each :
       std::span(zero_page.e820_table).first(zero_page.e820_entries)) {
    if (each.type == 1) {
      ranges.push_back({each.addr, each.addr + each.size});
    }
  }
  return ranges;
}

/// As the processor would; -1 where nothing is mapped.
std::uint64_t translate(const GuestMemory& memory, std::uint64_t cr3, std::uint64_t address) {
  std::uint64_t table = cr3;
  for (int shift = 39; shift >= 12; shift -= 9) {
    std::uint64_t entry = 0;
    if (!memory.read(table + 8 * (address >> shift & 511), entry) || (entry & 3) != 3) {
      return -1ull;
    }
    const std::uint64_t size = 1ull << shift;
    if ((entry & 0x80) != 0) {
      return (entry & 0x000ffffffffff000) | (address & (size - 1));
    }
    table = entry & 0x000ffffffffff000;
  }
  return -1ull;
}

std::uint8_t sum(const Guest& guest, std::uint64_t address, std::size_t size) {
  std::uint8_t total = 0;
  for (const char byte : guest.text(address, size)) {
    total = static_cast<std::uint8_t>(total + byte);
  }
  return total;
}

std::uint32_t word(const Guest& guest, std::uint64_t address) {
  std::uint32_t value = 0;
  CHECK(guest.memory.read(address, value));
  return value;
}

std::uint64_t address_in(const Guest& guest, std::uint64_t address) {
  std::uint64_t value = 0;
  CHECK(guest.memory.read(address, value));
  return value;
}

/// The table of this signature among those that the root pointer leads to, checked.
std::string table(const Guest& guest, const std::string& signature) {
  const std::uint64_t root = guest.zero_page.acpi_rsdp_addr;
  const std::uint64_t xsdt = address_in(guest, root + 24);
  for (std::uint64_t at = xsdt + 36; at < xsdt + word(guest, xsdt + 4); at += 8) {
    std::uint64_t address = address_in(guest, at);
    if (signature == "DSDT" && guest.text(address, 4) == "FACP") {
      address = address_in(guest, address + 140);
    }
    if (guest.text(address, 4) == signature) {
      const std::uint32_t size = word(guest, address + 4);
      CHECK_EQ(sum(guest, address, size), 0);
      return guest.text(address, size);
    }
  }
  return "";
}

} // namespace

TEST("a Linux guest starts at its kernel's entry, in 64-bit mode, with its zero page") {
  const Guest guest(64 * mib);
  REQUIRE(!guest.error);
  CHECK_EQ(guest.registers.rip, kernel_at + 4);
  CHECK_EQ(guest.registers.rflags, 2u);
  CHECK_EQ(guest.text(kernel_at, 7), "kernel!");
  const kvm_sregs sregs = linux_system_registers(BootProtocol::Linux);
  CHECK_EQ(sregs.cs.selector, 0x10);
  CHECK_EQ(sregs.ds.selector, 0x18);
  CHECK_EQ(sregs.cs.l, 1);
  CHECK_EQ(sregs.efer, 0x500u);
  const setup_header& header = guest.zero_page.hdr;
  CHECK_EQ(header.boot_flag, 0xaa55);
  CHECK_EQ(std::string(reinterpret_cast<const char*>(&header.header), 4), "HdrS");
  CHECK_EQ(header.type_of_loader, 0xff);
  // A kernel clears what it has of the zero page where this is set.
  CHECK_EQ(guest.zero_page.sentinel, 0);
}

TEST("a kernel's descriptors are those of its registers") {
  const Guest guest(64 * mib);
  const kvm_sregs sregs = linux_system_registers(BootProtocol::Linux);
  std::uint64_t code = 0;
  std::uint64_t data = 0;
  std::uint64_t task = 0;
  CHECK(guest.memory.read(sregs.gdt.base + sregs.cs.selector, code));
  CHECK(guest.memory.read(sregs.gdt.base + sregs.ds.selector, data));
  CHECK(guest.memory.read(sregs.gdt.base + sregs.tr.selector, task));
  CHECK_EQ(code, 0x00af9b000000ffffu);
  CHECK_EQ(data, 0x00cf93000000ffffu);
  CHECK_EQ(task >> 40 & 0x9f, 0x8bu);
  CHECK(sregs.tr.selector + 7 <= sregs.gdt.limit);
}

TEST("a kernel is told its command line") {
  const std::string longest(CASEMATE_MAX_COMMAND_LINE - 1, 'x');
  for (const std::string& line : {std::string("root=/dev/vda"), std::string(), longest}) {
    const Guest guest(64 * mib, "initrd", line);
    const setup_header& header = guest.zero_page.hdr;
    CHECK_EQ(header.cmdline_size, line.size());
    CHECK_EQ(guest.text(header.cmd_line_ptr, line.size() + 1), line + '\0');
  }
}

TEST("an initrd lies in low memory behind the kernel, as high as kernels take it") {
  for (const std::uint64_t size : {32 * mib, 2 * gib, 3 * gib, 6 * gib}) {
    const Guest guest(size);
    REQUIRE(!guest.error);
    const setup_header& header = guest.zero_page.hdr;
    CHECK_EQ(header.ramdisk_size, 10u);
    CHECK_EQ(guest.text(header.ramdisk_image, 10), "the initrd");
    CHECK_EQ(header.ramdisk_image, std::min(size, 2 * gib) - 4096);
  }
}

TEST("a kernel without an initrd has none") {
  const Guest guest(64 * mib, "");
  CHECK(!guest.error);
  CHECK_EQ(guest.zero_page.hdr.ramdisk_image, 0u);
  CHECK_EQ(guest.zero_page.hdr.ramdisk_size, 0u);
}

TEST("an initrd that does not fit behind its kernel is refused") {
  const std::string fits(32 * mib - kernel_end, 'i');
  CHECK(!Guest(32 * mib, fits).error);
  CHECK_EQ(Guest(32 * mib, fits + 'i').error.reason, std::uint32_t{CASEMATE_IMAGE_INITRD_TOO_BIG});
  CHECK_EQ(Guest(32 * mib, std::string(40 * mib, 'i')).error.reason,
           std::uint32_t{CASEMATE_IMAGE_INITRD_TOO_BIG});
}

TEST("a kernel that does not fit into its memory is refused") {
  CHECK_EQ(Guest(16 * mib).error.reason, std::uint32_t{CASEMATE_IMAGE_KERNEL_OUTSIDE_RAM});
}

TEST("an initrd that is shorter than it was is refused") {
  const Kernel image;
  const sys::Fd kernel = file_of(&image, sizeof image);
  const sys::Fd initrd = file_of("short", 5);
  auto mapping = sys::Mapping::map(32 * mib, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  const GuestMemory memory(mapping.value().data(), 32 * mib);
  LinuxSource source;
  source.kernel = kernel.get();
  source.kernel_size = sizeof image;
  const File initrds[] = {{initrd.get(), 6}};
  source.initrds = initrds;
  const std::byte command_line[1]{};
  source.command_line = command_line;
  std::uint64_t entry = 0;
  CHECK_EQ(load_linux(source, memory, entry).reason, std::uint32_t{CASEMATE_IMAGE_TRUNCATED});
}

TEST("of several initrds one is behind the other, each at a multiple of four") {
  const Kernel image;
  const sys::Fd kernel = file_of(&image, sizeof image);
  const sys::Fd first = file_of("first", 5);
  const sys::Fd second = file_of("the second.", 11);
  const sys::Fd third = file_of("3rd", 3);
  auto mapping = sys::Mapping::map(32 * mib, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  const GuestMemory memory(mapping.value().data(), 32 * mib);
  LinuxSource source;
  source.kernel = kernel.get();
  source.kernel_size = sizeof image;
  std::array<File, 3> initrds{{{first.get(), 5}, {second.get(), 11}, {third.get(), 3}}};
  source.initrds = initrds;
  const std::byte command_line[1]{};
  source.command_line = command_line;
  std::uint64_t entry = 0;
  REQUIRE(!load_linux(source, memory, entry));
  boot_params zero_page{};
  memory.read(linux_registers(BootProtocol::Linux, entry).rsi, zero_page);
  const setup_header& header = zero_page.hdr;
  REQUIRE(header.ramdisk_size == 23);
  const std::byte* at = memory.at(header.ramdisk_image, 23);
  REQUIRE(at != nullptr);
  CHECK(std::memcmp(at, "first\0\0\0the second.\0003rd", 23) == 0);

  // None of them may be the one too many, whatever the size that it claims.
  for (File& file : initrds) {
    for (const std::uint64_t size : {16 * mib, 1ul << 63, ~0ul}) {
      const File kept = std::exchange(file, {file.descriptor, size});
      CHECK_EQ(load_linux(source, memory, entry).reason,
               std::uint32_t{CASEMATE_IMAGE_INITRD_TOO_BIG});
      file = kept;
    }
  }
}

TEST("a kernel is told all of its memory, and none that is not") {
  const Range low{0, 0x9fc00};
  CHECK(ram_of(Guest(64 * mib).zero_page) == (std::vector<Range>{low, {mib, 64 * mib}}));
  CHECK(ram_of(Guest(3 * gib).zero_page) == (std::vector<Range>{low, {mib, 3 * gib}}));
  CHECK(ram_of(Guest(5 * gib).zero_page) ==
        (std::vector<Range>{low, {mib, 3 * gib}, {4 * gib, 6 * gib}}));
}

TEST("a kernel gets a random seed, of its own at each start") {
  const auto seed_of = [](const Guest& guest) {
    const std::uint64_t address = guest.zero_page.hdr.setup_data;
    CHECK_EQ(address_in(guest, address), 0u); // the last of its kind
    CHECK_EQ(word(guest, address + 8), 9u);   // SETUP_RNG_SEED
    return guest.text(address + 16, word(guest, address + 12));
  };
  const std::string one = seed_of(Guest(64 * mib));
  CHECK_EQ(one.size(), 64u);
  CHECK(one != seed_of(Guest(64 * mib)));
}

TEST("a kernel's first page tables map all of low memory to itself, and no more") {
  for (const std::uint64_t size : {32 * mib, gib + 2 * mib, 6 * gib}) {
    const Guest guest(size);
    const std::uint64_t cr3 = linux_system_registers(BootProtocol::Linux).cr3;
    const std::uint64_t end = guest.memory.low_size();
    for (const std::uint64_t address : {std::uint64_t{0}, kernel_at, end / 2, end - 1}) {
      CHECK_EQ(translate(guest.memory, cr3, address), address);
    }
    CHECK_EQ(translate(guest.memory, cr3, end), -1ull);
    CHECK_EQ(translate(guest.memory, cr3, 1ull << 39), -1ull);
  }
}

TEST("ACPI's root pointer is where kernels look for it, and sums up") {
  const Guest guest(64 * mib);
  const std::uint64_t root = guest.zero_page.acpi_rsdp_addr;
  CHECK_EQ(root, 0xe0000u);
  CHECK_EQ(guest.text(root, 8), "RSD PTR ");
  CHECK_EQ(sum(guest, root, 20), 0);
  CHECK_EQ(sum(guest, root, 36), 0);
  const std::uint64_t xsdt = address_in(guest, root + 24);
  CHECK_EQ(guest.text(xsdt, 4), "XSDT");
  CHECK_EQ(sum(guest, xsdt, word(guest, xsdt + 4)), 0);
}

TEST("ACPI is hardware-reduced, and has registers to sleep and to restart with") {
  const std::string fixed = table(Guest(64 * mib), "FACP");
  REQUIRE(fixed.size() == 276);
  CHECK((fixed[112 + 2] & 0x10) != 0); // HW_REDUCED_ACPI
  CHECK((fixed[112 + 1] & 0x04) != 0); // RESET_REG_SUP
  const auto port = [&](std::size_t at) {
    return static_cast<std::uint8_t>(fixed[at + 4]) | static_cast<std::uint8_t>(fixed[at + 5]) << 8;
  };
  CHECK_EQ(port(116), int{reset_port});
  CHECK_EQ(static_cast<std::uint8_t>(fixed[128]), reset_value);
  CHECK_EQ(port(244), int{sleep_control_port});
  CHECK_EQ(port(256), int{sleep_status_port});
}

TEST("ACPI has a local APIC for each vCPU, and the I/O APIC") {
  for (const std::uint32_t vcpus : {1u, 32u}) {
    const std::string apics = table(Guest(64 * mib, "initrd", "", vcpus), "APIC");
    REQUIRE(apics.size() == 44 + 8 * vcpus + 12);
    for (std::uint32_t i = 0; i < vcpus; ++i) {
      CHECK_EQ(apics.substr(44 + 8 * i, 4), std::string({0, 8, char(i), char(i)}));
    }
    CHECK_EQ(apics.substr(44 + 8 * vcpus, 2), std::string({1, 12}));
  }
}

TEST("ACPI names the serial port, pvpanic, and how to switch off") {
  const std::string devices = table(Guest(64 * mib), "DSDT");
  CHECK(devices.find("_S5_") != std::string::npos);
  CHECK(devices.find("COM1") != std::string::npos);
  CHECK(devices.find("QEMU0001") != std::string::npos);
}

TEST("ACPI names each virtio device, with its window and its pin") {
  const Guest guest(64 * mib);
  write_acpi_tables(guest.memory, 32, 16);
  const std::string devices = table(guest, "DSDT");
  for (std::uint32_t i = 0; i < 16; ++i) {
    const std::size_t at = devices.find(std::string("VIO") + char('A' + i));
    REQUIRE(at != std::string::npos);
    const std::string device = devices.substr(at, 64);
    CHECK(device.find("LNRO0005") != std::string::npos);
    const std::uint32_t window[] = {0xd0000000 + 0x1000 * i, 0x1000};
    CHECK(device.find(std::string(reinterpret_cast<const char*>(window), 8)) != std::string::npos);
    CHECK(device.find(std::string({char(0x89), 6, 0, 3, 1, char(5 + i), 0, 0, 0})) !=
          std::string::npos);
  }
}

TEST("the reset vector writes to the reset register") {
  const Guest guest(64 * mib);
  const std::string code = guest.text(0xffff0, 9);
  CHECK_EQ(code.substr(0, 3), std::string("\xba\xf9\x0c"));
  CHECK_EQ(code.substr(3, 3), std::string("\xb0\x06\xee"));
}

namespace {

/// A kernel with the note that PVH wants, and what it finds.
struct PvhGuest {
  explicit PvhGuest(std::uint64_t memory_size, std::uint64_t initrd_size)
      : mapping(sys::Mapping::map(memory_size, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
                    .value()),
        memory(mapping.data(), memory_size) {
    struct {
      Elf64_Ehdr header;
      Elf64_Phdr segments[2];
      std::uint32_t note[6] = {4, 4, 18, 0, kernel_at + 2, 0};
    } image;
    const Kernel kernel;
    image.header = kernel.header;
    image.header.e_phnum = 2;
    image.segments[0] = kernel.segment;
    image.segments[0].p_filesz = 0;
    image.segments[1] = {PT_NOTE, PF_R, sizeof image - sizeof image.note, 0, 0, 20, 20, 4};
    std::memcpy(&image.note[3], "Xen", 4);
    const sys::Fd file = file_of(&image, sizeof image);
    const std::string initrd(initrd_size, 'i');
    const sys::Fd ramdisk = file_of(initrd.data(), initrd.size());
    LinuxSource source;
    source.protocol = BootProtocol::Pvh;
    source.kernel = file.get();
    source.kernel_size = sizeof image;
    const File initrds[] = {{ramdisk.get(), initrd_size}};
    source.initrds = initrds;
    source.command_line = std::as_bytes(std::span("quiet"));
    CHECK(!load_linux(source, memory, entry));
    memory.read(linux_registers(BootProtocol::Pvh, entry).rbx, info);
  }

  sys::Mapping mapping;
  GuestMemory memory;
  std::uint64_t entry = 0;
  struct {
    std::uint32_t magic, version, flags, module_count;
    std::uint64_t modules, command_line, rsdp, memory_map;
    std::uint32_t memory_map_size, reserved;
  } info{};
};

} // namespace

TEST("by PVH a guest starts in 32-bit mode without paging, with its start info") {
  const PvhGuest guest(64 * mib, 10);
  CHECK_EQ(guest.entry, kernel_at + 2);
  const kvm_sregs sregs = linux_system_registers(BootProtocol::Pvh);
  CHECK_EQ(sregs.cr0, 0x11u);
  CHECK_EQ(sregs.efer, 0u);
  CHECK_EQ(sregs.cs.db, 1);
  CHECK_EQ(sregs.cs.l, 0);
  CHECK_EQ(guest.info.magic, 0x336ec578u);
  CHECK_EQ(guest.info.version, 1u);
  CHECK_EQ(guest.info.rsdp, 0xe0000u);
  CHECK(std::memcmp(guest.memory.at(guest.info.command_line, 6), "quiet", 6) == 0);
}

TEST("by PVH a guest finds its initrd, or none") {
  const PvhGuest guest(64 * mib, 10);
  REQUIRE(guest.info.module_count == 1);
  std::uint64_t initrd[2]{};
  CHECK(guest.memory.read(guest.info.modules, initrd));
  CHECK_EQ(initrd[0], 64 * mib - 4096);
  CHECK_EQ(initrd[1], 10u);
  CHECK_EQ(PvhGuest(64 * mib, 0).info.module_count, 0u);
}

TEST("by PVH a guest is told all of its memory") {
  for (const std::uint64_t size : {64 * mib, 5 * gib}) {
    const PvhGuest guest(size, 0);
    std::uint64_t ram = 0;
    for (std::uint32_t i = 0; i < guest.info.memory_map_size; ++i) {
      std::uint64_t range[3]{};
      CHECK(guest.memory.read(guest.info.memory_map + 24 * i, range));
      if (range[2] == 1) {
        CHECK(guest.memory.at(range[0], range[1]) != nullptr);
        ram += range[1];
      }
    }
    CHECK_EQ(ram, size - mib + 0x9fc00);
  }
}
