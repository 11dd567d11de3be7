// Where the bytes of an image come from, and where those of its kernel go.
#pragma once

#include "unpack/abi.h"

#include <cstddef>
#include <cstdint>
#include <span>

namespace casemate::unpack {

using Status = casemate_unpack_status;

/// Bytes from front to back.
class Input {
public:
  virtual ~Input() = default;

  /// Fills `to`, or less of it at the end; the number of bytes.
  virtual std::size_t read(std::span<std::byte> to) = 0;

  bool read_exactly(std::span<std::byte> to) { return read(to) == to.size(); }
};

/// Takes what is unpacked, as much of it as was announced, and only an ELF file.
class Output {
public:
  virtual ~Output() = default;

  void expect(std::uint64_t size) { expected_ = size; }
  std::uint64_t size() const { return size_; }

  Status write(std::span<const std::byte> bytes);

  /// Whether all came that was announced.
  Status finish() const;

protected:
  virtual bool store(std::span<const std::byte> bytes) = 0;

private:
  std::uint64_t expected_ = 0;
  std::uint64_t size_ = 0;
};

} // namespace casemate::unpack
