"""What the domains of a monitor and of a service that launches some can reach, asked of a whole policy with setools. Prints TAP.

    analysis.py <policy> [<domain>]

Booleans count as on, but for casemate_debug: whatever an administrator switches, this must hold.
"""
import sys

import setools

policy = setools.SELinuxPolicy(sys.argv[1])
VMM = sys.argv[2] if len(sys.argv) > 2 else "casemate_vmm_t"
OWN_FILES = {"casemate_image_t", "casemate_content_t", "casemate_state_t", "casemate_vmm_exec_t"}
FILES = {"file", "dir", "lnk_file", "chr_file", "blk_file", "sock_file", "fifo_file"}
count = 0


def check(title, wrong):
    """A property that holds where nothing is wrong with it."""
    global count
    count += 1
    wrong = sorted(str(one) for one in wrong)
    print(f"{'not ok' if wrong else 'ok'} {count} - {title}")
    for one in wrong[:20]:
        print(f"#   {one}")


def of_debug(rule):
    try:
        return any(str(boolean) == "casemate_debug" for boolean in rule.conditional.booleans)
    except setools.exception.RuleNotConditional:
        return False


def allowed(**wanted):
    """Every (source, target, class, permission), attributes expanded."""
    found = setools.TERuleQuery(policy, ruletype=["allow"], **wanted).results()
    for rule in found:
        if of_debug(rule):
            continue
        for single in rule.expand():
            for permission in single.perms:
                yield str(single.source), str(single.target), str(single.tclass), str(permission)


def of(domain):
    return {rule for rule in allowed(source=domain) if rule[0] == domain}


mine = of(VMM)


def types(attribute):
    try:
        return {str(one) for one in policy.lookup_typeattr(attribute).expand()}
    except setools.exception.InvalidType:
        return set()


def rules(test, within=mine):
    return {" ".join(rule) for rule in within if test(*rule[1:])}


check("the domain is known, and constrained by its categories",
      [] if mine and VMM in types("mcs_constrained_type") else [VMM])

secrets = types("auth_file_type") | {"shadow_t", "passwd_file_t"}
check("it has no rule at all over shadow and other secrets of authentication",
      rules(lambda target, *_: target in secrets))

homes = types("user_home_type") | types("user_home_content_type") | {"user_home_dir_t", "home_root_t", "user_home_t"}
check("nor over the content of homes", rules(lambda target, *_: target in homes))

# What the base policy lets every domain touch, and nothing else.
written = {"null_device_t", "zero_device_t", "devtty_t", "setrans_runtime_t"} | {VMM, "casemate_image_t", "casemate_state_t"}
devices = {"kvm_device_t", "tun_tap_device_t"}
changes = {"write", "append", "create", "unlink", "link", "rename", "setattr", "add_name", "remove_name", "rmdir",
           "relabelfrom", "relabelto", "mounton"}
check("it changes nothing but its own images, its leases and the devices it is given",
      rules(lambda target, kind, permission: kind in FILES and permission in changes
            and target not in written | devices))
check("it opens none of them by a path",
      rules(lambda target, kind, permission: permission == "open" and target in OWN_FILES | devices))
check("it relabels nothing, and mounts nothing",
      rules(lambda _, kind, permission: permission in {"relabelfrom", "relabelto", "mounton"} or kind == "filesystem"))

sockets = {str(one) for one in policy.classes() if str(one).endswith("socket")}
check("it has sockets of no family but Unix streams, and labelled packets that nobody sends it",
      rules(lambda target, kind, permission: kind in sockets and kind not in {"unix_stream_socket", "unix_dgram_socket"}
            and permission != "recvfrom"))
check("it binds to no port and sends over no interface or node",
      rules(lambda _, kind, __: kind in {"node", "netif", "packet"}))
callers = types("casemate_caller")
stream = {VMM, "setrans_t"} | callers
check("it connects to no program but the one that translates labels for all",
      rules(lambda target, _, permission: permission in {"connectto", "sendto"} and target not in {VMM, "setrans_t"}))
check("streams are its own, or its launcher's",
      rules(lambda target, kind, permission: kind == "unix_stream_socket" and target not in stream))

check("it traces no process, itself included", rules(lambda _, kind, permission: permission == "ptrace"))
check("it signals nobody but its own kind",
      rules(lambda target, kind, permission: kind == "process" and target != VMM and permission != "sigchld"))
check("it has no capability", rules(lambda _, kind, __: kind.startswith("cap")))
check("it loads no kernel module, no policy and no BPF program",
      rules(lambda _, kind, permission: kind in {"system", "security", "bpf", "perf_event", "user_namespace"}))
check("its memory is never writable and executable",
      rules(lambda _, kind, permission: permission in {"execmem", "execstack", "execheap", "execmod"}
            and kind == "process"))

check("it leaves its domain by no transition",
      rules(lambda _, kind, permission: kind == "process" and permission in {"transition", "dyntransition", "setcurrent", "setexec"}))
check("it executes no program, its own neither", rules(lambda _, kind, permission: permission == "execute_no_trans"))
check("no rule transitions it of its own accord",
      [rule for rule in setools.TERuleQuery(policy, ruletype=["type_transition"], source=VMM, tclass=["process"]).results()])

# Whoever may make a process of every domain there is, may make one of this.
everywhere = {source for source, target, _, __ in allowed(target="svirt_t", tclass=["process"], perms=["transition"])}
check("only callers may start one",
      {source for source, target, _, __ in allowed(target=VMM, tclass=["process"], perms=["transition"])
       if target == VMM and source not in callers | everywhere})
check("only its own binary is a way in",
      {target for source, target, _, __ in allowed(source=VMM, tclass=["file"], perms=["entrypoint"])
       if source == VMM and target != "casemate_vmm_exec_t"})
check("no rule of ours is for a caller with no_new_privs, or for a mount that forbids transitions",
      [rule for rule in setools.TERuleQuery(policy, target=VMM, target_indirect=False, tclass=["process2"]).results()])

constrained = {}
for rule in policy.constraints():
    if str(rule.ruletype) == "mlsconstrain" and "dom" in str(rule.expression):
        for permission in rule.perms:
            constrained.setdefault(str(rule.tclass), set()).add(str(permission))
# Of a process with itself.
alone = {("process", "fork"), ("lockdown", "integrity"), ("lockdown", "confidentiality")}
shared = {VMM, "casemate_image_t", "casemate_content_t"}
check("whatever it may do to another VM or its files, categories decide",
      rules(lambda target, kind, permission: target in shared and kind not in {"association", "peer", "fd"}
            and (kind, permission) not in alone and permission not in constrained.get(kind, set())))

SERVICE = "casemate_service_t"
its = of(SERVICE)
IMAGES = {"casemate_image_t", "casemate_content_t", "casemate_state_t"}
check("a service has no rule over secrets of authentication and homes",
      rules(lambda target, *_: target in secrets | homes, its))
check("it starts nothing but monitors, and executes no program in its own domain",
      rules(lambda target, _, permission: permission in {"execute_no_trans", "dyntransition", "setcurrent"}
            or (permission == "transition" and target != VMM), its))
check("it has sockets for its clients, the kernel and taps, and no network",
      rules(lambda target, kind, permission: (kind in sockets and permission != "recvfrom" and kind not in {
          "unix_stream_socket", "unix_dgram_socket", "tun_socket", "netlink_audit_socket", "netlink_selinux_socket",
          "netlink_route_socket"}) or kind in {"node", "netif", "packet"}, its))
check("it traces nothing, and signals only itself and monitors",
      rules(lambda target, kind, permission: permission == "ptrace" or
            (permission in {"signal", "sigkill", "sigstop", "signull"} and target not in {SERVICE, VMM}), its))
check("it writes to no file of another user, and has no rights over the machine",
      rules(lambda _, kind, permission: kind in {"capability", "cap_userns"} and permission not in {
          "dac_read_search", "kill", "net_admin", "setgid", "setpcap", "setuid", "sys_admin", "sys_ptrace", "sys_resource"}
            and (kind, permission) != ("cap_userns", "sys_nice"), its))
check("it asks the policy, and changes neither that nor the mode nor the kernel's code",
      rules(lambda _, kind, permission: kind in {"system", "bpf", "perf_event"} or
            (kind == "security" and permission not in {"check_context", "compute_av"}), its))
check("it relabels only what VMs are given, and what it makes in memory",
      rules(lambda target, _, permission: permission in {"relabelfrom", "relabelto"}
            and target not in IMAGES | {"tmpfs_t", SERVICE}, its))
check("it changes files of VMs, of the kernel and of memory, and no others",
      rules(lambda target, kind, permission: kind in FILES and permission in changes and permission != "mounton"
            and target not in written | devices | IMAGES | {SERVICE, "tmpfs_t", "cgroup_t", "sysctl_t", "sysctl_net_t",
                                                            "security_t", "var_run_t", "unconfined_t"}, its))

print(f"1..{count}")
