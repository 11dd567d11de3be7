// Linux kernels: uncompressed ELF executables (vmlinux), placed by the physical
// addresses of their segments.
#pragma once

#include "machine/image.hpp"

#include <cstdint>

namespace casemate::machine {

enum class BootProtocol {
  Linux, // 64-bit: at the entry of the ELF header
  Pvh    // 32-bit: at the entry that a note tells
};

/// Nothing of a kernel lies lower: what its boot protocol wants there is the machine's.
inline constexpr std::uint64_t kernel_base = 0x100000;

/// Reads the headers of the kernel in `file`, each once, and checks everything in them:
/// afterwards every segment lies in the file and in low memory from kernel_base on, and
/// they do not overlap. Load it with load_image().
ImageError parse_kernel(int file, std::uint64_t file_size, BootProtocol protocol,
                        const GuestMemory& memory, Image& kernel);

} // namespace casemate::machine
