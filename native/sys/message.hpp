// What sendmsg(2), recvmsg(2), readv(2) and writev(2) take, for programs without libc.
#pragma once

#include <cstddef>

namespace casemate::sys {

/// struct iovec.
struct IoVector {
  void* base = nullptr;
  std::size_t size = 0;
};

/// struct msghdr as the kernel has it.
struct MessageHeader {
  void* name = nullptr;
  int name_size = 0;
  IoVector* vectors = nullptr;
  std::size_t vector_count = 0;
  void* control = nullptr;
  std::size_t control_size = 0;
  unsigned flags = 0;
};

} // namespace casemate::sys
