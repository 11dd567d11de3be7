// The compressed kernel in a bzImage. Documentation/arch/x86/boot.rst
#pragma once

#include "unpack/stream.hpp"

namespace casemate::unpack {

/// A file that is read at any place.
class Image {
public:
  virtual ~Image() = default;
  virtual std::uint64_t size() const = 0;
  /// Fills `to` with what is at `offset`; false where it cannot.
  virtual bool read_at(std::uint64_t offset, std::span<std::byte> to) const = 0;
};

/// Where the compressed kernel is, checked to lie in the file, and what it says of its size.
struct Payload {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
  std::uint64_t unpacked_size = 0;
};

/// Reads the header of an image, once.
Status find_payload(const Image& image, Payload& payload);

/// Unpacks the kernel in an image.
Status unpack_kernel(const Image& image, Output& output);

} // namespace casemate::unpack
