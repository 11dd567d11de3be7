#include "machine/kernel.hpp"
#include "sys/fd.hpp"
#include "sys/mapping.hpp"
#include "test/files.hpp"
#include "test/unit.hpp"

#include <elf.h>

#include <cstring>
#include <functional>
#include <sys/mman.h>
#include <unistd.h>

using namespace casemate;
using machine::BootProtocol;
using machine::GuestMemory;
using machine::Image;
using machine::ImageError;
using unit::file_of;

namespace {

constexpr std::uint64_t ram = 64 << 20;
constexpr std::uint64_t code_address = 16 << 20;
constexpr std::uint64_t data_address = 32 << 20;
constexpr std::uint64_t virtual_base = 0xffffffff80000000;

/// Two segments, linked high and placed low, as kernels are; the code in the second one.
struct Kernel {
  Elf64_Ehdr header{};
  Elf64_Phdr segments[2]{};
  std::byte padding[0x200];
  std::byte code[16];
  std::byte data[8];

  Kernel() {
    header = unit::elf_header(code_address + 1, offsetof(Kernel, segments), 2);
    segments[0] = place(PF_R | PF_W, offsetof(Kernel, data), data_address, 8, 4096);
    segments[1] = place(PF_R | PF_X, offsetof(Kernel, code), code_address, 16, 16);
    std::memset(padding, 0, sizeof padding);
    std::memset(code, 0xcc, sizeof code);
    std::memset(data, 0xdd, sizeof data);
  }

  static Elf64_Phdr place(std::uint32_t flags, std::uint64_t offset, std::uint64_t address,
                          std::uint64_t file_size, std::uint64_t memory_size) {
    return {PT_LOAD, flags, offset, virtual_base + address, address, file_size, memory_size, 4096};
  }
};

std::uint32_t parse(const void* bytes, std::size_t size, Image& kernel,
                    std::uint64_t memory_size = ram, BootProtocol protocol = BootProtocol::Linux) {
  const sys::Fd file = file_of(bytes, size);
  const GuestMemory memory(nullptr, memory_size); // parse_kernel() touches none
  const ImageError error = machine::parse_kernel(file.get(), size, protocol, memory, kernel);
  CHECK(!error.system);
  return error.reason;
}

std::uint32_t reason_of(const std::function<void(Kernel&)>& change,
                        std::uint64_t memory_size = ram) {
  Kernel kernel;
  change(kernel);
  Image image;
  return parse(&kernel, sizeof kernel, image, memory_size);
}

constexpr std::uint32_t code(casemate_image_error error) { return error; }

} // namespace

TEST("a kernel is placed by the physical addresses of its segments, in whatever order") {
  const Kernel kernel;
  const sys::Fd file = file_of(&kernel, sizeof kernel);
  auto mapped = sys::Mapping::map(ram, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  REQUIRE(mapped.ok());
  const GuestMemory memory(mapped.value().data(), ram);
  Image image;
  REQUIRE(!machine::parse_kernel(file.get(), sizeof kernel, BootProtocol::Linux, memory, image));
  CHECK_EQ(image.entry, code_address + 1);
  CHECK_EQ(image.end, data_address + 4096);
  CHECK_EQ(image.segments().size(), 2u);
  REQUIRE(!machine::load_image(file.get(), image, memory));
  CHECK(std::memcmp(memory.at(code_address, 16), kernel.code, 16) == 0);
  CHECK(std::memcmp(memory.at(data_address, 8), kernel.data, 8) == 0);
  const std::byte zeros[4088]{};
  CHECK(std::memcmp(memory.at(data_address + 8, 4088), zeros, 4088) == 0);
}

TEST("a kernel cut off at any byte is refused") {
  const Kernel kernel;
  for (std::size_t size = 1; size < sizeof kernel; ++size) {
    Image image;
    CHECK_EQ(parse(&kernel, size, image), code(CASEMATE_IMAGE_TRUNCATED));
  }
}

TEST("what is no ELF file is no kernel") {
  CHECK_EQ(reason_of([](Kernel& kernel) { kernel.header.e_ident[0] = 'X'; }),
           code(CASEMATE_IMAGE_NOT_X86_64));
  CHECK_EQ(reason_of([](Kernel& kernel) { kernel.header.e_machine = EM_AARCH64; }),
           code(CASEMATE_IMAGE_NOT_X86_64));
  CHECK_EQ(reason_of([](Kernel& kernel) { kernel.header.e_ident[EI_CLASS] = ELFCLASS32; }),
           code(CASEMATE_IMAGE_NOT_X86_64));
}

TEST("a bzImage is told apart") {
  std::byte image[1024]{};
  std::memcpy(image + 0x202, "HdrS", 4);
  Image kernel;
  CHECK_EQ(parse(image, sizeof image, kernel), code(CASEMATE_IMAGE_COMPRESSED));
  CHECK_EQ(parse(image, 0x206, kernel), code(CASEMATE_IMAGE_COMPRESSED));
  CHECK_EQ(parse(image, 0x205, kernel), code(CASEMATE_IMAGE_NOT_X86_64));
}

TEST("a kernel whose segment lies about the file is refused") {
  const auto changed = [](auto change) {
    return reason_of([&](Kernel& kernel) { change(kernel.segments[0]); });
  };
  CHECK_EQ(changed([](Elf64_Phdr& it) { it.p_offset = sizeof(Kernel); }),
           code(CASEMATE_IMAGE_TRUNCATED));
  CHECK_EQ(changed([](Elf64_Phdr& it) { it.p_offset = -8ull; }), code(CASEMATE_IMAGE_BAD_SEGMENT));
  CHECK_EQ(changed([](Elf64_Phdr& it) { it.p_filesz = it.p_memsz + 1; }),
           code(CASEMATE_IMAGE_BAD_SEGMENT));
}

TEST("a kernel whose segment lies outside of its memory is refused") {
  const auto placed = [](std::uint64_t address, std::uint64_t size = 4096,
                         std::uint64_t memory_size = ram) {
    return reason_of(
        [&](Kernel& kernel) {
          kernel.segments[0].p_paddr = address;
          kernel.segments[0].p_memsz = size;
        },
        memory_size);
  };
  CHECK_EQ(placed(machine::kernel_base), 0u);
  CHECK_EQ(placed(machine::kernel_base - 1), code(CASEMATE_IMAGE_KERNEL_OUTSIDE_RAM));
  CHECK_EQ(placed(0), code(CASEMATE_IMAGE_KERNEL_OUTSIDE_RAM));
  CHECK_EQ(placed(ram - 4096), 0u);
  CHECK_EQ(placed(ram - 4095), code(CASEMATE_IMAGE_KERNEL_OUTSIDE_RAM));
  CHECK_EQ(placed(-4096ull), code(CASEMATE_IMAGE_BAD_SEGMENT));
  CHECK_EQ(placed(-4097ull), code(CASEMATE_IMAGE_KERNEL_OUTSIDE_RAM));
  CHECK_EQ(placed(data_address, -data_address), code(CASEMATE_IMAGE_BAD_SEGMENT));
  // Not behind the hole, where all of it would fit.
  constexpr std::uint64_t much = 8ull << 30;
  CHECK_EQ(placed(GuestMemory::hole_end, 4096, much), code(CASEMATE_IMAGE_KERNEL_OUTSIDE_RAM));
  CHECK_EQ(placed(GuestMemory::hole_start - 4096, 4096, much), 0u);
  CHECK_EQ(placed(GuestMemory::hole_start - 4095, 4096, much),
           code(CASEMATE_IMAGE_KERNEL_OUTSIDE_RAM));
}

TEST("a kernel whose segments overlap is refused, whichever comes first") {
  const auto moved = [](std::uint64_t code_to) {
    return reason_of([&](Kernel& kernel) { kernel.segments[1].p_paddr = code_to; });
  };
  CHECK_EQ(moved(data_address), code(CASEMATE_IMAGE_BAD_SEGMENT));
  CHECK_EQ(moved(data_address - 15), code(CASEMATE_IMAGE_BAD_SEGMENT));
  CHECK_EQ(moved(data_address + 4095), code(CASEMATE_IMAGE_BAD_SEGMENT));
  // Side by side they do not; then only the entry is elsewhere.
  CHECK_EQ(moved(data_address - 16), code(CASEMATE_IMAGE_BAD_ENTRY));
  CHECK_EQ(moved(data_address + 4096), code(CASEMATE_IMAGE_BAD_ENTRY));
}

TEST("a kernel is entered in a segment of any kind, by a physical address") {
  const auto entered = [](std::uint64_t entry) {
    return reason_of([&](Kernel& kernel) { kernel.header.e_entry = entry; });
  };
  CHECK_EQ(entered(code_address + 15), 0u);
  CHECK_EQ(entered(code_address + 16), code(CASEMATE_IMAGE_BAD_ENTRY));
  CHECK_EQ(entered(code_address - 1), code(CASEMATE_IMAGE_BAD_ENTRY));
  CHECK_EQ(entered(data_address), 0u);
  CHECK_EQ(entered(data_address + 4096), code(CASEMATE_IMAGE_BAD_ENTRY));
  CHECK_EQ(entered(virtual_base + code_address), code(CASEMATE_IMAGE_BAD_ENTRY));
}

TEST("a kernel without anything to load is empty") {
  CHECK_EQ(reason_of([](Kernel& kernel) { kernel.header.e_phnum = 0; }),
           code(CASEMATE_IMAGE_EMPTY));
  CHECK_EQ(reason_of([](Kernel& kernel) {
             kernel.segments[0].p_type = PT_NOTE;
             kernel.segments[1].p_memsz = 0;
           }),
           code(CASEMATE_IMAGE_EMPTY));
  Image image;
  CHECK_EQ(parse("", 0, image), code(CASEMATE_IMAGE_EMPTY));
}

TEST("a kernel has as many segments as an image can") {
  struct Many {
    Kernel kernel;
    Elf64_Phdr segments[Image::max_segments + 1];
  } many;
  for (std::size_t i = 0; i < std::size(many.segments); ++i) {
    many.segments[i] = Kernel::place(PF_X, 0, code_address + i, 1, 1);
  }
  many.kernel.header.e_phoff = offsetof(Many, segments);
  Image image;
  many.kernel.header.e_phnum = Image::max_segments;
  CHECK_EQ(parse(&many, sizeof many, image), 0u);
  many.kernel.header.e_phnum = Image::max_segments + 1;
  CHECK_EQ(parse(&many, sizeof many, image), code(CASEMATE_IMAGE_BAD_HEADER));
  many.kernel.header.e_phnum = 0xffff;
  CHECK_EQ(parse(&many, sizeof many, image), code(CASEMATE_IMAGE_BAD_HEADER));
}

namespace {

/// A kernel with notes behind it.
struct Noted {
  Kernel kernel;
  std::uint32_t notes[32]{};
  std::size_t count = 0;

  Noted() { kernel.header.e_entry = 0; }

  void add(std::uint32_t type, const char (&name)[4], std::uint32_t size, std::uint64_t value) {
    notes[count++] = 4;
    notes[count++] = size;
    notes[count++] = type;
    std::memcpy(&notes[count++], name, 4);
    std::memcpy(&notes[count], &value, 8);
    count += (size + 3) / 4;
  }

  std::uint32_t parse(Image& image) {
    // In the place of the data.
    kernel.segments[0] = {PT_NOTE, PF_R, offsetof(Noted, notes), 0, 0, 4 * count, 4 * count, 4};
    return ::parse(this, sizeof *this, image, ram, BootProtocol::Pvh);
  }
};

constexpr std::uint32_t pvh_entry = 18;

} // namespace

TEST("by PVH a kernel is entered where its note says") {
  for (const std::uint32_t size : {4u, 8u}) {
    Noted noted;
    noted.add(pvh_entry, "GNU", 4, code_address);
    noted.add(6, "Xen", 5, 0);
    noted.add(pvh_entry, "Xen", size, code_address + 3);
    Image image;
    CHECK_EQ(noted.parse(image), 0u);
    CHECK_EQ(image.entry, code_address + 3);
  }
}

TEST("by PVH a kernel without its note is refused") {
  Noted noted;
  noted.add(6, "Xen", 4, code_address);
  noted.add(pvh_entry, "Xen", 2, code_address);
  Image image;
  CHECK_EQ(noted.parse(image), code(CASEMATE_IMAGE_NOT_PVH));
  const Kernel kernel;
  CHECK_EQ(parse(&kernel, sizeof kernel, image, ram, BootProtocol::Pvh),
           code(CASEMATE_IMAGE_NOT_PVH));
}

TEST("by PVH too a kernel is entered in what is loaded of it") {
  Noted noted;
  noted.add(pvh_entry, "Xen", 8, code_address + 16);
  Image image;
  CHECK_EQ(noted.parse(image), code(CASEMATE_IMAGE_BAD_ENTRY));
}

TEST("notes that lie about their sizes are none") {
  for (const std::uint32_t size : {0u, 1u, 5u, 0x7fffffffu, 0xfffffffdu, 0xffffffffu}) {
    for (const std::size_t field : {0, 1}) {
      Noted noted;
      noted.add(pvh_entry, "Xen", 8, code_address);
      noted.notes[field] = size;
      Image image;
      CHECK_EQ(noted.parse(image), code(CASEMATE_IMAGE_NOT_PVH));
    }
  }
  Noted noted;
  noted.add(pvh_entry, "Xen", 8, code_address);
  Image image;
  noted.count -= 1; // cut off
  CHECK_EQ(noted.parse(image), code(CASEMATE_IMAGE_NOT_PVH));
}

TEST("notes behind the end of the file are refused") {
  Noted noted;
  noted.add(pvh_entry, "Xen", 8, code_address);
  Image image;
  CHECK_EQ(noted.parse(image), 0u);
  for (const std::uint64_t offset : {sizeof noted - 4, sizeof noted + 1, ~0ul}) {
    noted.kernel.segments[0].p_offset = offset;
    CHECK_EQ(parse(&noted, sizeof noted, image, ram, BootProtocol::Pvh),
             code(CASEMATE_IMAGE_TRUNCATED));
  }
}
