// The first instructions of a program without libc: what a libc would do before
// main(), as far as the monitor and the agent need it.
#include "sys/start.hpp"
#include "sys/syscall.hpp"

#include <cstring>
#include <elf.h>
#include <linux/mman.h>

extern "C" {

// -mstack-protector-guard=global: every guarded function compares with this.
// There is no thread-local storage to keep it in, as a libc would.
unsigned long __stack_chk_guard;

// An illegal instruction rather than a message: nothing on this stack can be
// trusted, and the signal that ends the process is seen by who started it.
[[noreturn]] void __stack_chk_fail() { __builtin_trap(); }

// Both by the linker; hidden, so that they are reached relative to RIP and not
// through a table that has yet to be relocated.
[[gnu::visibility("hidden")]] extern const Elf64_Ehdr __ehdr_start;
[[gnu::visibility("hidden")]] extern const Elf64_Dyn _DYNAMIC[];

// At entry RSP points to argc, argv and the auxiliary vector, and RBP is
// undefined: zero ends every backtrace here. The clock is asked before anything
// else, as each page that is touched from here on takes microseconds of the
// program's own: 228 is clock_gettime, 1 is CLOCK_MONOTONIC.
asm(R"(
  .text
  .globl _start
  .type _start, @function
_start:
  mov %rsp, %rbx
  sub $16, %rsp
  and $-16, %rsp
  mov $228, %eax
  mov $1, %edi
  mov %rsp, %rsi
  syscall
  xor %ebp, %ebp
  mov %rbx, %rdi
  call casemate_start
  ud2
  .size _start, . - _start
)");
}

namespace {

// A static-pie program relocates itself: there is no dynamic linker. What needs
// it is constant data that holds addresses (vtables, tables of strings); without
// any, nothing here is touched and no page of it copied.
[[gnu::always_inline]] inline void relocate() {
  auto base = reinterpret_cast<Elf64_Addr>(&__ehdr_start);
  Elf64_Addr table = 0;
  Elf64_Xword size = 0;
  for (const Elf64_Dyn* entry = _DYNAMIC; entry->d_tag != DT_NULL; ++entry) {
    if (entry->d_tag == DT_RELA) {
      table = base + entry->d_un.d_ptr;
    } else if (entry->d_tag == DT_RELASZ) {
      size = entry->d_un.d_val;
    }
  }
  if (size == 0) {
    return;
  }
  const auto* relocation = reinterpret_cast<const Elf64_Rela*>(table);
  for (const auto* end = relocation + size / sizeof(*relocation); relocation < end; ++relocation) {
    if (ELF64_R_TYPE(relocation->r_info) != R_X86_64_RELATIVE) {
      __builtin_trap(); // the only kind that code without imported symbols has
    }
    *reinterpret_cast<Elf64_Addr*>(base + relocation->r_offset) =
        base + static_cast<Elf64_Addr>(relocation->r_addend);
  }
  // Addresses written, tables closed: a vtable cannot be overwritten afterwards.
  const auto* header = reinterpret_cast<const Elf64_Phdr*>(base + __ehdr_start.e_phoff);
  for (const auto* end = header + __ehdr_start.e_phnum; header < end; ++header) {
    if (header->p_type == PT_GNU_RELRO) {
      constexpr Elf64_Addr page = 4096;
      Elf64_Addr from = (base + header->p_vaddr) & ~(page - 1);
      Elf64_Addr to = (base + header->p_vaddr + header->p_memsz) & ~(page - 1);
      casemate::sys::call(__NR_mprotect, from, to - from, PROT_READ);
    }
  }
}

} // namespace

// Not guarded itself: it sets what the guard compares with.
extern "C" [[noreturn, gnu::used]] __attribute__((no_stack_protector)) void
casemate_start(const unsigned long* stack, const casemate::sys::Instant* started) {
  relocate();
  const unsigned long* environment = stack + 1 + stack[0] + 1; // behind argc, argv and its null
  while (*environment != 0) {
    ++environment;
  }
  const auto* auxiliary = reinterpret_cast<const Elf64_auxv_t*>(environment + 1);
  for (; auxiliary->a_type != AT_NULL; ++auxiliary) {
    if (auxiliary->a_type == AT_RANDOM) {
      // Bytes, at any address. The low one stays zero: a string that runs over the guard ends
      // before it.
      unsigned long random;
      std::memcpy(&random, reinterpret_cast<const void*>(auxiliary->a_un.a_val), sizeof random);
      __stack_chk_guard = random & ~0xfful;
    }
  }
  casemate_main(stack, started);
}
