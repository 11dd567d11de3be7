#include "jail/plan.hpp"

#include <linux/sched.h>
#include <sys/socket.h>

namespace casemate::jail {

namespace {

constexpr std::uint64_t namespace_flags = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS |
                                          CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |
                                          CLONE_NEWNET | 0x80 /* CLONE_NEWTIME */;

struct OpShape {
  std::uint32_t op;
  const char* name;
  std::size_t payload; // with the step header
  int strings;         // that follow the payload; -1: the operation has its own rule
  bool launcher;       // run by the launcher before clone3, or else by the child
};

constexpr OpShape shapes[] = {
    {CASEMATE_OP_EXEC_LABEL, "setexeccon", sizeof(casemate_text), 1, true},
    {CASEMATE_OP_SOCKET_LABEL, "setsockcreatecon", sizeof(casemate_text), 1, true},
    {CASEMATE_OP_SOCKET_PAIR, "socketpair", sizeof(casemate_socket_pair), 0, true},
    {CASEMATE_OP_POOLED, "pool", sizeof(casemate_pooled), 0, true},
    {CASEMATE_OP_TAP, "tap", sizeof(casemate_tap), -1, true},
    {CASEMATE_OP_SETNS, "setns", sizeof(casemate_setns), 0, false},
    {CASEMATE_OP_UNSHARE, "unshare", sizeof(casemate_flags), 0, false},
    {CASEMATE_OP_MOUNT, "mount", sizeof(casemate_mount), 4, false},
    {CASEMATE_OP_UMOUNT, "umount", sizeof(casemate_flags), 1, false},
    {CASEMATE_OP_PIVOT_ROOT, "pivot_root", sizeof(casemate_none), 1, false},
    {CASEMATE_OP_MOUNT_SETATTR, "mount_setattr", sizeof(casemate_mount_setattr), 1, false},
    {CASEMATE_OP_MOVE_MOUNT, "move_mount", sizeof(casemate_move_mount), 1, false},
    {CASEMATE_OP_MKDIR, "mkdir", sizeof(casemate_mode), 1, false},
    {CASEMATE_OP_CHDIR, "chdir", sizeof(casemate_none), 1, false},
    {CASEMATE_OP_CHECK_CWD, "getcwd", sizeof(casemate_none), 0, false},
    {CASEMATE_OP_HOSTNAME, "sethostname", sizeof(casemate_text), 1, false},
    {CASEMATE_OP_DOMAINNAME, "setdomainname", sizeof(casemate_text), 1, false},
    {CASEMATE_OP_RLIMIT, "prlimit", sizeof(casemate_rlimit), 0, false},
    {CASEMATE_OP_SESSION, "setsid", sizeof(casemate_none), 0, false},
    {CASEMATE_OP_KEYRING, "keyctl", sizeof(casemate_none), 0, false},
    {CASEMATE_OP_CORE_SCHED, "prctl(PR_SCHED_CORE)", sizeof(casemate_none), 0, false},
    {CASEMATE_OP_DESCRIPTORS, "descriptors", sizeof(casemate_descriptors), -1, false},
    {CASEMATE_OP_IDS, "setresuid", sizeof(casemate_ids), 0, false},
    {CASEMATE_OP_BOUNDING, "prctl(PR_CAPBSET_DROP)", sizeof(casemate_none), 0, false},
    {CASEMATE_OP_CAPABILITIES, "capset", sizeof(casemate_capabilities), 0, false},
    {CASEMATE_OP_SECUREBITS, "prctl(PR_SET_SECUREBITS)", sizeof(casemate_flags), 0, false},
    {CASEMATE_OP_NO_NEW_PRIVS, "prctl(PR_SET_NO_NEW_PRIVS)", sizeof(casemate_none), 0, false},
    {CASEMATE_OP_LANDLOCK, "landlock_restrict_self", sizeof(casemate_none), 0, false},
    {CASEMATE_OP_SECCOMP, "seccomp", sizeof(casemate_seccomp), -1, false},
    {CASEMATE_OP_PARENT_DEATH, "prctl(PR_SET_PDEATHSIG)", sizeof(casemate_flags), 0, false},
    {CASEMATE_OP_UMASK, "umask", sizeof(casemate_mode), 0, false},
    {CASEMATE_OP_EXEC, "execve", sizeof(casemate_exec), -1, false},
};

const OpShape* shape_of(std::uint32_t op) {
  for (const OpShape& shape : shapes) {
    if (shape.op == op) {
      return &shape;
    }
  }
  return nullptr;
}

/// How many NUL-terminated strings there are in `size` bytes, up to `wanted`.
std::size_t count_strings(const char* text, std::size_t size, std::size_t wanted) {
  std::size_t found = 0;
  for (std::size_t i = 0; i < size && found < wanted; ++i) {
    found += text[i] == '\0' ? 1 : 0;
  }
  return found;
}

/// Which slots hold a descriptor by the time a step runs.
class Slots {
public:
  explicit Slots(std::size_t given) {
    for (std::size_t i = 0; i < given && i < CASEMATE_SLOTS; ++i) {
      filled_[i] = true;
    }
  }
  bool fill(std::uint32_t slot) {
    if (slot >= CASEMATE_SLOTS || filled_[slot]) {
      return false;
    }
    filled_[slot] = true;
    return true;
  }
  bool has(std::uint32_t slot) const { return slot < CASEMATE_SLOTS && filled_[slot]; }

private:
  bool filled_[CASEMATE_SLOTS] = {};
};

const char* check_descriptors(const casemate_step* step, std::size_t rest, const Slots& slots) {
  const auto& descriptors = payload<casemate_descriptors>(step);
  if (descriptors.count > CASEMATE_SLOTS ||
      descriptors.count * sizeof(casemate_descriptor) > rest) {
    return "more descriptors than the step holds";
  }
  const auto* pair = reinterpret_cast<const casemate_descriptor*>(tail<casemate_descriptors>(step));
  for (std::uint32_t i = 0; i < descriptors.count; ++i) {
    if (!slots.has(pair[i].slot)) {
      return "a descriptor from an empty slot";
    }
    if (pair[i].number > 1023 || (i > 0 && pair[i].number <= pair[i - 1].number)) {
      return "descriptor numbers must ascend and stay below 1024";
    }
  }
  return nullptr;
}

bool is_address(const casemate_address& address) {
  return (address.family == AF_INET && address.prefix <= 32) ||
         (address.family == AF_INET6 && address.prefix <= 128);
}

bool is_terminated(const char (&name)[CASEMATE_TAP_NAME]) {
  return count_strings(name, sizeof name, 1) == 1;
}

const char* check_tap(const casemate_step* step, std::size_t rest, Slots& slots) {
  const auto& tap = payload<casemate_tap>(step);
  if (tap.network_slot != CASEMATE_NO_SLOT && !slots.has(tap.network_slot)) {
    return "a tap in a network namespace from an empty slot";
  }
  if ((tap.flags & ~(CASEMATE_TAP_EXISTING | CASEMATE_TAP_PERSISTENT)) != 0) {
    return "flags of a tap that there are not";
  }
  if (!is_terminated(tap.name) || tap.name[0] == '\0' || !is_terminated(tap.bridge)) {
    return "a tap, or its bridge, without a name";
  }
  if (tap.address_count > CASEMATE_TAP_MAX_ADDRESSES || tap.route_count > CASEMATE_TAP_MAX_ROUTES ||
      tap.address_count * sizeof(casemate_address) + tap.route_count * sizeof(casemate_route) >
          rest) {
    return "more addresses or routes than the step holds";
  }
  const auto* addresses = reinterpret_cast<const casemate_address*>(tail<casemate_tap>(step));
  const auto* routes = reinterpret_cast<const casemate_route*>(addresses + tap.address_count);
  for (std::uint32_t i = 0; i < tap.address_count; ++i) {
    if (!is_address(addresses[i])) {
      return "an address that is none";
    }
  }
  for (std::uint32_t i = 0; i < tap.route_count; ++i) {
    if (!is_address(routes[i].to)) {
      return "a route to where no address is";
    }
  }
  return slots.fill(tap.slot) ? nullptr : "a tap into a slot that is taken";
}

const char* check_exec(const casemate_step* step, std::size_t rest) {
  const auto& exec = payload<casemate_exec>(step);
  if (exec.argument_count == 0 || exec.argument_count > 512 || exec.environment_count > 512) {
    return "execve takes 1 to 512 arguments and up to 512 variables";
  }
  std::size_t wanted = 1 + exec.argument_count + exec.environment_count;
  if (count_strings(tail<casemate_exec>(step), rest, wanted) != wanted) {
    return "fewer strings than execve needs";
  }
  return nullptr;
}

const char* check_step(const casemate_step* step, const OpShape& shape, Slots& slots) {
  std::size_t rest = step->size - shape.payload;
  const char* text = reinterpret_cast<const char*>(step) + shape.payload;
  if (shape.strings > 0) {
    auto wanted = static_cast<std::size_t>(shape.strings);
    if (count_strings(text, rest, wanted) != wanted) {
      return "fewer strings than the step needs";
    }
  }
  switch (step->op) {
  case CASEMATE_OP_EXEC_LABEL:
  case CASEMATE_OP_SOCKET_LABEL:
  case CASEMATE_OP_HOSTNAME:
  case CASEMATE_OP_DOMAINNAME:
    return next_string(text) - text ==
                   static_cast<std::ptrdiff_t>(payload<casemate_text>(step).length) + 1
               ? nullptr
               : "a text's length is not its string's";
  case CASEMATE_OP_SOCKET_PAIR: {
    const auto& pair = payload<casemate_socket_pair>(step);
    return slots.fill(pair.child_slot) && slots.fill(pair.parent_slot)
               ? nullptr
               : "a socket pair into a slot that is taken";
  }
  case CASEMATE_OP_POOLED: {
    const auto& pooled = payload<casemate_pooled>(step);
    if (pooled.pool != CASEMATE_POOL_NET && pooled.pool != CASEMATE_POOL_USER) {
      return "no such pool";
    }
    if (pooled.lease_slot != CASEMATE_NO_SLOT &&
        (pooled.pool != CASEMATE_POOL_USER || !slots.fill(pooled.lease_slot))) {
      return "a lease into a slot that is taken, or of no user namespace";
    }
    return slots.fill(pooled.slot) ? nullptr : "a pooled namespace into a slot that is taken";
  }
  case CASEMATE_OP_TAP:
    return check_tap(step, rest, slots);
  case CASEMATE_OP_SETNS:
    return slots.has(payload<casemate_setns>(step).slot) ? nullptr : "setns from an empty slot";
  case CASEMATE_OP_MOVE_MOUNT:
    return slots.has(payload<casemate_move_mount>(step).slot) ? nullptr
                                                              : "move_mount from an empty slot";
  case CASEMATE_OP_DESCRIPTORS:
    return check_descriptors(step, rest, slots);
  case CASEMATE_OP_SECCOMP: {
    const auto& filter = payload<casemate_seccomp>(step);
    return filter.count > 0 && filter.count <= 4096 && filter.count * std::size_t{8} <= rest
               ? nullptr
               : "a seccomp program has 1 to 4096 instructions";
  }
  case CASEMATE_OP_EXEC:
    return check_exec(step, rest);
  default:
    return nullptr;
  }
}

} // namespace

const char* op_name(std::uint32_t op) {
  const OpShape* shape = shape_of(op);
  return shape == nullptr ? "unknown" : shape->name;
}

PlanFault check_plan(std::span<const std::byte> plan, std::size_t slots_given) {
  if (plan.size() < sizeof(casemate_plan) || plan.size() > CASEMATE_PLAN_MAX_SIZE) {
    return {"size out of range"};
  }
  const casemate_plan& head = header(plan.data());
  if (head.magic != CASEMATE_PLAN_MAGIC || head.version != CASEMATE_PLAN_VERSION ||
      head.size != plan.size() || head.reserved != 0) {
    return {"not a plan of this version"};
  }
  if ((head.clone_flags & ~namespace_flags) != 0) {
    return {"clone flags other than CLONE_NEW*"};
  }
  if (head.launcher_steps > CASEMATE_PLAN_MAX_STEPS || head.child_steps > CASEMATE_PLAN_MAX_STEPS ||
      head.launcher_steps + head.child_steps > CASEMATE_PLAN_MAX_STEPS) {
    return {"too many steps"};
  }
  if (slots_given > CASEMATE_SLOTS) {
    return {"too many descriptors"};
  }
  Slots slots(slots_given);
  std::size_t offset = sizeof(casemate_plan);
  std::size_t count = head.launcher_steps + head.child_steps;
  for (std::size_t i = 0; i < count; ++i) {
    if (plan.size() - offset < sizeof(casemate_step)) {
      return {"truncated", i};
    }
    const auto* step = reinterpret_cast<const casemate_step*>(plan.data() + offset);
    const OpShape* shape = shape_of(step->op);
    if (shape == nullptr) {
      return {"no such operation", i};
    }
    if (step->size < shape->payload || step->size % 8 != 0 || step->size > plan.size() - offset) {
      return {"a step's size is not its operation's", i};
    }
    if (shape->launcher != (i < head.launcher_steps)) {
      return {"a step on the wrong side of clone3", i};
    }
    if (step->op == CASEMATE_OP_EXEC && i + 1 != count) {
      return {"execve is the last step", i};
    }
    if (const char* reason = check_step(step, *shape, slots)) {
      return {reason, i};
    }
    offset += step->size;
  }
  if (offset != plan.size()) {
    return {"bytes after the last step"};
  }
  if (head.cgroup_slot != CASEMATE_NO_SLOT && !slots.has(head.cgroup_slot)) {
    return {"a cgroup from an empty slot"};
  }
  return {};
}

} // namespace casemate::jail
