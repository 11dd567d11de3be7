#pragma once

#include "sys/result.hpp"
#include "sys/syscall.hpp"

#include <cstddef>
#include <cstdint>
#include <linux/mman.h>
#include <utility>

namespace casemate::sys {

/// Owns a memory mapping (mmap(2)). Move-only.
class Mapping {
public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    if (this != &other) {
      reset();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
    }
    return *this;
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { reset(); }

  static Result<Mapping> map(std::size_t size, int protection, int flags, int fd = -1,
                             std::uint64_t offset = 0) {
    long address = call(__NR_mmap, nullptr, size, protection, flags, fd, offset);
    if (address < 0 && address > -4096) {
      return SysError{"mmap", static_cast<int>(-address)};
    }
    Mapping mapping;
    mapping.data_ = reinterpret_cast<std::byte*>(address);
    mapping.size_ = size;
    return mapping;
  }

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  explicit operator bool() const { return data_ != nullptr; }
  /// Gives the mapping up without unmapping it.
  std::byte* release() {
    size_ = 0;
    return std::exchange(data_, nullptr);
  }
  void reset() {
    if (data_ != nullptr) {
      call(__NR_munmap, data_, size_);
    }
    data_ = nullptr;
    size_ = 0;
  }

private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

} // namespace casemate::sys
