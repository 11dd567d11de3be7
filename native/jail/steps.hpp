#pragma once

#include "jail/plan.hpp"

#include <cstdint>

namespace casemate::jail {

/// What the steps of one launch left behind. The child writes into it while it
/// shares memory with the launcher: no pipe, nothing to parse.
struct StepReport {
  std::uint32_t done = 0;     // steps that succeeded
  std::int32_t error = 0;     // errno of the step at index `done`, or 0
  const char* call = nullptr; // the system call that failed
  std::uint64_t started = 0;  // CLOCK_MONOTONIC ns, the child's first instruction
  std::uint64_t stamps[CASEMATE_PLAN_MAX_STEPS] = {}; // at the end of each step
};

/// Runs `count` child steps from `step` on in the calling task. Nothing but raw
/// system calls: safe between clone3 and execve in a shared address space.
/// `slots` maps a plan's slots to descriptor numbers. Stops at the first failure.
/// Returns only if a step failed or none of them was an execve.
void run_steps(const casemate_step* step, std::uint32_t count, const int* slots,
               StepReport& report);

} // namespace casemate::jail
