/* For CPL 0: no exception can be delivered, which shuts the machine down. */
/* At CPL 0 some hosts emulate instruction by instruction, and know no SSE. */
#pragma GCC target("general-regs-only")

#include "casemate-guest.h"

int main(void) {
  const struct {
    uint16_t limit;
    uint64_t base;
  } __attribute__((packed)) empty = {0, 0};
  __asm__ volatile("lidt %0\n\tud2" : : "m"(empty));
  return 99;
}
