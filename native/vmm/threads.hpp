// Threads of the monitor besides its main one: of this process in everything, without what a
// libc would want of them. clone3(2)
#pragma once

#include "sys/mapping.hpp"
#include "sys/result.hpp"

#include <cstddef>
#include <cstdint>

namespace casemate::vmm {

/// Stacks for so many threads, one above the other, each behind a page that faults.
class Stacks {
public:
  static sys::Result<Stacks> map(std::uint32_t count);

  /// Starts a thread on one of them that has none: `entry`, which must not return. Its id, or
  /// a negative errno.
  long start(std::uint32_t index, void (*entry)(void*), void* argument) const;

private:
  sys::Mapping mapping_;
};

} // namespace casemate::vmm
