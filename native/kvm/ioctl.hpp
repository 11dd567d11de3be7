// How the classes of this folder call the kernel. Everything here works without
// libc and allocates nothing: whatever has a size comes in the caller's buffer.
#pragma once

#include "kvm/abi.h"
#include "sys/result.hpp"
#include "sys/syscall.hpp"

#include <cstddef>

namespace casemate::kvm {

template <typename A = long> inline long ioctl(int fd, unsigned long request, A argument = 0) {
  return sys::call(__NR_ioctl, fd, request, argument);
}

/// For an ioctl whose answer is only whether it succeeded.
template <typename A = long>
inline sys::SysError ioctl_check(const char* name, int fd, unsigned long request, A argument = 0) {
  return sys::check(name, ioctl(fd, request, argument));
}

/// For an ioctl that answers with a number.
template <typename A = long>
inline sys::Result<int> ioctl_number(const char* name, int fd, unsigned long request,
                                     A argument = 0) {
  const long result = ioctl(fd, request, argument);
  if (result < 0) {
    return sys::check(name, result);
  }
  return static_cast<int>(result);
}

/// Storage for one of the kernel's structs that end in an array, with room for
/// `Capacity` entries: `Table<casemate_kvm_cpuid2, kvm_cpuid_entry2, 256> cpuid;`
template <typename Head, typename Entry, std::size_t Capacity> class Table {
public:
  static constexpr std::size_t capacity = Capacity;

  Head* get() { return reinterpret_cast<Head*>(bytes_); }
  const Head* get() const { return reinterpret_cast<const Head*>(bytes_); }
  Head* operator->() { return get(); }
  const Head* operator->() const { return get(); }

private:
  alignas(Head) std::byte bytes_[sizeof(Head) + Capacity * sizeof(Entry)]{};
};

} // namespace casemate::kvm
