#pragma once

#include "kvm/abi.h"
#include "machine/extents.hpp"
#include "vmm/wire.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace casemate::vmm {

/// The message CASEMATE_COMMAND_CONFIGURE, as received. `rest` follows directly on a
/// struct kvm_cpuid2, so that the CPUID entries in it are one table with that.
struct ConfigurationMessage {
  casemate_configure head;
  alignas(casemate_kvm_cpuid2) std::byte cpuid[sizeof(casemate_kvm_cpuid2)];
  std::byte rest[CASEMATE_MAX_MESSAGE - sizeof(casemate_configure)];
};
static_assert(offsetof(ConfigurationMessage, rest) ==
              offsetof(ConfigurationMessage, cpuid) + offsetof(casemate_kvm_cpuid2, entries));

/// The number of the input, or of that initrd.
constexpr int input_descriptor(std::uint32_t i) {
  return i == 0 ? CASEMATE_FD_INPUT : CASEMATE_FD_INITRDS + static_cast<int>(i) - 1;
}
static_assert(input_descriptor(CASEMATE_MAX_INITRDS - 1) == CASEMATE_FD_INITRDS_LAST);

/// A configuration with everything in it checked.
struct Configuration {
  std::uint64_t memory_size = 0;
  std::uint32_t flags = 0;
  std::uint32_t format = 0;
  std::uint32_t cpl = 0;
  std::uint32_t vcpu_count = 0;
  std::size_t run_size = 0;
  casemate_kvm_cpuid2* cpuid = nullptr;
  std::span<const casemate_device> devices{};
  std::uint32_t argument_count = 0;
  std::span<const std::byte> arguments{};
  std::uint64_t image_size = 0;
  std::uint32_t page_shift = 0;
  std::uint32_t input_count = 0;
  std::array<std::uint64_t, CASEMATE_MAX_INITRDS> input_sizes{};

  bool has(casemate_configure_flags flag) const { return (flags & flag) != 0; }
  bool has_device(std::uint32_t type) const {
    return std::ranges::any_of(devices, [type](const auto& device) { return device.type == type; });
  }
  /// Whether the guest is given memory when it first touches it: where it is the machine's page
  /// tables that tell of that, and there is more than the guest starts with.
  bool has_memory_on_demand() const {
    return !is_linux() && cpl == 3 && memory_size > machine::first_extent_size;
  }
  bool is_linux() const { return format == CASEMATE_IMAGE_LINUX || format == CASEMATE_IMAGE_PVH; }
};

/// Checks a message of `size` bytes; 0, or why it is refused (errno). What `configuration`
/// then points to lies in the message.
int decode_configuration(ConfigurationMessage& message, std::size_t size,
                         Configuration& configuration);

/// Receives and checks the configuration, which is the first message. On anything
/// wrong the process ends, with CASEMATE_EVENT_FAILED.
Configuration receive_configuration(ConfigurationMessage& message);

/// Checks that each descriptor is of the kind it should be, and notes the sizes of
/// files. Likewise.
void check_descriptors(Configuration& configuration);

} // namespace casemate::vmm
