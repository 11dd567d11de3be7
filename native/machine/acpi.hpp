// The ACPI tables of Linux guests: hardware-reduced, so that kernels look for none of
// the devices that every PC used to have. ACPI 6.4
#pragma once

#include "machine/guest_memory.hpp"

#include <cstdint>

namespace casemate::machine {

/// Where the tables are. The root pointer is first: kernels that are not told where it is
/// look for it from here on.
inline constexpr std::uint64_t acpi_address = 0xe0000;
inline constexpr std::uint64_t acpi_size = 0x2000;

/// vCPUs have their numbers for APIC ids; of virtio devices there are virtio::max_devices at
/// most. `memory` has acpi_size bytes there.
void write_acpi_tables(const GuestMemory& memory, std::uint32_t vcpu_count,
                       std::uint32_t device_count);

} // namespace casemate::machine
