#include "machine/image.hpp"

#include "machine/elf.hpp"
#include "machine/layout.hpp"
#include "sys/syscall.hpp"

#include <cstring>

namespace casemate::machine {

namespace {

bool has_magic(std::span<const std::byte> start) {
  return start.size() >= SELFMAG && std::memcmp(start.data(), ELFMAG, SELFMAG) == 0;
}

bool add_segment(Image& image, const Segment& segment) {
  if (image.count == Image::max_segments) {
    return false;
  }
  image.list[image.count++] = segment;
  image.end = segment.address + segment.memory_size;
  return true;
}

/// `previous_end`: where the segment before this one ends, in the guest's memory.
std::uint32_t check_segment(const Elf64_Phdr& header, std::uint64_t file_size,
                            std::uint64_t previous_end, const GuestMemory& memory) {
  if (header.p_filesz > header.p_memsz || header.p_offset + header.p_filesz < header.p_offset ||
      header.p_vaddr + header.p_memsz < header.p_vaddr) {
    return CASEMATE_IMAGE_BAD_SEGMENT;
  }
  if (header.p_offset + header.p_filesz > file_size) {
    return CASEMATE_IMAGE_TRUNCATED;
  }
  if (header.p_vaddr < image_base || header.p_vaddr + header.p_memsz > memory.low_size()) {
    return CASEMATE_IMAGE_OUTSIDE_RAM;
  }
  // Ascending addresses are what the format demands, and make overlap one comparison.
  if (header.p_vaddr < previous_end) {
    return CASEMATE_IMAGE_BAD_SEGMENT;
  }
  return 0;
}

} // namespace

std::uint32_t check_elf_header(const Elf64_Ehdr& header, std::uint64_t file_size) {
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
      header.e_machine != EM_X86_64) {
    return CASEMATE_IMAGE_NOT_X86_64;
  }
  if (header.e_ident[EI_VERSION] != EV_CURRENT || header.e_version != EV_CURRENT ||
      header.e_ehsize != sizeof(Elf64_Ehdr) || header.e_phentsize != sizeof(Elf64_Phdr) ||
      header.e_phnum > max_program_headers) {
    return CASEMATE_IMAGE_BAD_HEADER;
  }
  if (header.e_type != ET_EXEC) {
    return CASEMATE_IMAGE_NOT_STATIC;
  }
  if (header.e_phnum == 0) {
    return CASEMATE_IMAGE_EMPTY;
  }
  const std::uint64_t table_size = std::uint64_t{header.e_phnum} * sizeof(Elf64_Phdr);
  if (header.e_phoff < sizeof(Elf64_Ehdr) || header.e_phoff + table_size < header.e_phoff) {
    return CASEMATE_IMAGE_BAD_HEADER;
  }
  return header.e_phoff + table_size > file_size ? CASEMATE_IMAGE_TRUNCATED : 0;
}

ImageError read_program_headers(int file, std::span<const std::byte> start,
                                const Elf64_Ehdr& header, std::span<Elf64_Phdr> table) {
  auto* to = reinterpret_cast<std::byte*>(table.data());
  if (header.e_phoff <= start.size() && table.size_bytes() <= start.size() - header.e_phoff) {
    std::memcpy(to, start.data() + header.e_phoff, table.size_bytes());
    return {};
  }
  return read_exactly(file, header.e_phoff, to, table.size_bytes());
}

namespace {

ImageError parse_elf(int file, std::uint64_t file_size, std::span<const std::byte> start,
                     const GuestMemory& memory, Image& image) {
  Elf64_Ehdr header;
  std::memcpy(&header, start.data(), sizeof header);
  if (const std::uint32_t reason = check_elf_header(header, file_size)) {
    return {reason};
  }
  std::array<Elf64_Phdr, max_program_headers> table;
  if (auto error = read_program_headers(file, start, header, {table.data(), header.e_phnum})) {
    return error;
  }
  bool entry_is_code = false;
  for (const Elf64_Phdr& each : std::span(table.data(), header.e_phnum)) {
    if (each.p_type == PT_INTERP || each.p_type == PT_DYNAMIC) {
      return {CASEMATE_IMAGE_NOT_STATIC};
    }
    if (each.p_type != PT_LOAD || each.p_memsz == 0) {
      continue;
    }
    if (const std::uint32_t reason = check_segment(each, file_size, image.end, memory)) {
      return {reason};
    }
    if (!add_segment(image, {each.p_offset, each.p_filesz, each.p_vaddr, each.p_memsz})) {
      return {CASEMATE_IMAGE_BAD_HEADER};
    }
    if ((each.p_flags & PF_X) != 0 && header.e_entry >= each.p_vaddr &&
        header.e_entry - each.p_vaddr < each.p_memsz) {
      entry_is_code = true;
    }
  }
  if (image.count == 0) {
    return {CASEMATE_IMAGE_EMPTY};
  }
  if (!entry_is_code) {
    return {CASEMATE_IMAGE_BAD_ENTRY};
  }
  image.entry = header.e_entry;
  return {};
}

ImageError parse_flat(std::uint64_t file_size, const GuestMemory& memory, Image& image) {
  if (memory.low_size() < image_base || file_size > memory.low_size() - image_base) {
    return {CASEMATE_IMAGE_OUTSIDE_RAM};
  }
  add_segment(image, {0, file_size, image_base, file_size});
  image.entry = image_base;
  return {};
}

} // namespace

ImageError parse_image(int file, std::uint64_t file_size, std::uint32_t format,
                       const GuestMemory& memory, Image& image) {
  image = {};
  if (file_size == 0) {
    return {CASEMATE_IMAGE_EMPTY};
  }
  std::array<std::byte, image_start_size> buffer;
  const std::span start(buffer.data(), std::min<std::uint64_t>(file_size, image_start_size));
  if (auto error = read_exactly(file, 0, start.data(), start.size())) {
    return error;
  }
  const bool is_elf = has_magic(start);
  if (format == CASEMATE_IMAGE_FLAT || (format == CASEMATE_IMAGE_AUTO && !is_elf)) {
    return parse_flat(file_size, memory, image);
  }
  if (start.size() < sizeof(Elf64_Ehdr)) {
    return {CASEMATE_IMAGE_TRUNCATED};
  }
  if (!is_elf) {
    return {CASEMATE_IMAGE_NOT_X86_64};
  }
  return parse_elf(file, file_size, start, memory, image);
}

ImageError load_image(int file, const Image& image, const GuestMemory& memory) {
  for (const Segment& segment : image.segments()) {
    std::byte* to = memory.at(segment.address, segment.memory_size);
    if (to == nullptr) {
      return {CASEMATE_IMAGE_OUTSIDE_RAM};
    }
    if (auto error = read_exactly(file, segment.offset, to, segment.file_size)) {
      return error;
    }
  }
  return {};
}

ImageError read_exactly(int file, std::uint64_t offset, std::byte* to, std::uint64_t size) {
  while (size > 0) {
    const long count = sys::call_retry(__NR_pread64, file, to, size, offset);
    if (count < 0) {
      return {0, sys::check("pread64", count)};
    }
    if (count == 0) {
      return {CASEMATE_IMAGE_TRUNCATED};
    }
    to += count;
    offset += static_cast<std::uint64_t>(count);
    size -= static_cast<std::uint64_t>(count);
  }
  return {};
}

} // namespace casemate::machine
