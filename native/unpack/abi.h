/*
 * What the launcher and casemate-unpack, the program that takes kernels out of
 * bzImages, agree upon. Its arguments name the layers that it is to put on itself:
 * noNewPrivs, landlock, seccomp. Then it says over its control socket that it is
 * jailed and waits to be let run, by the messages of native/vmm/wire.h; how it went
 * is its exit status.
 *
 * src/vm/unpack.ts mirrors this; a test holds it against this file.
 */
#ifndef CASEMATE_UNPACK_ABI_H
#define CASEMATE_UNPACK_ABI_H

/* Descriptors besides the control socket, which is CASEMATE_FD_CONTROL. */
enum casemate_unpack_fd {
  CASEMATE_UNPACK_FD_IMAGE = 4, /* the bzImage; nobody changes it any more */
  CASEMATE_UNPACK_FD_OUTPUT = 5 /* an empty file, to which the kernel is written */
};

enum casemate_unpack_status {
  CASEMATE_UNPACK_DONE = 0,
  CASEMATE_UNPACK_SYSTEM = 1,      /* a system call failed */
  CASEMATE_UNPACK_NO_MEMORY = 2,   /* it takes more than the limits allow */
  CASEMATE_UNPACK_NOT_BZIMAGE = 3, /* no header of the boot protocol, or one older than 2.08 */
  CASEMATE_UNPACK_TRUNCATED = 4,   /* the file ends before the kernel in it */
  CASEMATE_UNPACK_UNKNOWN = 5,     /* none of the compressions that Linux has */
  CASEMATE_UNPACK_DAMAGED = 6,     /* what is compressed is not as it was */
  CASEMATE_UNPACK_TOO_BIG = 7,     /* the kernel is larger than CASEMATE_UNPACK_MAX_SIZE */
  CASEMATE_UNPACK_NOT_ELF = 8      /* what comes out is no ELF file */
};

/* Of a kernel, in bytes. Those of distributions have 60 MiB. */
#define CASEMATE_UNPACK_MAX_SIZE (512u << 20)

#endif
