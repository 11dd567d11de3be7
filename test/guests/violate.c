/* One breach of the guest ABI, of the kind that its argument names. */
/* At CPL 0 some hosts emulate instruction by instruction, and know no SSE. */
#pragma GCC target("general-regs-only")

#include "casemate-guest.h"

static int is(const char* left, const char* right) {
  return strlen(left) == strlen(right) && memcmp(left, right, strlen(left)) == 0;
}

static char byte;

static void transfer(unsigned port, uint64_t address, uint64_t size, uint64_t flags) {
  struct casemate_transfer transfer = {address, size, flags, 0};
  __asm__ volatile("outl %0, %w1" : : "a"((uint32_t)(uintptr_t)&transfer), "d"(port) : "memory");
}

int main(int argc, char** argv) {
  const char* kind = argc > 1 ? argv[1] : "";
  const uint64_t end = casemate_boot_info->memory_size;
  const uint64_t here = (uintptr_t)&byte;
  if (is(kind, "wild-request")) { /* the struct itself is not in RAM */
    CASEMATE_HYPERCALL(CASEMATE_PORT_WRITE, 0xfffffff0u);
  } else if (is(kind, "request-at-end")) {
    CASEMATE_HYPERCALL(CASEMATE_PORT_WRITE, end - 8);
  } else if (is(kind, "request-in-machine")) {
    CASEMATE_HYPERCALL(CASEMATE_PORT_TIME, 0x1ff000);
  } else if (is(kind, "wild-pointer")) {
    transfer(CASEMATE_PORT_WRITE, 0xdeadbeef00000000ull, 1, 0);
  } else if (is(kind, "pointer-in-machine")) { /* page tables, by way of the monitor */
    transfer(CASEMATE_PORT_READ, 0x1fe000, 8, 0);
  } else if (is(kind, "huge-length")) {
    transfer(CASEMATE_PORT_WRITE, here, end, 0);
  } else if (is(kind, "wrap-around")) {
    transfer(CASEMATE_PORT_READ, here, UINT64_MAX - here + 2, 0);
  } else if (is(kind, "one-too-many")) {
    transfer(CASEMATE_PORT_WRITE, end - 4096, 4097, 0);
  } else if (is(kind, "hole")) {
    transfer(CASEMATE_PORT_RANDOM, 0xfee00000, 4096, 0);
  } else if (is(kind, "flags")) {
    transfer(CASEMATE_PORT_WRITE, here, 1, CASEMATE_NONBLOCK);
  } else if (is(kind, "unknown-flags")) {
    transfer(CASEMATE_PORT_READ, here, 1, 1ull << 63);
  } else if (is(kind, "unknown-port")) { /* CPL 3 may, for a 32-bit access covers four */
    CASEMATE_HYPERCALL(CASEMATE_PORT_DOORBELL + 1, 0);
  } else if (is(kind, "byte")) {
    __asm__ volatile("outb %%al, %1" : : "a"(0), "Nd"((uint16_t)CASEMATE_PORT_EXIT));
  } else if (is(kind, "in")) {
    __asm__ volatile("inl %0, %%eax" : : "Nd"((uint16_t)CASEMATE_PORT_TIME) : "rax");
  } else if (is(kind, "exit-code")) {
    CASEMATE_HYPERCALL(CASEMATE_PORT_EXIT, 256);
  } else if (is(kind, "mmio")) { /* at CPL 0, by a page of its own behind RAM */
    volatile uint64_t* directory = (volatile uint64_t*)0x1fc000;
    directory[511] = 0xc0000000u | 0x87;
    *(volatile uint32_t*)(511ull << 21) = 1;
  }
  return 99;
}
