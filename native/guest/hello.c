/* The built-in guest: says where it is, in its own words, and ends with 0. */
/* At CPL 0 some hosts emulate instruction by instruction, and know no SSE. */
#pragma GCC target("general-regs-only")

#include "casemate-guest.h"

static char text[4096];
static size_t length;

static void put(const char* string) {
  size_t size = strlen(string);
  if (size > sizeof text - length) {
    size = sizeof text - length;
  }
  memcpy(text + length, string, size);
  length += size;
}

static void put_number(uint64_t number) {
  char digits[21];
  char* first = digits + sizeof digits - 1;
  *first = 0;
  do {
    *--first = (char)('0' + number % 10);
    number /= 10;
  } while (number != 0);
  put(first);
}

/* The processor's name: leaves 0x80000002 to 4, padded with spaces by some. */
static void put_processor(void) {
  uint32_t words[13] = {0};
  uint32_t highest, rest[3];
  __asm__ volatile("cpuid"
                   : "=a"(highest), "=b"(rest[0]), "=c"(rest[1]), "=d"(rest[2])
                   : "a"(0x80000000u));
  for (uint32_t leaf = 0; leaf < 3 && highest >= 0x80000004u; ++leaf) {
    uint32_t* to = words + 4 * leaf;
    __asm__ volatile("cpuid"
                     : "=a"(to[0]), "=b"(to[1]), "=c"(to[2]), "=d"(to[3])
                     : "a"(0x80000002u + leaf), "c"(0));
  }
  const char* name = (const char*)words;
  while (*name == ' ') {
    ++name;
  }
  put(*name != 0 ? name : "a processor without a name");
}

int main(int argc, char** argv) {
  uint16_t selector;
  __asm__("mov %%cs, %0" : "=r"(selector));

  put("Hello from inside the virtual machine.\n");
  put("I run in 64-bit long mode at privilege level ");
  put_number(selector & 3);
  put(", on nothing but this machine:\n  processor  ");
  put_processor();
  put("\n  memory     ");
  put_number(casemate_boot_info->memory_size >> 20);
  put(" MiB\n  devices    none; a console, a clock and an exit code behind six hypercalls\n");
  for (int i = 1; i < argc; ++i) {
    put(i == 1 ? "  arguments  " : " ");
    put(argv[i]);
  }
  put(argc > 1 ? "\nGoodbye.\n" : "Goodbye.\n");
  return casemate_write(text, length) < 0;
}
