#include "unpack/stream.hpp"

#include <elf.h>

#include <string_view>

namespace casemate::unpack {

Status Output::write(std::span<const std::byte> bytes) {
  constexpr std::string_view magic(ELFMAG, SELFMAG);
  // From the first byte on: what is no kernel is not worth the time.
  for (std::size_t i = 0; size_ + i < magic.size() && i < bytes.size(); ++i) {
    if (bytes[i] != std::byte(magic[size_ + i])) {
      return CASEMATE_UNPACK_NOT_ELF;
    }
  }
  if (bytes.size() > expected_ - size_) {
    return CASEMATE_UNPACK_DAMAGED;
  }
  size_ += bytes.size();
  return store(bytes) ? CASEMATE_UNPACK_DONE : CASEMATE_UNPACK_SYSTEM;
}

Status Output::finish() const {
  return size_ == expected_ ? CASEMATE_UNPACK_DONE : CASEMATE_UNPACK_DAMAGED;
}

} // namespace casemate::unpack
