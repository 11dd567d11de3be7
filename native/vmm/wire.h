/*
 * The wire between Node and a monitor: the only definition of it.
 *
 * One SOCK_SEQPACKET socket carries whole messages in both directions; each is
 * one fixed struct in the machine's byte order, both ends being on one machine.
 * The native addon encodes and decodes; a test holds src/vm/wire.ts against the
 * sizes and offsets of this file.
 *
 * Trust: the monitor may have been taken over by its guest. Node checks the size
 * of every message against its type, and every number in it, before use. The
 * monitor trusts Node's numbers for nothing that touches memory either.
 */
#ifndef CASEMATE_WIRE_H
#define CASEMATE_WIRE_H

#include <linux/types.h>

#define CASEMATE_WIRE_MAGIC 0x766d6d63u /* "cmmv" */
#define CASEMATE_WIRE_VERSION 1u

/* Descriptor numbers a monitor is born with. 0, 1 and 2 are /dev/null. */
enum casemate_fd {
  CASEMATE_FD_CONTROL = 3, /* this protocol */
  CASEMATE_FD_KVM = 4,     /* /dev/kvm */
  CASEMATE_FD_GUEST = 5,   /* guest image or kernel: regular file or memfd, read-only */
  /* Two SOCK_STREAM sockets, one a direction: with one for both, a guest that ends
   * with unread input would break off the output that Node has not read yet. */
  CASEMATE_FD_CONSOLE_OUT = 6,
  CASEMATE_FD_CONSOLE_IN = 7,
  CASEMATE_FD_INPUT = 8,    /* optional input, or first initrd: regular file or memfd */
  CASEMATE_FD_LEASE = 9,    /* optional; never used, held open until the monitor is gone */
  CASEMATE_FD_INITRDS = 10, /* the second initrd, and up from here the others */
  CASEMATE_FD_INITRDS_LAST = 15,
  CASEMATE_FD_CATEGORIES = 16, /* optional; as LEASE, of SELinux categories */
  CASEMATE_FD_DEVICES = 17     /* from here on: those of the devices, in the order of their table */
};

/* ---- Node to monitor ---------------------------------------------------- */

enum casemate_command_type {
  CASEMATE_COMMAND_CONFIGURE = 1, /* first message, once: struct casemate_configure */
  CASEMATE_COMMAND_RUN = 2,       /* the jail has been checked from outside: enter the guest */
  CASEMATE_COMMAND_PAUSE = 3,     /* answered by CASEMATE_EVENT_PAUSED */
  CASEMATE_COMMAND_RESUME = 4,    /* answered by CASEMATE_EVENT_RESUMED */
  /* Of a VM with a vsock device; struct casemate_stream_command. The first two bring the
   * stream's socket, SOCK_STREAM, by SCM_RIGHTS: the only descriptors that are ever sent. */
  CASEMATE_COMMAND_STREAM_CONNECT = 16, /* answered by STREAM_CONNECTED or STREAM_REFUSED */
  CASEMATE_COMMAND_STREAM_ACCEPT = 17,  /* these two answer STREAM_REQUESTED */
  CASEMATE_COMMAND_STREAM_REFUSE = 18,
  /* Of a VM with a balloon. */
  CASEMATE_COMMAND_BALLOON = 32, /* struct casemate_balloon_command */
  CASEMATE_COMMAND_MEMORY = 33   /* answered by CASEMATE_EVENT_MEMORY, and not asked again before */
};

struct casemate_command {
  __u32 type; /* enum casemate_command_type */
  __u32 size; /* of the whole message, in bytes */
};

#define CASEMATE_MAX_STREAMS 1024u
/* As many of them may have much under way, the others little. */
#define CASEMATE_AMPLE_STREAMS 64u
/* Ids of streams that the guest began are from here on; Node's are below. */
#define CASEMATE_FIRST_GUEST_STREAM 0x80000000u

struct casemate_stream_command {
  struct casemate_command header;
  __u32 id;   /* Node's choice, or that of the request that is answered */
  __u32 port; /* STREAM_CONNECT: of the guest */
};

struct casemate_balloon_command {
  struct casemate_command header;
  __u32 pages; /* of 4 KiB, that the balloon is to hold */
  __u32 reserved;
};

enum casemate_image_format {
  CASEMATE_IMAGE_AUTO = 0, /* ELF by its magic, flat otherwise */
  CASEMATE_IMAGE_ELF = 1,
  CASEMATE_IMAGE_FLAT = 2,
  CASEMATE_IMAGE_LINUX = 3, /* vmlinux; the one argument is its command line */
  CASEMATE_IMAGE_PVH = 4    /* likewise, started by the PVH protocol */
};

enum casemate_configure_flags {
  CASEMATE_CONFIGURE_CONSOLE = 1u << 0, /* both CASEMATE_FD_CONSOLE_* are there */
  CASEMATE_CONFIGURE_LEASE = 1u << 1,   /* CASEMATE_FD_LEASE is there */
  CASEMATE_CONFIGURE_LANDLOCK = 1u << 2,
  CASEMATE_CONFIGURE_SECCOMP = 1u << 3,
  CASEMATE_CONFIGURE_NO_NEW_PRIVS = 1u << 4,
  CASEMATE_CONFIGURE_PARENT_DEATH = 1u << 5, /* PR_SET_PDEATHSIG SIGKILL */
  CASEMATE_CONFIGURE_PAUSED = 1u << 6,       /* paused at the doorbell, until RESUME */
  CASEMATE_CONFIGURE_CATEGORIES = 1u << 7    /* CASEMATE_FD_CATEGORIES is there */
};

#define CASEMATE_MAX_VCPUS 32u
#define CASEMATE_MAX_INITRDS 7u
#define CASEMATE_MAX_CPUID 256u
#define CASEMATE_MAX_ARGUMENTS_SIZE 65536u
#define CASEMATE_MAX_COMMAND_LINE 2048u /* with its NUL: what x86 kernels take */
#define CASEMATE_MAX_DEVICES 16u
#define CASEMATE_MAX_DEVICE_DESCRIPTORS 64u /* of all of them */
#define CASEMATE_MAX_MESSAGE (128u * 1024u)

/* By virtio's numbers. */
enum casemate_device_type {
  CASEMATE_DEVICE_NET = 1,
  CASEMATE_DEVICE_BLOCK = 2,
  CASEMATE_DEVICE_CONSOLE = 3,
  CASEMATE_DEVICE_RNG = 4,
  CASEMATE_DEVICE_BALLOON = 5,
  CASEMATE_DEVICE_VSOCK = 19
};

/* A device of a Linux guest. What flags and parameters mean is its own. */
struct casemate_device {
  __u32 type; /* enum casemate_device_type */
  __u32 flags;
  __u32 descriptors; /* how many of those from CASEMATE_FD_DEVICES on are its own, in turn */
  __u32 reserved;
  __u64 parameters[14];
};

/* CASEMATE_DEVICE_CONSOLE: of both CASEMATE_FD_CONSOLE_*, which the serial port has without it. */

/* CASEMATE_DEVICE_BALLOON, of memory that is not set apart (page_shift is 0) */
enum casemate_balloon_flags {
  CASEMATE_BALLOON_DEFLATE_ON_OOM = 1u << 0, /* a guest in need takes memory out of it */
  CASEMATE_BALLOON_REPORTING = 1u << 1       /* a guest gives back what it does not use, unasked */
};

/* CASEMATE_DEVICE_BLOCK: one descriptor, of a regular file or a block device. */
enum casemate_block_flags { CASEMATE_BLOCK_READ_ONLY = 1u << 0 };
enum casemate_block_parameter {
  CASEMATE_BLOCK_SERIAL = 0, /* 20 bytes, padded with zeroes, in three parameters */
  CASEMATE_BLOCK_LIMIT = 3   /* struct RateLimitOptions of machine/rate_limit.hpp, four of them */
};

/* CASEMATE_DEVICE_NET: one descriptor, of a tap or a stream socket, and the first of all: the
 * filters of system calls know its number. */
enum casemate_net_flags { CASEMATE_NET_STREAM = 1u << 0 /* or else a tap */ };
enum casemate_net_parameter {
  CASEMATE_NET_MAC = 0,           /* its first byte is the lowest */
  CASEMATE_NET_MTU = 1,           /* or 0 */
  CASEMATE_NET_RECEIVE_LIMIT = 2, /* struct RateLimitOptions of machine/rate_limit.hpp */
  CASEMATE_NET_SEND_LIMIT = 6
};

/* Followed by cpuid_count struct kvm_cpuid_entry2 (40 bytes each), of the first vCPU: the
 * others' differ in their APIC ids, which are their numbers. Then by device_count struct
 * casemate_device, in the order in which a guest finds them; only Linux guests have any. Then by
 * arguments_size bytes: argument_count strings, each NUL-terminated. */
struct casemate_configure {
  struct casemate_command header;
  __u32 magic;
  __u32 version;
  __u64 memory_size; /* bytes, a multiple of 2 MiB */
  __u32 flags;       /* enum casemate_configure_flags */
  __u32 format;      /* enum casemate_image_format */
  __u32 vcpu_count;  /* up to CASEMATE_MAX_VCPUS, 1 for bare-metal guests */
  __u32 cpl;         /* 3, or 0 on request and for Linux */
  __u32 cpuid_count;
  __u32 argument_count;
  __u32 arguments_size; /* bytes */
  __u32 run_size;       /* bytes of a vCPU's mapping, KVM_GET_VCPU_MMAP_SIZE */
  __u32 input_count;    /* at most 1, or of initrds CASEMATE_MAX_INITRDS */
  __u32 page_shift;     /* 21 or 30: memory is of the host's huge pages, set apart for this; or 0 */
  __u32 device_count;   /* up to CASEMATE_MAX_DEVICES */
  __u32 reserved;
};

/* ---- Monitor to Node ---------------------------------------------------- */

enum casemate_event_type {
  CASEMATE_EVENT_JAILED = 1, /* own rights given up; prepares KVM, waits for RUN */
  /* First hypercall of the guest, or first access of a Linux guest to a device; once:
   * struct casemate_doorbell */
  CASEMATE_EVENT_DOORBELL = 2,
  CASEMATE_EVENT_PAUSED = 3,
  CASEMATE_EVENT_RESUMED = 4,
  CASEMATE_EVENT_EXITED = 5,  /* the last event of a guest: struct casemate_exited */
  CASEMATE_EVENT_FAILED = 6,  /* set-up failed, no guest ran: struct casemate_failed */
  CASEMATE_EVENT_BLOCKED = 7, /* seccomp refused a system call: struct casemate_blocked */
  /* Something behind a device went wrong; once for each operation of each device:
   * struct casemate_device_error */
  CASEMATE_EVENT_DEVICE_ERROR = 8,
  /* Of streams: struct casemate_stream_event */
  CASEMATE_EVENT_STREAM_REQUESTED = 16, /* by the guest, of a port of its host */
  CASEMATE_EVENT_STREAM_CONNECTED = 17,
  CASEMATE_EVENT_STREAM_REFUSED = 18, /* its last event */
  CASEMATE_EVENT_STREAM_ENDED = 19,   /* the guest sends no more; all of it is in the socket */
  CASEMATE_EVENT_STREAM_CLOSED = 20,  /* its last event, of one that was connected or accepted */
  CASEMATE_EVENT_MEMORY = 32          /* struct casemate_memory */
};

struct casemate_event {
  __u32 type; /* enum casemate_event_type */
  __u32 size; /* of the whole message, in bytes */
};

/* CLOCK_MONOTONIC in nanoseconds at the end of each step of the monitor, in its order. */
enum casemate_stamp {
  CASEMATE_STAMP_MAIN = 0,   /* first own instruction */
  CASEMATE_STAMP_CONFIGURED, /* configuration received and checked, descriptors checked */
  CASEMATE_STAMP_JAILED,     /* no_new_privs, Landlock, seccomp for the set-up */
  CASEMATE_STAMP_VM,         /* KVM_CREATE_VM */
  CASEMATE_STAMP_MEMORY,     /* memory mapped, slots set */
  CASEMATE_STAMP_IRQCHIP,
  CASEMATE_STAMP_VCPU,     /* vCPUs created, CPUID and system registers set */
  CASEMATE_STAMP_CONFINED, /* seccomp for the guest */
  CASEMATE_STAMP_LOADED,   /* guest image, page tables, boot information in guest memory */
  CASEMATE_STAMP_RUN,      /* CASEMATE_COMMAND_RUN received; KVM_RUN is next */
  CASEMATE_STAMP_DOORBELL,
  CASEMATE_STAMP_COUNT
};

struct casemate_doorbell {
  struct casemate_event header;
  __u64 stamps[CASEMATE_STAMP_COUNT];
};

enum casemate_exit_reason {
  CASEMATE_EXIT_GUEST = 1,    /* the guest's exit hypercall: code */
  CASEMATE_EXIT_FAULT = 2,    /* an exception of the guest: vector, error_code, address, rip */
  CASEMATE_EXIT_SHUTDOWN = 3, /* triple fault, or a shutdown asked of the machine */
  CASEMATE_EXIT_INTERNAL = 4, /* KVM_EXIT_INTERNAL_ERROR / FAIL_ENTRY: code = suberror or reason */
  CASEMATE_EXIT_PROTOCOL = 5, /* the guest broke the ABI (unknown port, bad pointer): code = port */
  CASEMATE_EXIT_HOST = 6,     /* a system call of the monitor failed at run time: code = errno */
  CASEMATE_EXIT_POWEROFF = 7, /* ACPI's S5 */
  CASEMATE_EXIT_REBOOT = 8,   /* a reset of the machine */
  CASEMATE_EXIT_PANIC = 9     /* told by the guest's kernel, through pvpanic */
};

/* What failed behind a device while its guest was running. */
enum casemate_device_operation {
  CASEMATE_OPERATION_SETUP = 1, /* when its driver was ready */
  CASEMATE_OPERATION_READ = 2,
  CASEMATE_OPERATION_WRITE = 3,
  CASEMATE_OPERATION_FLUSH = 4,
  CASEMATE_OPERATION_DISCARD = 5,
  CASEMATE_OPERATION_WRITE_ZEROES = 6
};

struct casemate_registers {
  __u64 rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
  __u64 r8, r9, r10, r11, r12, r13, r14, r15;
  __u64 rip, rflags;
  __u64 cr0, cr2, cr3, cr4, efer;
};

struct casemate_exited {
  struct casemate_event header;
  __u32 reason; /* enum casemate_exit_reason */
  __u32 code;
  __u32 vector; /* CASEMATE_EXIT_FAULT */
  __u32 error_code;
  __u64 address; /* CR2 of a page fault */
  __u64 at;      /* CLOCK_MONOTONIC ns */
  __u32 has_registers;
  __u32 reserved;
  struct casemate_registers registers; /* of a guest that did not end itself */
};

/* Where a monitor's set-up failed. */
enum casemate_setup_step {
  CASEMATE_SETUP_CONFIGURE = 1, /* malformed or unsupported configuration */
  CASEMATE_SETUP_DESCRIPTORS,   /* a descriptor is not what it should be (SELinux replaces some) */
  CASEMATE_SETUP_JAIL,          /* no_new_privs, Landlock, seccomp */
  CASEMATE_SETUP_VM,
  CASEMATE_SETUP_MEMORY,
  CASEMATE_SETUP_IRQCHIP,
  CASEMATE_SETUP_VCPU,
  CASEMATE_SETUP_GUEST,  /* the image is refused: detail says why */
  CASEMATE_SETUP_DEVICES /* of a Linux guest */
};

enum casemate_image_error {
  CASEMATE_IMAGE_TRUNCATED = 1,   /* shorter than its headers say */
  CASEMATE_IMAGE_NOT_X86_64 = 2,  /* not ELF64, little-endian, EM_X86_64 */
  CASEMATE_IMAGE_NOT_STATIC = 3,  /* not ET_EXEC, or wants an interpreter */
  CASEMATE_IMAGE_BAD_HEADER = 4,  /* header sizes, counts or offsets that cannot be */
  CASEMATE_IMAGE_BAD_SEGMENT = 5, /* a segment of impossible size, or that overlaps another */
  CASEMATE_IMAGE_OUTSIDE_RAM = 6, /* a segment outside the guest's memory, or below 2 MiB */
  CASEMATE_IMAGE_BAD_ENTRY = 7,   /* entry point outside every segment to run from */
  CASEMATE_IMAGE_EMPTY = 8,
  CASEMATE_IMAGE_INPUT_TOO_BIG = 9, /* image, input, arguments and stack do not fit into memory */
  CASEMATE_IMAGE_COMPRESSED = 10,   /* a bzImage, where a vmlinux is wanted */
  CASEMATE_IMAGE_KERNEL_OUTSIDE_RAM = 11, /* likewise for kernels, whose limit is 1 MiB */
  CASEMATE_IMAGE_INITRD_TOO_BIG = 12,     /* kernel and initrd do not fit into memory */
  CASEMATE_IMAGE_NOT_PVH = 13             /* a kernel without an entry for PVH */
};

struct casemate_failed {
  struct casemate_event header;
  __u32 step;   /* enum casemate_setup_step */
  __u32 error;  /* errno, or 0 */
  __u32 detail; /* enum casemate_image_error for CASEMATE_SETUP_GUEST, a descriptor number for
                   CASEMATE_SETUP_DESCRIPTORS, else 0 */
  __u32 reserved;
  char call[40]; /* the system call or ioctl that failed, NUL-terminated */
};

struct casemate_device_error {
  struct casemate_event header;
  __u32 device;    /* its place in the table */
  __u32 operation; /* enum casemate_device_operation */
  __u32 error;     /* errno */
  __u32 reserved;
};

/* Why a stream was broken off, whose guest had not ended it. */
enum casemate_stream_break {
  CASEMATE_BREAK_NONE = 0,      /* it was not, or by Node */
  CASEMATE_BREAK_GUEST = 1,     /* the guest has reset it */
  CASEMATE_BREAK_DRIVER = 2,    /* the guest's driver has begun anew, and knows of no stream */
  CASEMATE_BREAK_VIOLATION = 3, /* what the guest sent on it cannot be */
  CASEMATE_BREAK_HOST = 4       /* the host's kernel has no memory to watch its socket */
};

struct casemate_stream_event {
  struct casemate_event header;
  __u32 id;
  __u32 detail; /* STREAM_REQUESTED: the port; STREAM_CLOSED: enum casemate_stream_break */
};

#define CASEMATE_MEMORY_STATISTICS 16u

struct casemate_memory {
  struct casemate_event header;
  __u32 target; /* pages that the balloon is to hold */
  __u32 actual; /* and that it does, as the guest says */
  __u32 known;  /* bits: which of the statistics there are */
  __u32 reserved;
  __u64 statistics[CASEMATE_MEMORY_STATISTICS]; /* by VIRTIO_BALLOON_S_* */
};

struct casemate_blocked {
  struct casemate_event header;
  __u32 number;   /* system call number, asm/unistd_64.h */
  __u32 arch;     /* AUDIT_ARCH_* */
  __u64 argument; /* second argument: the ioctl's number, where it was ioctl */
};

#endif
