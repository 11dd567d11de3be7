// What all ELF images have in common: headers, and how they are read. elf(5)
#pragma once

#include "machine/image.hpp"

#include <cstddef>
#include <cstdint>
#include <linux/elf.h>
#include <span>

namespace casemate::machine {

inline constexpr std::size_t max_program_headers = 32;
/// What is read of a file to see what it is: the headers of most.
inline constexpr std::size_t image_start_size = 1024;

/// Whether it is of a static executable for this processor, with its program headers in
/// the file: 0, or an enum casemate_image_error.
std::uint32_t check_elf_header(const Elf64_Ehdr& header, std::uint64_t file_size);

/// From the file's start where they are in it, as linkers put them.
ImageError read_program_headers(int file, std::span<const std::byte> start,
                                const Elf64_Ehdr& header, std::span<Elf64_Phdr> table);

} // namespace casemate::machine
