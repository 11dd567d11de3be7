/* Prints what the machine told it, one `name value` a line, and tries the memory that
 * it was given. */
/* At CPL 0 some hosts emulate instruction by instruction, and know no SSE. */
#pragma GCC target("general-regs-only")

#include "casemate-guest.h"

static void print(const char* name, uint64_t value) {
  casemate_print(name);
  casemate_print(" ");
  casemate_print_number(value);
  casemate_print("\n");
}

static void print_bytes(const char* name, const uint8_t* bytes, size_t size) {
  char digits[64];
  for (size_t i = 0; i < size; ++i) {
    digits[2 * i] = "0123456789abcdef"[bytes[i] >> 4];
    digits[2 * i + 1] = "0123456789abcdef"[bytes[i] & 15];
  }
  casemate_print(name);
  casemate_print(" ");
  casemate_write(digits, 2 * size);
  casemate_print("\n");
}

/* First and last page: zero before, and they keep what is written. */
static int is_memory(uint64_t start, uint64_t size) {
  volatile uint64_t* first = (volatile uint64_t*)(uintptr_t)start;
  volatile uint64_t* last = (volatile uint64_t*)(uintptr_t)(start + size - 8);
  if (*first != 0 || *last != 0) {
    return 0;
  }
  *first = start;
  *last = size;
  return *first == start && *last == size;
}

int main(int argc, char** argv) {
  const struct casemate_boot_info* info = casemate_boot_info;
  uint16_t selector;
  __asm__("mov %%cs, %0" : "=r"(selector));
  if (info->magic != CASEMATE_GUEST_MAGIC || info->version != CASEMATE_GUEST_VERSION ||
      info->size != sizeof *info || info->cpl != (selector & 3u) ||
      argc != (int)info->argument_count || argv[argc] != NULL) {
    return 1;
  }
  print("memory", info->memory_size);
  print("cpl", info->cpl);
  print("heap", info->heap);
  print("heap_size", info->heap_size);
  print("high", info->high);
  print("high_size", info->high_size);
  print("stack_low", info->stack_low);
  print("input", info->input);
  print("input_size", info->input_size);
  for (int i = 0; i < argc; ++i) {
    casemate_print("argument ");
    casemate_print(argv[i]);
    casemate_print("\n");
  }
  uint8_t random[32];
  casemate_random(random, sizeof random);
  print_bytes("seed", info->seed, sizeof info->seed);
  print_bytes("random", random, sizeof random);
  if (info->heap_size >= 8 && !is_memory(info->heap, info->heap_size)) {
    return 2;
  }
  if (info->high_size >= 8 && !is_memory(info->high, info->high_size)) {
    return 3;
  }
  return 0;
}
