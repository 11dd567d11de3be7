#pragma once

#include "jail/plan.hpp"

#include <memory>
#include <napi.h>
#include <vector>

namespace casemate::addon {

/// A plan that has been checked, and what else is the same for all of its launches.
class Plan : public Napi::ObjectWrap<Plan> {
public:
  struct Contents {
    std::vector<std::byte> bytes;
    std::size_t given = 0; // descriptors that a launch hands over
    /// By slot, up to `given`: those that are open for as long as the process is, and the same
    /// for all launches; -1 for the others.
    std::vector<int> lasting;
    bool in_host_mounts = false;
    bool is_lean = false;
    // For a program that speaks a control protocol; see jail::Launch.
    std::uint32_t control_slot = CASEMATE_NO_SLOT;
    std::vector<std::byte> announcement;
    std::vector<std::byte> release;
  };

  static Napi::Function define(Napi::Env env);

  explicit Plan(const Napi::CallbackInfo& info);

  /// A launch under way keeps them, whatever becomes of this object.
  const std::shared_ptr<const Contents>& contents() const { return contents_; }

private:
  std::shared_ptr<const Contents> contents_;
};

/// A copy of a Uint8Array's bytes; none of anything else.
std::vector<std::byte> copy_of(const Napi::Value& value);

} // namespace casemate::addon
