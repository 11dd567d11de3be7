/*
 * The interface between casemate's monitor and its bare-metal guests, version 1:
 * the only definition of it, used by both sides. docs/guest-abi.md explains it.
 */
#ifndef CASEMATE_GUEST_ABI_H
#define CASEMATE_GUEST_ABI_H

#include <stdint.h>

#define CASEMATE_GUEST_MAGIC 0x6574616d65736163u /* "casemate" */
#define CASEMATE_GUEST_VERSION 1u

/* Images are loaded, and flat ones entered, here; below it is the machine's own. */
#define CASEMATE_GUEST_BASE 0x200000u

/*
 * A hypercall is one 32-bit `out` of EAX to one of these ports. They are four apart
 * because the I/O permission of a 32-bit access is that of four ports.
 */
enum casemate_port {
  CASEMATE_PORT_DOORBELL = 0xe0, /* "I am ready"; EAX means nothing */
  CASEMATE_PORT_WRITE = 0xe4,    /* EAX: address of a struct casemate_transfer */
  CASEMATE_PORT_READ = 0xe8,     /* likewise */
  CASEMATE_PORT_EXIT = 0xec,     /* EAX: exit code, 0 to 255; does not return */
  CASEMATE_PORT_TIME = 0xf0,     /* EAX: address of a struct casemate_time */
  CASEMATE_PORT_RANDOM = 0xf4    /* EAX: address of a struct casemate_transfer */
};

enum casemate_transfer_flags {
  CASEMATE_NONBLOCK = 1u << 0 /* CASEMATE_PORT_READ: CASEMATE_AGAIN rather than wait */
};

enum casemate_transfer_result {
  CASEMATE_AGAIN = -1, /* nothing there to read yet */
  CASEMATE_CLOSED = -2 /* nobody will ever read what is written */
};

/* Moves bytes between the guest's memory and the world. */
struct casemate_transfer {
  uint64_t address; /* of the buffer */
  uint64_t size;    /* of the buffer, in bytes */
  uint64_t flags;   /* enum casemate_transfer_flags; all else 0 */
  int64_t result;   /* set by the monitor: bytes, 0 at the end of input, or an
                       enum casemate_transfer_result */
};

struct casemate_time {
  uint64_t ns; /* set by the monitor: since the guest was entered */
};

/* What RDI points to when a guest is entered. */
struct casemate_boot_info {
  uint64_t magic;          /* CASEMATE_GUEST_MAGIC */
  uint32_t version;        /* CASEMATE_GUEST_VERSION; grows with every field added */
  uint32_t size;           /* of this struct, in bytes */
  uint64_t memory_size;    /* all RAM of the machine, in bytes */
  uint32_t cpl;            /* privilege level that the guest was entered at: 3 or 0 */
  uint32_t argument_count; /* argc */
  uint64_t arguments;      /* argv: argc pointers to NUL-terminated strings, then a null */
  uint64_t input;          /* the input buffer; page-aligned, 0 bytes if none was given */
  uint64_t input_size;
  uint64_t heap; /* free memory, zeroed; page-aligned */
  uint64_t heap_size;
  uint64_t high; /* more of it, above 4 GiB; 0 bytes in machines up to 3 GiB */
  uint64_t high_size;
  uint64_t stack_low; /* lowest address of the stack; below it lies unmapped memory */
  uint8_t seed[32];   /* random, different for every guest */
};

#endif
