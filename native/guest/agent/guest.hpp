// What an init does, as far as a guest without one needs it.
#pragma once

#include "guest/agent/text.hpp"

namespace casemate::agent {

/// Tells of what went wrong, on the console.
void complain(std::string_view what, long error);

/// Loads what lies in CASEMATE_AGENT_MODULES, and frees its memory.
void load_modules();

/// Words of the kernel's command line.
struct BootWords {
  Text<256> root;
  Text<64> root_type;
  Text<512> root_flags;
  Text<256> init;
  bool read_only = false;
};

/// Mounts what every program expects, and the root disk where the command line names one.
/// Without that disk there is nothing to go on with: then this ends the agent, and so the guest.
BootWords set_up_guest();

enum class Ending { PowerOff, Restart };

/// Ends all processes, writes out what is not on the disks yet, and ends the machine.
[[noreturn]] void end_guest(Ending ending);

} // namespace casemate::agent
