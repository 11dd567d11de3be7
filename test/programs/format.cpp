// Prints the constants, sizes and offsets of the formats that TypeScript writes and
// reads, as JSON. The compiler is the judge of what the headers say.
#include "jail/plan.h"
#include "vmm/wire.h"

#include <cstddef>
#include <cstdio>
#include <linux/kvm.h>
#include <linux/sched.h>
#include <sys/resource.h>
#include <sys/socket.h>

namespace {

const char* separator = "{";

void print(const char* name, unsigned long long value) {
  std::printf("%s\"%s\":%llu", separator, name, value);
  separator = ",";
}

} // namespace

#define CONSTANT(name) print(#name, name)
#define SIZE(type) print("sizeof " #type, sizeof(struct type))
#define OFFSET(type, member) print(#type "." #member, offsetof(struct type, member))

int main() {
  CONSTANT(CASEMATE_PLAN_MAGIC);
  CONSTANT(CASEMATE_PLAN_VERSION);
  CONSTANT(CASEMATE_PLAN_MAX_STEPS);
  CONSTANT(CASEMATE_PLAN_MAX_SIZE);
  CONSTANT(CASEMATE_SLOTS);
  CONSTANT(CASEMATE_NO_SLOT);
  SIZE(casemate_plan);
  OFFSET(casemate_plan, magic);
  OFFSET(casemate_plan, version);
  OFFSET(casemate_plan, size);
  OFFSET(casemate_plan, launcher_steps);
  OFFSET(casemate_plan, child_steps);
  OFFSET(casemate_plan, cgroup_slot);
  OFFSET(casemate_plan, clone_flags);
  OFFSET(casemate_plan, check);
  OFFSET(casemate_plan, reserved);

  CONSTANT(CASEMATE_CHECK_IDS);
  CONSTANT(CASEMATE_CHECK_CAPABILITIES);
  CONSTANT(CASEMATE_CHECK_NO_NEW_PRIVS);
  CONSTANT(CASEMATE_CHECK_SECCOMP);
  CONSTANT(CASEMATE_CHECK_LABEL);

  CONSTANT(CASEMATE_OP_EXEC_LABEL);
  CONSTANT(CASEMATE_OP_SOCKET_LABEL);
  CONSTANT(CASEMATE_OP_SOCKET_PAIR);
  CONSTANT(CASEMATE_OP_POOLED);
  CONSTANT(CASEMATE_OP_TAP);
  CONSTANT(CASEMATE_OP_SETNS);
  CONSTANT(CASEMATE_OP_UNSHARE);
  CONSTANT(CASEMATE_OP_MOUNT);
  CONSTANT(CASEMATE_OP_UMOUNT);
  CONSTANT(CASEMATE_OP_PIVOT_ROOT);
  CONSTANT(CASEMATE_OP_MOUNT_SETATTR);
  CONSTANT(CASEMATE_OP_MOVE_MOUNT);
  CONSTANT(CASEMATE_OP_MKDIR);
  CONSTANT(CASEMATE_OP_CHDIR);
  CONSTANT(CASEMATE_OP_CHECK_CWD);
  CONSTANT(CASEMATE_OP_HOSTNAME);
  CONSTANT(CASEMATE_OP_DOMAINNAME);
  CONSTANT(CASEMATE_OP_RLIMIT);
  CONSTANT(CASEMATE_OP_SESSION);
  CONSTANT(CASEMATE_OP_KEYRING);
  CONSTANT(CASEMATE_OP_CORE_SCHED);
  CONSTANT(CASEMATE_OP_DESCRIPTORS);
  CONSTANT(CASEMATE_OP_IDS);
  CONSTANT(CASEMATE_OP_BOUNDING);
  CONSTANT(CASEMATE_OP_CAPABILITIES);
  CONSTANT(CASEMATE_OP_SECUREBITS);
  CONSTANT(CASEMATE_OP_NO_NEW_PRIVS);
  CONSTANT(CASEMATE_OP_LANDLOCK);
  CONSTANT(CASEMATE_OP_SECCOMP);
  CONSTANT(CASEMATE_OP_PARENT_DEATH);
  CONSTANT(CASEMATE_OP_UMASK);
  CONSTANT(CASEMATE_OP_EXEC);

  CONSTANT(CASEMATE_POOL_NET);
  CONSTANT(CASEMATE_POOL_USER);
  CONSTANT(SOCK_STREAM);
  CONSTANT(SOCK_SEQPACKET);

  SIZE(casemate_step);
  OFFSET(casemate_step, op);
  OFFSET(casemate_step, size);
  SIZE(casemate_text);
  OFFSET(casemate_text, length);
  SIZE(casemate_pooled);
  OFFSET(casemate_pooled, pool);
  OFFSET(casemate_pooled, slot);
  OFFSET(casemate_pooled, lease_slot);
  SIZE(casemate_socket_pair);
  OFFSET(casemate_socket_pair, type);
  OFFSET(casemate_socket_pair, child_slot);
  OFFSET(casemate_socket_pair, parent_slot);
  CONSTANT(CASEMATE_TAP_NAME);
  CONSTANT(CASEMATE_TAP_MAX_ADDRESSES);
  CONSTANT(CASEMATE_TAP_MAX_ROUTES);
  CONSTANT(CASEMATE_TAP_EXISTING);
  CONSTANT(CASEMATE_TAP_PERSISTENT);
  CONSTANT(AF_INET);
  CONSTANT(AF_INET6);
  SIZE(casemate_tap);
  OFFSET(casemate_tap, network_slot);
  OFFSET(casemate_tap, slot);
  OFFSET(casemate_tap, flags);
  OFFSET(casemate_tap, mtu);
  OFFSET(casemate_tap, address_count);
  OFFSET(casemate_tap, route_count);
  OFFSET(casemate_tap, name);
  OFFSET(casemate_tap, bridge);
  SIZE(casemate_address);
  OFFSET(casemate_address, family);
  OFFSET(casemate_address, prefix);
  OFFSET(casemate_address, bytes);
  SIZE(casemate_route);
  OFFSET(casemate_route, to);
  OFFSET(casemate_route, gateway);
  OFFSET(casemate_route, has_gateway);
  SIZE(casemate_setns);
  OFFSET(casemate_setns, slot);
  OFFSET(casemate_setns, type);
  SIZE(casemate_flags);
  OFFSET(casemate_flags, flags);
  SIZE(casemate_mount);
  OFFSET(casemate_mount, flags);
  SIZE(casemate_none);
  SIZE(casemate_mount_setattr);
  OFFSET(casemate_mount_setattr, set);
  OFFSET(casemate_mount_setattr, clear);
  OFFSET(casemate_mount_setattr, propagation);
  OFFSET(casemate_mount_setattr, recursive);
  SIZE(casemate_move_mount);
  OFFSET(casemate_move_mount, slot);
  SIZE(casemate_mode);
  OFFSET(casemate_mode, mode);
  SIZE(casemate_rlimit);
  OFFSET(casemate_rlimit, resource);
  OFFSET(casemate_rlimit, soft);
  OFFSET(casemate_rlimit, hard);
  SIZE(casemate_descriptors);
  OFFSET(casemate_descriptors, count);
  SIZE(casemate_descriptor);
  OFFSET(casemate_descriptor, slot);
  OFFSET(casemate_descriptor, number);
  SIZE(casemate_ids);
  OFFSET(casemate_ids, uid);
  OFFSET(casemate_ids, gid);
  OFFSET(casemate_ids, clear_groups);
  SIZE(casemate_capabilities);
  OFFSET(casemate_capabilities, effective);
  OFFSET(casemate_capabilities, permitted);
  OFFSET(casemate_capabilities, inheritable);
  SIZE(casemate_seccomp);
  OFFSET(casemate_seccomp, flags);
  OFFSET(casemate_seccomp, count);
  SIZE(casemate_exec);
  OFFSET(casemate_exec, argument_count);
  OFFSET(casemate_exec, environment_count);

  CONSTANT(CLONE_NEWTIME);
  CONSTANT(CLONE_NEWNS);
  CONSTANT(CLONE_NEWCGROUP);
  CONSTANT(CLONE_NEWUTS);
  CONSTANT(CLONE_NEWIPC);
  CONSTANT(CLONE_NEWUSER);
  CONSTANT(CLONE_NEWPID);
  CONSTANT(CLONE_NEWNET);

  CONSTANT(RLIMIT_CPU);
  CONSTANT(RLIMIT_FSIZE);
  CONSTANT(RLIMIT_DATA);
  CONSTANT(RLIMIT_STACK);
  CONSTANT(RLIMIT_CORE);
  CONSTANT(RLIMIT_RSS);
  CONSTANT(RLIMIT_NPROC);
  CONSTANT(RLIMIT_NOFILE);
  CONSTANT(RLIMIT_MEMLOCK);
  CONSTANT(RLIMIT_AS);
  CONSTANT(RLIMIT_LOCKS);
  CONSTANT(RLIMIT_SIGPENDING);
  CONSTANT(RLIMIT_MSGQUEUE);
  CONSTANT(RLIMIT_NICE);
  CONSTANT(RLIMIT_RTPRIO);
  CONSTANT(RLIMIT_RTTIME);

  CONSTANT(CASEMATE_WIRE_MAGIC);
  CONSTANT(CASEMATE_WIRE_VERSION);
  CONSTANT(CASEMATE_FD_CONTROL);
  CONSTANT(CASEMATE_FD_KVM);
  CONSTANT(CASEMATE_FD_GUEST);
  CONSTANT(CASEMATE_FD_CONSOLE_OUT);
  CONSTANT(CASEMATE_FD_CONSOLE_IN);
  CONSTANT(CASEMATE_FD_INPUT);
  CONSTANT(CASEMATE_FD_LEASE);
  CONSTANT(CASEMATE_FD_INITRDS);
  CONSTANT(CASEMATE_FD_INITRDS_LAST);
  CONSTANT(CASEMATE_FD_END);
  CONSTANT(CASEMATE_COMMAND_CONFIGURE);
  CONSTANT(CASEMATE_COMMAND_RUN);
  CONSTANT(CASEMATE_COMMAND_PAUSE);
  CONSTANT(CASEMATE_COMMAND_RESUME);
  CONSTANT(CASEMATE_IMAGE_AUTO);
  CONSTANT(CASEMATE_IMAGE_ELF);
  CONSTANT(CASEMATE_IMAGE_FLAT);
  CONSTANT(CASEMATE_IMAGE_LINUX);
  CONSTANT(CASEMATE_IMAGE_PVH);
  CONSTANT(CASEMATE_CONFIGURE_CONSOLE);
  CONSTANT(CASEMATE_CONFIGURE_LEASE);
  CONSTANT(CASEMATE_CONFIGURE_LANDLOCK);
  CONSTANT(CASEMATE_CONFIGURE_SECCOMP);
  CONSTANT(CASEMATE_CONFIGURE_NO_NEW_PRIVS);
  CONSTANT(CASEMATE_CONFIGURE_PARENT_DEATH);
  CONSTANT(CASEMATE_CONFIGURE_PAUSED);
  SIZE(kvm_cpuid_entry2);
  CONSTANT(CASEMATE_MAX_VCPUS);
  CONSTANT(CASEMATE_MAX_INITRDS);
  CONSTANT(CASEMATE_MAX_CPUID);
  CONSTANT(CASEMATE_MAX_ARGUMENTS_SIZE);
  CONSTANT(CASEMATE_MAX_COMMAND_LINE);
  CONSTANT(CASEMATE_MAX_MESSAGE);
  SIZE(casemate_command);
  OFFSET(casemate_command, type);
  OFFSET(casemate_command, size);
  SIZE(casemate_configure);
  OFFSET(casemate_configure, magic);
  OFFSET(casemate_configure, version);
  OFFSET(casemate_configure, memory_size);
  OFFSET(casemate_configure, flags);
  OFFSET(casemate_configure, format);
  OFFSET(casemate_configure, vcpu_count);
  OFFSET(casemate_configure, cpl);
  OFFSET(casemate_configure, cpuid_count);
  OFFSET(casemate_configure, argument_count);
  OFFSET(casemate_configure, arguments_size);
  OFFSET(casemate_configure, run_size);
  OFFSET(casemate_configure, input_count);
  OFFSET(casemate_configure, page_shift);

  CONSTANT(CASEMATE_EVENT_JAILED);
  CONSTANT(CASEMATE_EVENT_DOORBELL);
  CONSTANT(CASEMATE_EVENT_PAUSED);
  CONSTANT(CASEMATE_EVENT_RESUMED);
  CONSTANT(CASEMATE_EVENT_EXITED);
  CONSTANT(CASEMATE_EVENT_FAILED);
  CONSTANT(CASEMATE_EVENT_BLOCKED);
  SIZE(casemate_event);
  OFFSET(casemate_event, type);
  OFFSET(casemate_event, size);
  CONSTANT(CASEMATE_STAMP_MAIN);
  CONSTANT(CASEMATE_STAMP_CONFIGURED);
  CONSTANT(CASEMATE_STAMP_JAILED);
  CONSTANT(CASEMATE_STAMP_VM);
  CONSTANT(CASEMATE_STAMP_MEMORY);
  CONSTANT(CASEMATE_STAMP_IRQCHIP);
  CONSTANT(CASEMATE_STAMP_VCPU);
  CONSTANT(CASEMATE_STAMP_CONFINED);
  CONSTANT(CASEMATE_STAMP_LOADED);
  CONSTANT(CASEMATE_STAMP_RUN);
  CONSTANT(CASEMATE_STAMP_DOORBELL);
  CONSTANT(CASEMATE_STAMP_COUNT);
  SIZE(casemate_doorbell);
  OFFSET(casemate_doorbell, stamps);
  CONSTANT(CASEMATE_EXIT_GUEST);
  CONSTANT(CASEMATE_EXIT_FAULT);
  CONSTANT(CASEMATE_EXIT_SHUTDOWN);
  CONSTANT(CASEMATE_EXIT_INTERNAL);
  CONSTANT(CASEMATE_EXIT_PROTOCOL);
  CONSTANT(CASEMATE_EXIT_HOST);
  CONSTANT(CASEMATE_EXIT_POWEROFF);
  CONSTANT(CASEMATE_EXIT_REBOOT);
  CONSTANT(CASEMATE_EXIT_PANIC);
  SIZE(casemate_exited);
  OFFSET(casemate_exited, reason);
  OFFSET(casemate_exited, code);
  OFFSET(casemate_exited, vector);
  OFFSET(casemate_exited, error_code);
  OFFSET(casemate_exited, address);
  OFFSET(casemate_exited, at);
  OFFSET(casemate_exited, has_registers);
  OFFSET(casemate_exited, registers);
  SIZE(casemate_registers);
  OFFSET(casemate_registers, rax);
  OFFSET(casemate_registers, rbx);
  OFFSET(casemate_registers, rcx);
  OFFSET(casemate_registers, rdx);
  OFFSET(casemate_registers, rsi);
  OFFSET(casemate_registers, rdi);
  OFFSET(casemate_registers, rsp);
  OFFSET(casemate_registers, rbp);
  OFFSET(casemate_registers, r8);
  OFFSET(casemate_registers, r9);
  OFFSET(casemate_registers, r10);
  OFFSET(casemate_registers, r11);
  OFFSET(casemate_registers, r12);
  OFFSET(casemate_registers, r13);
  OFFSET(casemate_registers, r14);
  OFFSET(casemate_registers, r15);
  OFFSET(casemate_registers, rip);
  OFFSET(casemate_registers, rflags);
  OFFSET(casemate_registers, cr0);
  OFFSET(casemate_registers, cr2);
  OFFSET(casemate_registers, cr3);
  OFFSET(casemate_registers, cr4);
  OFFSET(casemate_registers, efer);
  CONSTANT(CASEMATE_SETUP_CONFIGURE);
  CONSTANT(CASEMATE_SETUP_DESCRIPTORS);
  CONSTANT(CASEMATE_SETUP_JAIL);
  CONSTANT(CASEMATE_SETUP_VM);
  CONSTANT(CASEMATE_SETUP_MEMORY);
  CONSTANT(CASEMATE_SETUP_IRQCHIP);
  CONSTANT(CASEMATE_SETUP_VCPU);
  CONSTANT(CASEMATE_SETUP_GUEST);
  CONSTANT(CASEMATE_IMAGE_TRUNCATED);
  CONSTANT(CASEMATE_IMAGE_NOT_X86_64);
  CONSTANT(CASEMATE_IMAGE_NOT_STATIC);
  CONSTANT(CASEMATE_IMAGE_BAD_HEADER);
  CONSTANT(CASEMATE_IMAGE_BAD_SEGMENT);
  CONSTANT(CASEMATE_IMAGE_OUTSIDE_RAM);
  CONSTANT(CASEMATE_IMAGE_BAD_ENTRY);
  CONSTANT(CASEMATE_IMAGE_EMPTY);
  CONSTANT(CASEMATE_IMAGE_INPUT_TOO_BIG);
  CONSTANT(CASEMATE_IMAGE_COMPRESSED);
  CONSTANT(CASEMATE_IMAGE_KERNEL_OUTSIDE_RAM);
  CONSTANT(CASEMATE_IMAGE_INITRD_TOO_BIG);
  CONSTANT(CASEMATE_IMAGE_NOT_PVH);
  SIZE(casemate_failed);
  OFFSET(casemate_failed, step);
  OFFSET(casemate_failed, error);
  OFFSET(casemate_failed, detail);
  OFFSET(casemate_failed, call);
  SIZE(casemate_blocked);
  OFFSET(casemate_blocked, number);
  OFFSET(casemate_blocked, arch);
  OFFSET(casemate_blocked, argument);
  std::puts("}");
}
