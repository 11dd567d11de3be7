/*
 * What a bare-metal guest in C or C++ needs, in one header: the start-up code that
 * calls main(), and a function for each hypercall. Build with plain gcc:
 *
 *   gcc -O2 -ffreestanding -fno-stack-protector -nostdlib -static -no-pie \
 *       -I native/guest -T native/guest/casemate-guest.ld -o guest.elf guest.c
 *
 * May be included by several files of one guest. docs/guest-abi.md explains the rest.
 */
#ifndef CASEMATE_GUEST_H
#define CASEMATE_GUEST_H

#include "casemate-guest-abi.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The last word of the caller is "memory": the monitor reads and writes structs and
 * buffers that the compiler cannot know of. */
#define CASEMATE_HYPERCALL(port, value)                                                            \
  __asm__ volatile("outl %0, %1"                                                                   \
                   :                                                                               \
                   : "a"((uint32_t)(uintptr_t)(value)), "Nd"((uint16_t)(port))                     \
                   : "memory")

/* Weak, so that every file that includes this has them and the linker keeps one. */
#define CASEMATE_SHARED __attribute__((weak, used))

/* What the machine told this guest about itself; set before main() is called. */
CASEMATE_SHARED const struct casemate_boot_info* casemate_boot_info;

/* Ends the guest. `code` is 0 to 255. */
__attribute__((noreturn)) static inline void casemate_exit(int code) {
  CASEMATE_HYPERCALL(CASEMATE_PORT_EXIT, code & 255);
  __builtin_unreachable();
}

/* Writes all of it to the console; waits while nobody reads. 0, or CASEMATE_CLOSED. */
static inline int casemate_write(const void* data, size_t size) {
  struct casemate_transfer transfer = {(uintptr_t)data, size, 0, 0};
  CASEMATE_HYPERCALL(CASEMATE_PORT_WRITE, &transfer);
  return transfer.result < 0 ? (int)transfer.result : 0;
}

/* Reads up to `size` bytes from the console; waits for the first. 0: end of input. */
static inline int64_t casemate_read(void* buffer, size_t size) {
  struct casemate_transfer transfer = {(uintptr_t)buffer, size, 0, 0};
  CASEMATE_HYPERCALL(CASEMATE_PORT_READ, &transfer);
  return transfer.result;
}

/* The same without waiting: CASEMATE_AGAIN where there is nothing yet. */
static inline int64_t casemate_try_read(void* buffer, size_t size) {
  struct casemate_transfer transfer = {(uintptr_t)buffer, size, CASEMATE_NONBLOCK, 0};
  CASEMATE_HYPERCALL(CASEMATE_PORT_READ, &transfer);
  return transfer.result;
}

/* Nanoseconds since this guest was entered. */
static inline uint64_t casemate_time_ns(void) {
  struct casemate_time time = {0};
  CASEMATE_HYPERCALL(CASEMATE_PORT_TIME, &time);
  return time.ns;
}

/* Fills the buffer with random bytes from the host's kernel. */
static inline void casemate_random(void* buffer, size_t size) {
  unsigned char* to = (unsigned char*)buffer;
  while (size > 0) {
    struct casemate_transfer transfer = {(uintptr_t)to, size, 0, 0};
    CASEMATE_HYPERCALL(CASEMATE_PORT_RANDOM, &transfer);
    to += transfer.result;
    size -= (size_t)transfer.result;
  }
}

/* The input buffer that the guest was launched with, and its size in bytes. */
static inline const void* casemate_input(size_t* size) {
  *size = casemate_boot_info->input_size;
  return (const void*)(uintptr_t)casemate_boot_info->input;
}

/* gcc calls these four whatever its flags. String instructions, for a loop would be
 * recognised as memcpy and become a call to itself. */
CASEMATE_SHARED void* memcpy(void* to, const void* from, size_t size) {
  void* result = to;
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
  return result;
}

CASEMATE_SHARED void* memset(void* to, int value, size_t size) {
  void* result = to;
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
  return result;
}

CASEMATE_SHARED void* memmove(void* to, const void* from, size_t size) {
  if ((uintptr_t)to - (uintptr_t)from >= size) { /* before it (the difference wraps) or behind */
    return memcpy(to, from, size);
  }
  void* result = to;
  void* last_to = (char*)to + size - 1;
  const void* last_from = (const char*)from + size - 1;
  __asm__ volatile("std\n\trep movsb\n\tcld"
                   : "+D"(last_to), "+S"(last_from), "+c"(size)
                   :
                   : "memory", "cc");
  return result;
}

CASEMATE_SHARED int memcmp(const void* left, const void* right, size_t size) {
  const unsigned char *a = (const unsigned char*)left, *b = (const unsigned char*)right;
  for (; size > 0; ++a, ++b, --size) {
    if (*a != *b) {
      return *a - *b;
    }
  }
  return 0;
}

CASEMATE_SHARED size_t strlen(const char* text) {
  size_t length = 0;
  while (text[length] != 0) {
    ++length;
  }
  return length;
}

/* Writes a string to the console. Each call leaves the machine: collect what is long. */
static inline int casemate_print(const char* text) { return casemate_write(text, strlen(text)); }

/* Writes a number to the console, in decimal. */
static inline int casemate_print_number(uint64_t number) {
  char digits[20];
  size_t first = sizeof digits;
  do {
    digits[--first] = (char)('0' + number % 10);
    number /= 10;
  } while (number != 0);
  return casemate_write(digits + first, sizeof digits - first);
}

/* main() under a name of our own: C++ forbids calling it, and guests may declare it
 * without parameters. */
int casemate_main(int argc, char** argv) __asm__("main");

/* By casemate-guest.ld: constructors of C++ objects. */
typedef void (*casemate_constructor)(void);
extern const casemate_constructor casemate_constructors_start[], casemate_constructors_end[];

__attribute__((weak, used, noreturn)) void
casemate_start(const struct casemate_boot_info* boot_info) {
  casemate_boot_info = boot_info;
  for (const casemate_constructor* each = casemate_constructors_start;
       each != casemate_constructors_end; ++each) {
    (*each)();
  }
  casemate_exit(
      casemate_main((int)boot_info->argument_count, (char**)(uintptr_t)boot_info->arguments));
}

/* Where the machine enters: the boot information in RDI, the stack as after a call. The
 * doorbell comes first, before anything is pushed: what is behind it is the guest's own
 * time, and memory that is touched before it makes the launch longer. */
__attribute__((weak, used, naked, noreturn)) void _start(void) {
  __asm__("outl %eax, $0xe0\n\t" /* CASEMATE_PORT_DOORBELL */
          "jmp casemate_start");
}

#ifdef __cplusplus
}
#endif

#endif
