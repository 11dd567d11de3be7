#pragma once

#include "addon/cgroup.hpp"
#include "addon/plan.hpp"
#include "addon/watch.hpp"
#include "jail/launcher.hpp"
#include "sys/fd.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <napi.h>
#include <string>
#include <vector>

namespace casemate::addon {

class Child;

/// What a child is heard by. Made before the child itself: the launcher tells the kernel of it.
struct Ears {
  Watch::Source message;
  Watch::Source end;
};

/// One launch under way, with everything the Launch points at.
struct Flight {
  explicit Flight(jail::Launcher& by) : launcher(by) {
    launch.message_tag = Watch::tag(ears->message);
    launch.end_tag = Watch::tag(ears->end);
  }

  jail::Launcher& launcher;
  jail::Launch launch;
  std::vector<sys::Fd> given;
  std::shared_ptr<const Plan::Contents> plan;
  std::vector<std::byte> configuration;
  std::string label;
  Cgroup cgroup; // goes with the process, or, where there was none, with this
  std::unique_ptr<Ears> ears = std::make_unique<Ears>(); // until the child has them
  Napi::FunctionReference on_done;
  /// What JavaScript has of it, once it has. Each forgets the other when it ends: an environment
  /// that is torn down ends them in any order.
  Child* child = nullptr;
  Napi::ObjectReference child_value;
};

} // namespace casemate::addon
