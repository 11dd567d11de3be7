// A Linux guest, made ready in memory: kernel, initrd, command line, ACPI, and what its
// boot protocol wants besides; and the registers that it starts with. By the 64-bit one,
// Documentation/arch/x86/boot.rst of the kernel, these are zero page, random seed and
// page tables; by PVH, xen/interface/hvm/start_info.h, the start info.
#pragma once

#include "kvm/abi.h"
#include "machine/guest_memory.hpp"
#include "machine/image.hpp"
#include "machine/kernel.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

namespace casemate::machine {

struct File {
  int descriptor = -1;
  std::uint64_t size = 0;
};

/// What a Linux guest is made of. Numbers have been checked; the files' contents have not.
struct LinuxSource {
  BootProtocol protocol = BootProtocol::Linux;
  int kernel = -1;
  std::uint64_t kernel_size = 0;
  /// One behind the other they are what the kernel finds.
  std::span<const File> initrds{};
  /// With its NUL, CASEMATE_MAX_COMMAND_LINE bytes at most.
  std::span<const std::byte> command_line{};
  std::uint32_t vcpu_count = 1;
  std::uint32_t device_count = 0;
};

/// `memory` has never been written to. `entry` is where the first vCPU starts.
ImageError load_linux(const LinuxSource& source, const GuestMemory& memory, std::uint64_t& entry);

kvm_regs linux_registers(BootProtocol protocol, std::uint64_t entry);

/// 64-bit mode with paging, or 32-bit mode without; flat segments, interrupts off.
kvm_sregs linux_system_registers(BootProtocol protocol);

} // namespace casemate::machine
