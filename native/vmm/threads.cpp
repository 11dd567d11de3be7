#include "vmm/threads.hpp"

#include "sys/clone.hpp"

#include <linux/sched.h>

#include <utility>

namespace casemate::vmm {

namespace {

/// What the deepest path of an exit takes, many times over.
constexpr std::size_t stack_size = 32 * 1024;
constexpr std::size_t guard_size = 4096;
constexpr std::size_t slot_size = guard_size + stack_size;

} // namespace

sys::Result<Stacks> Stacks::map(std::uint32_t count) {
  constexpr int map_fixed = 0x10;
  auto all =
      sys::Mapping::map(count * slot_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  if (!all) {
    return all.error();
  }
  for (std::uint32_t i = 0; i < count; ++i) {
    const long result =
        sys::call(__NR_mmap, all.value().data() + i * slot_size + guard_size, stack_size,
                  PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | map_fixed, -1, 0);
    if (result < 0 && result > -4096) {
      return sys::check("mmap", result);
    }
  }
  Stacks stacks;
  stacks.mapping_ = std::move(all).value();
  return stacks;
}

long Stacks::start(std::uint32_t index, void (*entry)(void*), void* argument) const {
  sys::CloneArguments arguments;
  arguments.flags =
      CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  arguments.stack =
      reinterpret_cast<std::uintptr_t>(mapping_.data()) + index * slot_size + guard_size;
  arguments.stack_size = stack_size;
  return sys::clone3(arguments, entry, argument);
}

} // namespace casemate::vmm
