// libFuzzer: any bytes as a launch's plan, the first one being how many descriptors come with it.
// Either refused, or what walks it without a check stays in it; ASan and UBSan watch.
#include "jail/plan.hpp"

#include <cstdlib>
#include <cstring>
#include <memory>

using namespace casemate::jail;

namespace {

bool is_in(const char* text, const casemate_step* step) {
  return text >= reinterpret_cast<const char*>(step) &&
         text <= reinterpret_cast<const char*>(step) + step->size;
}

/// As run_child() and the launcher read it.
void walk(const casemate_step* step) {
  switch (step->op) {
  case CASEMATE_OP_MOUNT: {
    const char* text = tail<casemate_mount>(step);
    for (int i = 0; i < 4; ++i) {
      text = next_string(text);
    }
    if (!is_in(text, step)) {
      std::abort();
    }
    break;
  }
  case CASEMATE_OP_EXEC: {
    const auto& exec = payload<casemate_exec>(step);
    const char* text = tail<casemate_exec>(step);
    for (std::uint32_t i = 0; i < 1 + exec.argument_count + exec.environment_count; ++i) {
      text = next_string(text);
    }
    if (exec.argument_count == 0 || !is_in(text, step)) {
      std::abort();
    }
    break;
  }
  case CASEMATE_OP_HOSTNAME:
    if (!is_in(tail<casemate_text>(step) + payload<casemate_text>(step).length + 1, step)) {
      std::abort();
    }
    break;
  case CASEMATE_OP_DESCRIPTORS: {
    const auto* pair =
        reinterpret_cast<const casemate_descriptor*>(tail<casemate_descriptors>(step));
    const auto* end = pair + payload<casemate_descriptors>(step).count;
    for (; pair < end; ++pair) {
      if (pair->slot >= CASEMATE_SLOTS) {
        std::abort();
      }
    }
    break;
  }
  case CASEMATE_OP_SECCOMP:
    if (!is_in(tail<casemate_seccomp>(step) + payload<casemate_seccomp>(step).count * 8ul, step)) {
      std::abort();
    }
    break;
  default:
    break;
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return -1;
  }
  // Of its very size, so that ASan sees what reads behind it.
  const std::size_t plan_size = size - 1;
  const std::unique_ptr<std::byte[]> plan(new std::byte[plan_size]);
  std::memcpy(plan.get(), data + 1, plan_size);
  if (check_plan({plan.get(), plan_size}, data[0])) {
    return 0;
  }
  const casemate_plan& head = header(plan.get());
  const casemate_step* step = first_step(plan.get());
  for (std::uint32_t i = 0; i < head.launcher_steps + head.child_steps; ++i) {
    walk(step);
    step = next_step(step);
  }
  if (reinterpret_cast<const std::byte*>(step) != plan.get() + plan_size) {
    std::abort();
  }
  return 0;
}
