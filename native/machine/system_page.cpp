#include "machine/system_page.hpp"

namespace casemate::machine {

namespace {

constexpr std::uint64_t code_segment = 0x00af9b000000ffff; // 64-bit, accessed, DPL 0
constexpr std::uint64_t data_segment = 0x00cf93000000ffff;
constexpr std::uint64_t dpl_3 = 3ull << 45;
constexpr std::uint64_t busy_task = 0x00008b0000000000;

constexpr std::uint8_t interrupt_gate = 0x8e;
constexpr std::uint8_t interrupt_gate_dpl_3 = 0xee;
constexpr std::uint32_t breakpoint = 3;
constexpr std::uint32_t overflow = 4;

constexpr Gate gate(std::uint64_t handler, std::uint8_t attributes) {
  return {static_cast<std::uint16_t>(handler),
          kernel_code_selector,
          1, // IST1: the stack that the guest was on may be what is wrong
          attributes,
          static_cast<std::uint16_t>(handler >> 16),
          static_cast<std::uint32_t>(handler >> 32),
          0};
}

void allow_port(TaskState& task, unsigned port) {
  for (unsigned each = port; each < port + 4; ++each) {
    task.permissions[each / 8] &= static_cast<std::uint8_t>(~(1u << each % 8));
  }
}

} // namespace

void build_system_page(SystemPage& page) {
  for (std::uint32_t vector = 0; vector < exception_count; ++vector) {
    // int3 and into are instructions that CPL 3 may use; without this they are #GP.
    const bool open = vector == breakpoint || vector == overflow;
    page.idt[vector] = gate(handlers_address + vector * sizeof(Handler),
                            open ? interrupt_gate_dpl_3 : interrupt_gate);
    page.handlers[vector] = {{0xe6, fault_port, 0xeb, 0xfc}};
  }

  page.gdt[kernel_code_selector / 8] = code_segment;
  page.gdt[kernel_data_selector / 8] = data_segment;
  page.gdt[user_data_selector / 8] = data_segment | dpl_3;
  page.gdt[user_code_selector / 8] = code_segment | dpl_3;
  page.gdt[task_selector / 8] =
      busy_task | task_limit | (task_address & 0xffffff) << 16 | (task_address >> 24 & 0xff) << 56;
  page.gdt[task_selector / 8 + 1] = task_address >> 32;

  TaskState& task = page.task;
  task.stacks[0] = static_cast<std::uint32_t>(exception_stack_top);
  task.interrupt_stacks[0] = static_cast<std::uint32_t>(exception_stack_top);
  task.permissions_offset = offsetof(TaskState, permissions);
  for (std::uint8_t& byte : task.permissions) {
    byte = 0xff;
  }
  task.permissions_end = 0xff;
  for (unsigned port : {CASEMATE_PORT_DOORBELL, CASEMATE_PORT_WRITE, CASEMATE_PORT_READ,
                        CASEMATE_PORT_EXIT, CASEMATE_PORT_TIME, CASEMATE_PORT_RANDOM}) {
    allow_port(task, port);
  }
}

} // namespace casemate::machine
