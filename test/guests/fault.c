/* One exception of the kind that its argument names. */
/* At CPL 0 some hosts emulate instruction by instruction, and know no SSE. */
#pragma GCC target("general-regs-only")

#include "casemate-guest.h"

static int is(const char* left, const char* right) {
  return strlen(left) == strlen(right) && memcmp(left, right, strlen(left)) == 0;
}

/* Each call needs a frame of its own, and nothing of it can be optimised away. */
__attribute__((noinline)) static int overflow(volatile int* depth) {
  volatile int frame[256];
  frame[0] = *depth + 1;
  return frame[0] > 0 ? overflow(frame) + frame[0] : 0;
}

int main(int argc, char** argv) {
  const char* kind = argc > 1 ? argv[1] : "";
  int zero = 0;
  if (is(kind, "ud2")) {
    __asm__ volatile("ud2");
  } else if (is(kind, "null")) {
    __asm__ volatile("mov (%0), %%al" : : "r"(0L) : "rax", "memory");
  } else if (is(kind, "supervisor")) { /* the machine's own pages */
    __asm__ volatile("movb $1, (%0)" : : "r"(0x1ff000L) : "memory");
  } else if (is(kind, "beyond")) { /* behind the end of RAM */
    __asm__ volatile("movb $1, (%0)" : : "r"(casemate_boot_info->memory_size) : "memory");
  } else if (is(kind, "noncanonical")) {
    __asm__ volatile("movb $1, (%0)" : : "r"(0x8000000000000000ull) : "memory");
  } else if (is(kind, "port")) { /* not one of the guest ABI's */
    __asm__ volatile("outl %0, $0x80" : : "a"(0));
  } else if (is(kind, "in")) {
    __asm__ volatile("inb $0x60, %%al" : : : "rax");
  } else if (is(kind, "fault-port")) { /* the exception handlers' own */
    __asm__ volatile("outb %%al, $0xfc" : : "a"(0));
  } else if (is(kind, "int3")) {
    __asm__ volatile("int3");
  } else if (is(kind, "int80")) {
    __asm__ volatile("int $0x80" : : "a"(1));
  } else if (is(kind, "syscall")) {
    __asm__ volatile("syscall" : : "a"(0) : "rcx", "r11", "memory");
  } else if (is(kind, "divide")) {
    __asm__ volatile("divl %0" : : "r"(zero), "a"(1), "d"(0));
  } else if (is(kind, "stack")) {
    return overflow(&zero);
  } else if (is(kind, "cli")) {
    __asm__ volatile("cli");
  } else if (is(kind, "hlt")) {
    __asm__ volatile("hlt");
  } else if (is(kind, "cr3")) {
    __asm__ volatile("mov %0, %%cr3" : : "r"(0L));
  } else if (is(kind, "lidt")) {
    __asm__ volatile("lidt (%0)" : : "r"(&zero) : "memory");
  }
  return 99; /* an unknown kind, or one that did not fault */
}
