#include "machine/kernel.hpp"

#include "machine/elf.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

namespace casemate::machine {

namespace {

/// Where a bzImage has its magic. Documentation/arch/x86/boot.rst
constexpr std::size_t setup_magic_offset = 0x202;

bool overlaps(const Image& kernel, std::uint64_t start, std::uint64_t end) {
  return std::ranges::any_of(kernel.segments(), [&](const Segment& other) {
    return start < other.address + other.memory_size && other.address < end;
  });
}

/// Adds a segment to those before it. Their order is free: by physical addresses there is none.
std::uint32_t add_segment(Image& kernel, const Elf64_Phdr& header, std::uint64_t file_size,
                          const GuestMemory& memory) {
  const std::uint64_t end = header.p_paddr + header.p_memsz;
  if (header.p_filesz > header.p_memsz || header.p_offset + header.p_filesz < header.p_offset ||
      end < header.p_paddr) {
    return CASEMATE_IMAGE_BAD_SEGMENT;
  }
  if (header.p_offset + header.p_filesz > file_size) {
    return CASEMATE_IMAGE_TRUNCATED;
  }
  if (header.p_paddr < kernel_base || end > memory.low_size()) {
    return CASEMATE_IMAGE_KERNEL_OUTSIDE_RAM;
  }
  if (overlaps(kernel, header.p_paddr, end)) {
    return CASEMATE_IMAGE_BAD_SEGMENT;
  }
  if (kernel.count == Image::max_segments) {
    return CASEMATE_IMAGE_BAD_HEADER;
  }
  kernel.list[kernel.count++] = {header.p_offset, header.p_filesz, header.p_paddr, header.p_memsz};
  kernel.end = std::max(kernel.end, end);
  return 0;
}

std::uint32_t check_start(std::span<const std::byte> start) {
  if (start.size() >= setup_magic_offset + 4 &&
      std::memcmp(&start[setup_magic_offset], "HdrS", 4) == 0) {
    return CASEMATE_IMAGE_COMPRESSED;
  }
  if (start.size() < sizeof(Elf64_Ehdr)) {
    return CASEMATE_IMAGE_TRUNCATED;
  }
  return std::memcmp(start.data(), ELFMAG, SELFMAG) == 0 ? 0 : CASEMATE_IMAGE_NOT_X86_64;
}

/// Not only in those marked as code: by physical addresses nothing is protected, and of
/// newer kernels the code of the start lies in a segment of data.
bool is_loaded(const Image& kernel, std::uint64_t address) {
  return std::ranges::any_of(kernel.segments(), [&](const Segment& each) {
    return address >= each.address && address - each.address < each.memory_size;
  });
}

/// XEN_ELFNOTE_PHYS32_ENTRY among `notes`, which may be anything.
std::optional<std::uint64_t> pvh_entry_in(std::span<const std::byte> notes) {
  constexpr std::uint32_t entry_type = 18;
  const auto padded = [](std::uint64_t size) { return (size + 3) / 4 * 4; };
  Elf64_Nhdr note;
  while (notes.size() >= sizeof note) {
    std::memcpy(&note, notes.data(), sizeof note);
    notes = notes.subspan(sizeof note);
    if (padded(note.n_namesz) + padded(note.n_descsz) > notes.size()) {
      break;
    }
    const auto name = notes.first(note.n_namesz);
    const auto value = notes.subspan(padded(note.n_namesz), note.n_descsz);
    if (note.n_type == entry_type && name.size() == 4 && std::memcmp(name.data(), "Xen", 4) == 0 &&
        (value.size() == 4 || value.size() == 8)) {
      std::uint64_t entry = 0;
      std::memcpy(&entry, value.data(), value.size());
      return entry;
    }
    notes = notes.subspan(padded(note.n_namesz) + padded(note.n_descsz));
  }
  return std::nullopt;
}

ImageError find_pvh_entry(int file, std::uint64_t file_size, std::span<const Elf64_Phdr> table,
                          std::uint64_t& entry) {
  for (const Elf64_Phdr& each : table) {
    if (each.p_type != PT_NOTE) {
      continue;
    }
    std::byte bytes[4096]; // kernels have less
    const auto notes = std::span(bytes).first(std::min<std::uint64_t>(each.p_filesz, sizeof bytes));
    if (each.p_offset > file_size || notes.size() > file_size - each.p_offset) {
      return {CASEMATE_IMAGE_TRUNCATED};
    }
    if (auto error = read_exactly(file, each.p_offset, notes.data(), notes.size())) {
      return error;
    }
    if (const auto found = pvh_entry_in(notes)) {
      entry = *found;
      return {};
    }
  }
  return {CASEMATE_IMAGE_NOT_PVH};
}

} // namespace

ImageError parse_kernel(int file, std::uint64_t file_size, BootProtocol protocol,
                        const GuestMemory& memory, Image& kernel) {
  kernel = {};
  if (file_size == 0) {
    return {CASEMATE_IMAGE_EMPTY};
  }
  std::byte bytes[image_start_size];
  const auto start = std::span(bytes).first(std::min<std::uint64_t>(file_size, sizeof bytes));
  if (auto error = read_exactly(file, 0, start.data(), start.size())) {
    return error;
  }
  if (const std::uint32_t reason = check_start(start)) {
    return {reason};
  }
  Elf64_Ehdr header;
  std::memcpy(&header, start.data(), sizeof header);
  if (const std::uint32_t reason = check_elf_header(header, file_size)) {
    return {reason};
  }
  std::array<Elf64_Phdr, max_program_headers> headers;
  const auto table = std::span(headers).first(header.e_phnum);
  if (auto error = read_program_headers(file, start, header, table)) {
    return error;
  }
  for (const Elf64_Phdr& each : table) {
    if (each.p_type != PT_LOAD || each.p_memsz == 0) {
      continue;
    }
    if (const std::uint32_t reason = add_segment(kernel, each, file_size, memory)) {
      return {reason};
    }
  }
  if (kernel.count == 0) {
    return {CASEMATE_IMAGE_EMPTY};
  }
  kernel.entry = header.e_entry;
  if (protocol == BootProtocol::Pvh) {
    if (auto error = find_pvh_entry(file, file_size, table, kernel.entry)) {
      return error;
    }
  }
  return {is_loaded(kernel, kernel.entry) ? 0u : std::uint32_t{CASEMATE_IMAGE_BAD_ENTRY}};
}

} // namespace casemate::machine
