// Files for tests of loaders.
#pragma once

#include "sys/fd.hpp"
#include "test/unit.hpp"

#include <elf.h>

#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

namespace casemate::unit {

inline sys::Fd file_of(const void* bytes, std::size_t size) {
  sys::Fd file(memfd_create("file", MFD_CLOEXEC));
  if (write(file.get(), bytes, size) != static_cast<ssize_t>(size)) {
    fail(__FILE__, __LINE__, "no memfd");
  }
  return file;
}

/// Of a static executable for this processor, with its program headers at `table`.
inline Elf64_Ehdr elf_header(std::uint64_t entry, std::uint64_t table, std::uint16_t count) {
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_EXEC;
  header.e_machine = EM_X86_64;
  header.e_version = EV_CURRENT;
  header.e_entry = entry;
  header.e_phoff = table;
  header.e_ehsize = sizeof(Elf64_Ehdr);
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = count;
  return header;
}

} // namespace casemate::unit
