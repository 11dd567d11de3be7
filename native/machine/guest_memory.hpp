#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace casemate::machine {

/// A guest's RAM, by guest-physical address. RAM above 3 GiB goes on at 4 GiB: the
/// gigabyte between belongs to the local APIC and to KVM's own pages, and is where
/// devices will be.
///
/// The only way to guest memory. The guest (another vCPU of it) may write to it at any
/// time: what is to be checked is copied out first, once, by read().
class GuestMemory {
public:
  static constexpr std::uint64_t hole_start = 0xc0000000;
  static constexpr std::uint64_t hole_end = 0x100000000;

  GuestMemory() = default;
  GuestMemory(std::byte* base, std::uint64_t size) : base_(base), size_(size) {}

  std::byte* base() const { return base_; }
  std::uint64_t size() const { return size_; }
  /// RAM from 0 on.
  std::uint64_t low_size() const { return std::min(size_, hole_start); }
  /// RAM from 4 GiB on.
  std::uint64_t high_size() const { return size_ - low_size(); }

  /// Behind the last byte of RAM.
  std::uint64_t end() const { return high_size() > 0 ? hole_end + high_size() : low_size(); }

  /// The memory of `length` bytes at `address`, or null where a single one of them is
  /// not RAM. Anything is safe to ask.
  std::byte* at(std::uint64_t address, std::uint64_t length) const {
    if (inside(address, length, 0, low_size())) {
      return base_ + address;
    }
    if (inside(address, length, hole_end, high_size())) {
      return base_ + low_size() + (address - hole_end);
    }
    return nullptr;
  }

  template <typename T> bool read(std::uint64_t address, T& value) const {
    static_assert(std::is_trivially_copyable_v<T>);
    const std::byte* from = at(address, sizeof value);
    if (from == nullptr) {
      return false;
    }
    std::memcpy(&value, from, sizeof value);
    // The copy is what gets checked and used; nothing may read the original again.
    asm volatile("" ::: "memory");
    return true;
  }

  template <typename T> bool write(std::uint64_t address, const T& value) const {
    static_assert(std::is_trivially_copyable_v<T>);
    std::byte* to = at(address, sizeof value);
    if (to == nullptr) {
      return false;
    }
    std::memcpy(to, &value, sizeof value);
    return true;
  }

private:
  static bool inside(std::uint64_t address, std::uint64_t length, std::uint64_t start,
                     std::uint64_t size) {
    return address >= start && address - start <= size && length <= size - (address - start);
  }

  std::byte* base_ = nullptr;
  std::uint64_t size_ = 0;
};

} // namespace casemate::machine
