/*
 * The launch plan: what TypeScript composes, the launcher checks, and the child
 * between clone3 and execve walks with raw system calls.
 *
 * A plan is one flat buffer in the machine's byte order: struct casemate_plan,
 * then steps. A step is struct casemate_step, a fixed payload (one of the structs
 * below), then its strings, each NUL-terminated; its size is a multiple of 8.
 * plan_check() holds every length and every string of it against the buffer
 * before a process exists, so the child can walk it without a check.
 *
 * src/jail/encode.ts writes this format; a test holds it against this file.
 */
#ifndef CASEMATE_PLAN_H
#define CASEMATE_PLAN_H

#include <linux/types.h>

#define CASEMATE_PLAN_MAGIC 0x6e6c706du /* "mpln" */
#define CASEMATE_PLAN_VERSION 1u
#define CASEMATE_PLAN_MAX_SIZE (1u << 20)
#define CASEMATE_PLAN_MAX_STEPS 96u

/*
 * Descriptors in a plan are slots, not numbers, so that one encoded plan serves
 * many launches: slot n is the nth descriptor handed over with the launch, or one
 * that a launcher step made. CASEMATE_NO_SLOT stands for none.
 */
#define CASEMATE_SLOTS 24u
#define CASEMATE_NO_SLOT 0xffffffffu

struct casemate_plan {
  __u32 magic;
  __u32 version;
  __u32 size;           /* of the whole buffer, bytes */
  __u32 launcher_steps; /* the first of the steps, run by the launcher before clone3 */
  __u32 child_steps;    /* the others, run by the child; the last one is EXEC */
  __u32 cgroup_slot;    /* CLONE_INTO_CGROUP, or CASEMATE_NO_SLOT */
  __u64 clone_flags;    /* CLONE_NEW* only */
  __u32 check;          /* enum casemate_check: what the launcher reads back after execve */
  __u32 reserved;       /* 0 */
};

enum casemate_check {
  CASEMATE_CHECK_IDS = 1u << 0,          /* uid and gid as the plan set them, no other groups */
  CASEMATE_CHECK_CAPABILITIES = 1u << 1, /* every capability set is empty, bounding set too */
  CASEMATE_CHECK_NO_NEW_PRIVS = 1u << 2,
  CASEMATE_CHECK_SECCOMP = 1u << 3,
  CASEMATE_CHECK_LABEL = 1u << 4 /* SELinux: the context is the one asked for */
};

enum casemate_op {
  /* By the launcher, before clone3. */
  /* casemate_text, the SELinux label of the next execve and of sockets made from here on; an
   * empty one is that of the launch, so that VMs with categories of their own share a plan. */
  CASEMATE_OP_EXEC_LABEL = 1,
  CASEMATE_OP_SOCKET_LABEL = 2,
  CASEMATE_OP_SOCKET_PAIR = 3, /* casemate_socket_pair */
  CASEMATE_OP_POOLED = 4,      /* casemate_pooled */
  CASEMATE_OP_TAP = 5,         /* casemate_tap + addresses, routes */

  /* By the child. */
  CASEMATE_OP_SETNS = 16,      /* casemate_setns; setns(2) */
  CASEMATE_OP_UNSHARE = 17,    /* casemate_flags; unshare(2) */
  CASEMATE_OP_MOUNT = 18,      /* casemate_mount + source, target, type, data; mount(2) */
  CASEMATE_OP_UMOUNT = 19,     /* casemate_flags + target; umount2(2) */
  CASEMATE_OP_PIVOT_ROOT = 20, /* casemate_none + new root; pivot_root(2), the old one detached */
  CASEMATE_OP_MOUNT_SETATTR = 21, /* casemate_mount_setattr + target; mount_setattr(2) */
  CASEMATE_OP_MOVE_MOUNT = 22,    /* casemate_move_mount + target; move_mount(2) of a mount fd */
  CASEMATE_OP_MKDIR = 23,         /* casemate_mode + path; mkdir(2) */
  CASEMATE_OP_CHDIR = 24,         /* casemate_none + path; chdir(2) */
  CASEMATE_OP_CHECK_CWD = 25,     /* casemate_none; the cwd lies inside the root (getcwd(2)) */
  CASEMATE_OP_HOSTNAME = 26,      /* casemate_text; sethostname(2) */
  CASEMATE_OP_DOMAINNAME = 27,    /* casemate_text; setdomainname(2) */
  CASEMATE_OP_RLIMIT = 28,        /* casemate_rlimit; prlimit(2) */
  CASEMATE_OP_SESSION = 29,       /* casemate_none; setsid(2) */
  CASEMATE_OP_KEYRING = 30,       /* casemate_none; keyctl(2) KEYCTL_JOIN_SESSION_KEYRING */
  CASEMATE_OP_CORE_SCHED = 31,    /* casemate_none; prctl(2) PR_SCHED_CORE_CREATE */
  CASEMATE_OP_DESCRIPTORS = 32,   /* casemate_descriptors + pairs; dup3(2), close_range(2) */
  CASEMATE_OP_IDS = 34,           /* casemate_ids; setgroups(2), setresgid(2), setresuid(2) */
  CASEMATE_OP_BOUNDING = 35,      /* casemate_none; prctl(2) PR_CAPBSET_DROP of all */
  CASEMATE_OP_CAPABILITIES = 36,  /* casemate_capabilities; capset(2), PR_CAP_AMBIENT_CLEAR_ALL */
  CASEMATE_OP_SECUREBITS = 37,    /* casemate_flags; prctl(2) PR_SET_SECUREBITS */
  CASEMATE_OP_NO_NEW_PRIVS = 38,  /* casemate_none; prctl(2) PR_SET_NO_NEW_PRIVS */
  CASEMATE_OP_LANDLOCK = 39,      /* casemate_none; landlock_restrict_self(2): nothing is allowed */
  CASEMATE_OP_SECCOMP = 40,       /* casemate_seccomp + struct sock_filter[]; seccomp(2) */
  CASEMATE_OP_PARENT_DEATH = 41,  /* casemate_flags: the signal; prctl(2) PR_SET_PDEATHSIG */
  CASEMATE_OP_UMASK = 42,         /* casemate_mode; umask(2) */
  CASEMATE_OP_EXEC = 43,          /* casemate_exec + path, arguments, environment; execve(2) */
  CASEMATE_OP_END
};

struct casemate_step {
  __u32 op;   /* enum casemate_op */
  __u32 size; /* with this header, payload and strings; a multiple of 8 */
};

struct casemate_none {
  struct casemate_step step;
};

struct casemate_text {
  struct casemate_step step;
  __u32 length; /* of the one string that follows, without its NUL */
  __u32 reserved;
};

enum casemate_pool {
  CASEMATE_POOL_NET = 1, /* a fresh network namespace */
  CASEMATE_POOL_USER = 2 /* a user namespace with its maps written, that can make no namespaces */
};

struct casemate_pooled {
  struct casemate_step step;
  __u32 pool;       /* enum casemate_pool */
  __u32 slot;       /* where its descriptor goes */
  __u32 lease_slot; /* of a user namespace: its lease of a user id, or CASEMATE_NO_SLOT */
  __u32 reserved;
};

#define CASEMATE_TAP_NAME 16u /* with its NUL: IFNAMSIZ */
#define CASEMATE_TAP_MAX_ADDRESSES 16u
#define CASEMATE_TAP_MAX_ROUTES 16u

enum casemate_tap_flags {
  CASEMATE_TAP_EXISTING = 1u << 0,  /* one end of a tap that is there; nothing of it is changed */
  CASEMATE_TAP_PERSISTENT = 1u << 1 /* it stays until its network namespace ends */
};

struct casemate_address {
  __u32 family; /* AF_INET or AF_INET6 */
  __u32 prefix; /* bits of the network */
  __u8 bytes[16];
};

struct casemate_route {
  struct casemate_address to;
  __u8 gateway[16];
  __u32 has_gateway;
  __u32 reserved;
};

/* A tap(4) in a network namespace: its descriptor has frames behind the header of virtio. */
struct casemate_tap {
  struct casemate_step step;
  __u32 network_slot; /* or CASEMATE_NO_SLOT: the namespace of Node */
  __u32 slot;         /* where its descriptor goes */
  __u32 flags;        /* enum casemate_tap_flags */
  __u32 mtu;          /* 0: what it has */
  __u32 address_count;
  __u32 route_count;
  char name[CASEMATE_TAP_NAME];
  char bridge[CASEMATE_TAP_NAME]; /* that it becomes a port of, or empty */
  /* addresses, then routes */
};

struct casemate_socket_pair {
  struct casemate_step step;
  __u32 type; /* SOCK_STREAM or SOCK_SEQPACKET */
  __u32 child_slot;
  __u32 parent_slot;
  __u32 reserved;
};

struct casemate_setns {
  struct casemate_step step;
  __u32 slot;
  __u32 type; /* CLONE_NEW*: setns refuses a descriptor of another kind */
};

struct casemate_flags {
  struct casemate_step step;
  __u64 flags;
};

struct casemate_mount {
  struct casemate_step step;
  __u64 flags; /* MS_* */
};

struct casemate_mount_setattr {
  struct casemate_step step;
  __u64 set;
  __u64 clear;
  __u64 propagation; /* MS_PRIVATE and the like, or 0 */
  __u32 recursive;
  __u32 reserved;
};

struct casemate_move_mount {
  struct casemate_step step;
  __u32 slot; /* from fsmount(2) or open_tree(2) */
  __u32 reserved;
};

struct casemate_mode {
  struct casemate_step step;
  __u32 mode;
  __u32 reserved;
};

struct casemate_rlimit {
  struct casemate_step step;
  __u32 resource; /* RLIMIT_* */
  __u32 reserved;
  __u64 soft;
  __u64 hard;
};

struct casemate_descriptor {
  __u32 slot;
  __u32 number; /* what it becomes */
};

struct casemate_descriptors {
  struct casemate_step step;
  __u32 count; /* pairs that follow, ascending by number; all others close at execve */
  __u32 reserved;
};

struct casemate_ids {
  struct casemate_step step;
  __u32 uid;
  __u32 gid;
  __u32 clear_groups; /* 0 where setgroups is denied (rootless) */
  __u32 reserved;
};

struct casemate_capabilities {
  struct casemate_step step;
  __u64 effective;
  __u64 permitted;
  __u64 inheritable;
};

struct casemate_seccomp {
  struct casemate_step step;
  __u32 flags; /* SECCOMP_FILTER_FLAG_* */
  __u32 count; /* instructions of 8 bytes that follow */
};

struct casemate_exec {
  struct casemate_step step;
  __u32 argument_count;
  __u32 environment_count;
  /* path, arguments, environment: strings */
};

#endif
