// A bare-metal guest, made ready in memory: image, input, arguments, boot information,
// page tables, descriptors; and the registers that it starts with.
#pragma once

#include "kvm/abi.h"
#include "machine/guest_memory.hpp"
#include "machine/image.hpp"
#include "machine/system_page.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

namespace casemate::machine {

/// What a guest is made of. Numbers have been checked; the files' contents have not.
struct BootSource {
  int image = -1;
  std::uint64_t image_size = 0;
  std::uint32_t format = 0; // enum casemate_image_format
  int input = -1;
  std::uint64_t input_size = 0;
  std::uint32_t argument_count = 0;
  /// Exactly argument_count strings, each NUL-terminated.
  std::span<const std::byte> arguments{};
  std::uint32_t cpl = 3;
  bool has_huge_pages = false; // 1 GiB, by the guest's CPUID
  /// Not mapped beyond the extent that the last of the above lies in.
  bool has_memory_on_demand = false;
};

/// Where the guest starts.
struct Entry {
  std::uint64_t rip = 0;
  std::uint64_t rsp = 0;
  std::uint64_t boot_info = 0;
  std::uint64_t mapped_end = 0; // of memory, not of an image
};

/// `memory` has never been written to.
ImageError load_guest(const BootSource& source, const GuestMemory& memory, Entry& entry);

kvm_regs entry_registers(const Entry& entry);

/// Long mode at CPL 3 or 0 with paging, SSE on, interrupts off.
kvm_sregs entry_system_registers(std::uint32_t cpl, bool is_amd);

/// From the registers in a handler to those with which a guest at CPL 3 goes on behind it.
void return_from_exception(const ExceptionFrame& frame, bool is_amd, kvm_regs& regs,
                           kvm_sregs& sregs);

} // namespace casemate::machine
