// The page that holds what long mode needs besides page tables: descriptors, the task
// state with its I/O permissions, exception handlers and their stack. Out of reach of
// guests at CPL 3; guests at CPL 0 may replace all of it.
#pragma once

#include "guest/casemate-guest-abi.h"
#include "machine/layout.hpp"

#include <cstddef>
#include <cstdint>

namespace casemate::machine {

inline constexpr std::uint16_t kernel_code_selector = 0x08;
inline constexpr std::uint16_t kernel_data_selector = 0x10;
inline constexpr std::uint16_t user_data_selector = 0x18;
inline constexpr std::uint16_t user_code_selector = 0x20;
inline constexpr std::uint16_t task_selector = 0x28;

/// Exception handlers report through this port, which the I/O permissions deny to
/// CPL 3. Not a part of the guest ABI.
inline constexpr std::uint16_t fault_port = 0xfc;

inline constexpr std::size_t exception_count = 32;

struct Gate {
  std::uint16_t offset_low;
  std::uint16_t selector;
  std::uint8_t interrupt_stack;
  std::uint8_t attributes;
  std::uint16_t offset_middle;
  std::uint32_t offset_high;
  std::uint32_t reserved;
};

struct TaskState {
  std::uint32_t reserved0;
  std::uint32_t stacks[6]; // RSP0 to RSP2, as halves: 8-byte fields would not be aligned
  std::uint32_t reserved1[2];
  std::uint32_t interrupt_stacks[14]; // IST1 to IST7, likewise
  std::uint32_t reserved2[2];
  std::uint16_t reserved3;
  std::uint16_t permissions_offset;
  /// A set bit denies a port to CPL 3, and so does what lies beyond.
  std::uint8_t permissions[256 / 8];
  std::uint8_t permissions_end; // the processor reads one byte more than it needs
};

/// `out %al, $fault_port; jmp` back to it: which exception it was is told by where the
/// `out` stands, so that no register of the guest is touched.
struct Handler {
  std::uint8_t code[4];
};

/// What the processor pushes at an exception in long mode, behind the error code.
struct ExceptionFrame {
  std::uint64_t rip;
  std::uint64_t cs;
  std::uint64_t rflags;
  std::uint64_t rsp;
  std::uint64_t ss;
};

struct SystemPage {
  Gate idt[exception_count];
  std::uint64_t gdt[7]; // the last two are the task's
  TaskState task;
  alignas(16) Handler handlers[exception_count];
  alignas(16) std::byte stack[2048]; // one for all: handlers never nest
};

static_assert(sizeof(Gate) == 16 && sizeof(Handler) == 4 && sizeof(ExceptionFrame) == 40);
static_assert(offsetof(TaskState, interrupt_stacks) == 36);
static_assert(offsetof(TaskState, permissions_offset) == 102);
static_assert(sizeof(SystemPage) <= page_size);

inline constexpr std::uint64_t idt_address = system_page_address + offsetof(SystemPage, idt);
inline constexpr std::uint64_t gdt_address = system_page_address + offsetof(SystemPage, gdt);
inline constexpr std::uint64_t task_address = system_page_address + offsetof(SystemPage, task);
inline constexpr std::uint32_t task_limit =
    offsetof(TaskState, permissions_end) + sizeof(TaskState::permissions_end) - 1;
inline constexpr std::uint64_t handlers_address =
    system_page_address + offsetof(SystemPage, handlers);
inline constexpr std::uint64_t exception_stack_top =
    system_page_address + offsetof(SystemPage, stack) + sizeof(SystemPage::stack);

inline constexpr std::uint32_t page_fault = 14;

/// Exceptions that push an error code.
constexpr bool has_error_code(std::uint32_t vector) {
  constexpr std::uint32_t vectors = 1u << 8 | 0x1fu << 10 | 1u << 17 | 1u << 21 | 3u << 29;
  return vector < exception_count && (vectors >> vector & 1) != 0;
}

/// Writes it into memory that has never been written to.
void build_system_page(SystemPage& page);

} // namespace casemate::machine
