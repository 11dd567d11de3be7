// Guest images: flat binaries, and static ELF64 executables. elf(5)
#pragma once

#include "machine/guest_memory.hpp"
#include "sys/result.hpp"
#include "vmm/wire.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace casemate::machine {

/// Why an image was not loaded: because of what it is, or because reading it failed.
struct [[nodiscard]] ImageError {
  std::uint32_t reason = 0; // enum casemate_image_error
  sys::SysError system{};

  explicit operator bool() const { return reason != 0 || system; }
};

/// A part of a file, and the guest memory that it belongs into.
struct Segment {
  std::uint64_t offset = 0;
  std::uint64_t file_size = 0;
  std::uint64_t address = 0;
  std::uint64_t memory_size = 0; // beyond file_size: zeros
};

/// A checked image: every segment lies in the file and in low memory above the
/// machine's own pages, and they do not overlap.
struct Image {
  static constexpr std::size_t max_segments = 16;

  std::uint64_t entry = 0;
  std::uint64_t end = 0; // address behind the last segment
  std::array<Segment, max_segments> list{};
  std::size_t count = 0;

  std::span<const Segment> segments() const { return {list.data(), count}; }
};

/// Reads the headers of the image in `file`, each once, and checks everything in them.
/// `format` is an enum casemate_image_format.
ImageError parse_image(int file, std::uint64_t file_size, std::uint32_t format,
                       const GuestMemory& memory, Image& image);

/// Reads the segments into guest memory that has never been written to.
ImageError load_image(int file, const Image& image, const GuestMemory& memory);

/// Reads `size` bytes at `offset`; CASEMATE_IMAGE_TRUNCATED where the file has fewer.
ImageError read_exactly(int file, std::uint64_t offset, std::byte* to, std::uint64_t size);

} // namespace casemate::machine
