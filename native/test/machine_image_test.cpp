#include "machine/image.hpp"
#include "machine/layout.hpp"
#include "sys/fd.hpp"
#include "sys/mapping.hpp"
#include "test/files.hpp"
#include "test/unit.hpp"

#include <elf.h>

#include <cstring>
#include <functional>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

using namespace casemate;
using machine::GuestMemory;
using machine::Image;
using machine::image_base;
using machine::ImageError;
using unit::file_of;

namespace {

constexpr std::uint64_t ram = 16 << 20;

/// Two segments: 16 bytes of code at 2 MiB with the entry at its second byte, and 8 of
/// data with 24 of zeros behind them in the next page.
struct Elf {
  Elf64_Ehdr header{};
  Elf64_Phdr segments[2]{};
  std::byte code[16];
  std::byte data[8];

  Elf() {
    header = unit::elf_header(image_base + 1, offsetof(Elf, segments), 2);
    segments[0] = {PT_LOAD, PF_R | PF_X, offsetof(Elf, code), image_base, image_base, 16, 16, 16};
    segments[1] = {
        PT_LOAD, PF_R | PF_W, offsetof(Elf, data), image_base + 4096, image_base + 4096, 8, 32, 8};
    std::memset(code, 0xcc, sizeof code);
    std::memset(data, 0xdd, sizeof data);
  }
};

std::uint32_t parse(const void* bytes, std::size_t size, Image& image,
                    std::uint32_t format = CASEMATE_IMAGE_AUTO, std::uint64_t memory_size = ram) {
  const sys::Fd file = file_of(bytes, size);
  // parse_image() touches no guest memory.
  const GuestMemory memory(nullptr, memory_size);
  const ImageError error = machine::parse_image(file.get(), size, format, memory, image);
  CHECK(!error.system);
  return error.reason;
}

std::uint32_t reason_of(const std::function<void(Elf&)>& change,
                        std::uint32_t format = CASEMATE_IMAGE_AUTO) {
  Elf elf;
  change(elf);
  Image image;
  return parse(&elf, sizeof elf, image, format);
}

} // namespace

TEST("a static ELF executable is taken apart") {
  const Elf elf;
  Image image;
  CHECK_EQ(parse(&elf, sizeof elf, image), 0u);
  CHECK_EQ(image.entry, image_base + 1);
  CHECK_EQ(image.end, image_base + 4096 + 32);
  REQUIRE(image.segments().size() == 2);
  CHECK_EQ(image.segments()[0].offset, offsetof(Elf, code));
  CHECK_EQ(image.segments()[0].file_size, 16u);
  CHECK_EQ(image.segments()[1].address, image_base + 4096);
  CHECK_EQ(image.segments()[1].memory_size, 32u);
}

TEST("an ELF executable is loaded where its segments belong, and nothing else is touched") {
  const Elf elf;
  const sys::Fd file = file_of(&elf, sizeof elf);
  auto mapped = sys::Mapping::map(ram, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  REQUIRE(mapped.ok());
  const GuestMemory memory(mapped.value().data(), ram);
  Image image;
  CHECK(!machine::parse_image(file.get(), sizeof elf, CASEMATE_IMAGE_ELF, memory, image));
  CHECK(!machine::load_image(file.get(), image, memory));
  CHECK(std::memcmp(memory.at(image_base, 16), elf.code, 16) == 0);
  CHECK(std::memcmp(memory.at(image_base + 4096, 8), elf.data, 8) == 0);
  const std::byte zeros[4096]{};
  CHECK(std::memcmp(memory.at(image_base - 4096, 4096), zeros, 4096) == 0);
  CHECK(std::memcmp(memory.at(image_base + 16, 4080), zeros, 4080) == 0);
  CHECK(std::memcmp(memory.at(image_base + 4104, 4088), zeros, 4088) == 0);
}

TEST("an ELF file cut off at any byte is refused") {
  const Elf elf;
  for (std::size_t size = 1; size < sizeof elf; ++size) {
    Image image;
    CHECK_EQ(parse(&elf, size, image, CASEMATE_IMAGE_ELF), std::uint32_t{CASEMATE_IMAGE_TRUNCATED});
    if (size >= SELFMAG) {
      CHECK_EQ(parse(&elf, size, image), std::uint32_t{CASEMATE_IMAGE_TRUNCATED});
    }
  }
}

TEST("a file that becomes shorter while it is loaded is refused") {
  const Elf elf;
  auto mapped = sys::Mapping::map(ram, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  REQUIRE(mapped.ok());
  const GuestMemory memory(mapped.value().data(), ram);
  const sys::Fd file = file_of(&elf, sizeof elf);
  for (const auto format : {CASEMATE_IMAGE_ELF, CASEMATE_IMAGE_FLAT}) {
    Image image;
    CHECK_EQ(ftruncate(file.get(), sizeof elf), 0);
    CHECK(!machine::parse_image(file.get(), sizeof elf, format, memory, image));
    CHECK_EQ(ftruncate(file.get(), sizeof elf - 1), 0);
    CHECK_EQ(machine::load_image(file.get(), image, memory).reason,
             std::uint32_t{CASEMATE_IMAGE_TRUNCATED});
    CHECK_EQ(machine::parse_image(file.get(), sizeof elf, format, memory, image).reason,
             std::uint32_t{CASEMATE_IMAGE_TRUNCATED});
  }
}

TEST("program headers may lie anywhere in the file") {
  Elf elf;
  for (const std::size_t at : {1024 - sizeof elf.segments, 1025 - sizeof elf.segments,
                               std::size_t{1024}, std::size_t{70'000}}) {
    elf.header.e_phoff = at;
    std::vector<std::byte> bytes(at + sizeof elf.segments);
    std::memcpy(bytes.data(), &elf, sizeof elf);
    std::memcpy(bytes.data() + at, elf.segments, sizeof elf.segments);
    Image image;
    CHECK_EQ(parse(bytes.data(), bytes.size(), image), 0u);
    CHECK_EQ(image.count, 2u);
    CHECK_EQ(parse(bytes.data(), bytes.size() - 1, image), std::uint32_t{CASEMATE_IMAGE_TRUNCATED});
  }
}

TEST("what is not x86-64 ELF is refused as that") {
  const std::uint32_t other = CASEMATE_IMAGE_NOT_X86_64;
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_ident[EI_CLASS] = ELFCLASS32; }), other);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_ident[EI_DATA] = ELFDATA2MSB; }), other);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_machine = EM_AARCH64; }), other);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_ident[1] = 'F'; }, CASEMATE_IMAGE_ELF), other);
}

TEST("what wants to be relocated or interpreted is refused") {
  const std::uint32_t not_static = CASEMATE_IMAGE_NOT_STATIC;
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_type = ET_DYN; }), not_static);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_type = ET_REL; }), not_static);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_type = ET_CORE; }), not_static);
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[1].p_type = PT_INTERP; }), not_static);
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[1].p_type = PT_DYNAMIC; }), not_static);
}

TEST("headers of sizes and counts that cannot be are refused") {
  const std::uint32_t bad = CASEMATE_IMAGE_BAD_HEADER;
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_ident[EI_VERSION] = 0; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_version = 2; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_ehsize = 52; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_phentsize = 32; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_phentsize = 0; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_phnum = 33; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_phnum = PN_XNUM; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_phoff = 0; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_phoff = UINT64_MAX - 100; }), bad);
  const std::uint32_t cut = CASEMATE_IMAGE_TRUNCATED;
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_phoff = sizeof elf; }), cut);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_phoff = 1ull << 62; }), cut);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_phnum = 32; }), cut);
}

TEST("segments of impossible size, or that overlap, are refused") {
  const std::uint32_t bad = CASEMATE_IMAGE_BAD_SEGMENT;
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[0].p_memsz = 15; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[0].p_offset = UINT64_MAX; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[0].p_memsz = UINT64_MAX; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[1].p_vaddr = image_base + 15; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { std::swap(elf.segments[0], elf.segments[1]); }), bad);
  CHECK_EQ(reason_of([](Elf& elf) {
             elf.segments[0].p_filesz = elf.segments[0].p_memsz = UINT64_MAX - 100;
           }),
           bad);
  const std::uint32_t cut = CASEMATE_IMAGE_TRUNCATED;
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[1].p_filesz = 9; }), cut);
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[1].p_offset = 1ull << 63; }), cut);
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[1].p_vaddr = image_base + 16; }), 0u);
}

TEST("segments outside of RAM or in the machine's own pages are refused") {
  const std::uint32_t outside = CASEMATE_IMAGE_OUTSIDE_RAM;
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[0].p_vaddr = 0; }), outside);
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[0].p_vaddr = image_base - 1; }), outside);
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[1].p_vaddr = ram - 31; }), outside);
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[1].p_vaddr = ram - 32; }), 0u);
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[1].p_vaddr = 1ull << 63; }), outside);
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[1].p_memsz = ram; }), outside);
  // High memory is no place for an image either: the stack comes behind it, below 4 GiB.
  Elf elf;
  elf.segments[1].p_vaddr = GuestMemory::hole_end;
  Image image;
  CHECK_EQ(parse(&elf, sizeof elf, image, CASEMATE_IMAGE_ELF, 8ull << 30), outside);
}

TEST("an entry point outside of every executable segment is refused") {
  const std::uint32_t bad = CASEMATE_IMAGE_BAD_ENTRY;
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_entry = 0; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_entry = image_base - 1; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_entry = image_base + 16; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_entry = image_base + 4096; }), bad); // data
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[0].p_flags = PF_R; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_entry = UINT64_MAX; }), bad);
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_entry = image_base + 15; }), 0u);
}

TEST("an image with nothing to load is refused") {
  const std::uint32_t empty = CASEMATE_IMAGE_EMPTY;
  CHECK_EQ(reason_of([](Elf& elf) { elf.header.e_phnum = 0; }), empty);
  CHECK_EQ(reason_of([](Elf& elf) { elf.segments[0].p_type = elf.segments[1].p_type = PT_NOTE; }),
           empty);
  CHECK_EQ(reason_of([](Elf& elf) {
             elf.segments[0].p_memsz = elf.segments[0].p_filesz = 0;
             elf.segments[1].p_memsz = elf.segments[1].p_filesz = 0;
           }),
           empty);
  for (std::uint32_t format : {CASEMATE_IMAGE_AUTO, CASEMATE_IMAGE_ELF, CASEMATE_IMAGE_FLAT}) {
    Image image;
    CHECK_EQ(parse("", 0, image, format), empty);
  }
}

TEST("more segments than a guest needs are refused, as many as it may have are not") {
  struct {
    Elf64_Ehdr header;
    Elf64_Phdr segments[Image::max_segments + 1];
    std::byte code[16];
  } elf{};
  elf.header = Elf().header;
  for (std::size_t i = 0; i < std::size(elf.segments); ++i) {
    elf.segments[i] = {
        PT_LOAD, PF_R | PF_X, offsetof(decltype(elf), code), image_base + 4096 * i, 0, 16, 16, 16};
  }
  Image image;
  elf.header.e_phnum = Image::max_segments;
  CHECK_EQ(parse(&elf, sizeof elf, image), 0u);
  image = {};
  elf.header.e_phnum = Image::max_segments + 1;
  CHECK_EQ(parse(&elf, sizeof elf, image), std::uint32_t{CASEMATE_IMAGE_BAD_HEADER});
}

TEST("a flat binary is loaded and entered at 2 MiB, whatever is in it") {
  const std::vector<std::byte> bytes(5000, std::byte{0x90});
  Image image;
  CHECK_EQ(parse(bytes.data(), bytes.size(), image), 0u);
  CHECK_EQ(image.entry, image_base);
  CHECK_EQ(image.end, image_base + 5000);
  REQUIRE(image.segments().size() == 1);
  CHECK_EQ(image.segments()[0].file_size, 5000u);
  const Elf elf;
  Image flat;
  CHECK_EQ(parse(&elf, sizeof elf, flat, CASEMATE_IMAGE_FLAT), 0u);
  CHECK_EQ(flat.entry, image_base);
  Image one;
  CHECK_EQ(parse("\x7f", 1, one), 0u);
}

TEST("a flat binary that is larger than memory is refused") {
  const std::vector<std::byte> bytes(4096);
  Image image;
  CHECK_EQ(parse(bytes.data(), bytes.size(), image, CASEMATE_IMAGE_FLAT, image_base + 4096), 0u);
  Image more;
  CHECK_EQ(parse(bytes.data(), bytes.size(), more, CASEMATE_IMAGE_FLAT, image_base + 4095),
           std::uint32_t{CASEMATE_IMAGE_OUTSIDE_RAM});
  Image none;
  CHECK_EQ(parse(bytes.data(), bytes.size(), none, CASEMATE_IMAGE_FLAT, 4096),
           std::uint32_t{CASEMATE_IMAGE_OUTSIDE_RAM});
}

TEST("a file that cannot be read is a failed system call, not a bad image") {
  const GuestMemory memory(nullptr, ram);
  Image image;
  const ImageError error = machine::parse_image(-1, 100, CASEMATE_IMAGE_AUTO, memory, image);
  CHECK_EQ(error.reason, 0u);
  CHECK_EQ(error.system.number, 9 /* EBADF */);
}
