// What fuzzers of loaders begin with: any bytes as a file, and memory to load it to.
#pragma once

#include "machine/guest_memory.hpp"
#include "sys/fd.hpp"
#include "sys/mapping.hpp"

#include <cstdint>
#include <linux/memfd.h>
#include <utility>

namespace casemate::unit {

struct LoaderInput {
  static constexpr std::uint64_t ram = 8 << 20;

  /// False where this host has no file or no memory to give: there is nothing to be found.
  bool open(const std::uint8_t* data, std::size_t size) {
    file.reset(static_cast<int>(sys::call(__NR_memfd_create, "input", MFD_CLOEXEC)));
    auto mapped = sys::Mapping::map(ram, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    if (!mapped || sys::call(__NR_write, file.get(), data, size) != static_cast<long>(size)) {
      return false;
    }
    mapping = std::move(mapped).value();
    memory = machine::GuestMemory(mapping.data(), ram);
    return true;
  }

  sys::Fd file;
  sys::Mapping mapping;
  machine::GuestMemory memory;
};

} // namespace casemate::unit
