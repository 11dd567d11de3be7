#pragma once

#include "jail/plan.h"

#include <cstddef>
#include <cstdint>
#include <span>

namespace casemate::jail {

/// What is wrong with a plan: the step's index (or SIZE_MAX for the header) and why.
struct PlanFault {
  const char* reason = nullptr;
  std::size_t step = SIZE_MAX;

  explicit operator bool() const { return reason != nullptr; }
};

/// Checks every length, string, slot and operation of an encoded plan. After
/// this the buffer can be walked without a check; it must not change any more.
/// `slots` is the number of descriptors handed over with the launch.
PlanFault check_plan(std::span<const std::byte> plan, std::size_t slots);

inline const casemate_plan& header(const std::byte* plan) {
  return *reinterpret_cast<const casemate_plan*>(plan);
}

inline const casemate_step* first_step(const std::byte* plan) {
  return reinterpret_cast<const casemate_step*>(plan + sizeof(casemate_plan));
}

inline const casemate_step* next_step(const casemate_step* step) {
  return reinterpret_cast<const casemate_step*>(reinterpret_cast<const std::byte*>(step) +
                                                step->size);
}

template <typename Payload> inline const Payload& payload(const casemate_step* step) {
  return *reinterpret_cast<const Payload*>(step);
}

/// The bytes after a step's fixed payload: its first string, pairs or instructions.
template <typename Payload> inline const char* tail(const casemate_step* step) {
  return reinterpret_cast<const char*>(step) + sizeof(Payload);
}

/// The string after `text`.
inline const char* next_string(const char* text) {
  while (*text != '\0') {
    ++text;
  }
  return text + 1;
}

/// The name of an operation as errors and timelines show it: 'setns', 'execve'.
const char* op_name(std::uint32_t op);

} // namespace casemate::jail
