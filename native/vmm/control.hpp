// The monitor's end of the control socket, after the configuration.
#pragma once

#include "sys/result.hpp"
#include "vmm/wire.h"

#include <cstddef>
#include <cstdint>

namespace casemate::vmm {

/// Sends `size` bytes that begin with a struct casemate_event. Where that fails, Node has hung
/// up, or the host has no memory for a message that Node would wait for: the process ends.
void send_message(const void* message, std::size_t size);

template <typename Event> void send(Event& event, casemate_event_type type) {
  event.header.type = type;
  event.header.size = sizeof event;
  send_message(&event, sizeof event);
}

inline void send(casemate_event_type type) {
  const casemate_event event{type, sizeof event};
  send_message(&event, sizeof event);
}

/// Waits for CASEMATE_COMMAND_RUN.
void await_run();

/// The type of the next command, or 0 where there is none yet. Where Node has hung up, or says
/// what it never would, the process ends.
std::uint32_t next_command();

/// Does what Node has commanded meanwhile: returns once the guest is to run on. Likewise.
void obey_commands();

/// Paused: waits for CASEMATE_COMMAND_RESUME, and answers it.
void stay_paused();

/// Ends the process, and with its last descriptors the VM.
[[noreturn]] void exit_process(int status);

/// Says what failed before any guest ran, and ends the process.
[[noreturn]] void fail(casemate_setup_step step, sys::SysError error, std::uint32_t detail = 0);

inline void check(casemate_setup_step step, sys::SysError error) {
  if (error) {
    fail(step, error);
  }
}

} // namespace casemate::vmm
