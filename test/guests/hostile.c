/* Does to its machine what its arguments name, one after the other, and says what came of it. */
#include "casemate-guest.h"

static int is(const char* left, const char* right) {
  return strlen(left) == strlen(right) && memcmp(left, right, strlen(left)) == 0;
}

static void say(uint64_t number) {
  char text[24];
  char* at = text + sizeof text;
  *--at = '\n';
  do {
    *--at = (char)('0' + number % 10);
  } while ((number /= 10) != 0);
  casemate_write(at, (size_t)(text + sizeof text - at));
}

/* Nowhere in memory as it is: neither in the code, nor in what another guest of this file has. */
static uint64_t secret(void) {
  volatile uint64_t inverted = 0xa13d18a13d18a13dull;
  return ~inverted;
}

/* All of its memory but the image: stack, what it was given, and the rest. */
static volatile uint64_t* first(void) { return (volatile uint64_t*)casemate_boot_info->heap; }
static volatile uint64_t* end(void) { return first() + casemate_boot_info->heap_size / 8; }

static void hide(void) {
  const uint64_t hidden = secret();
  for (volatile uint64_t* word = first(); word < end(); ++word) {
    *word = hidden;
  }
  say((uint64_t)(end() - first()));
}

static void seek(void) {
  const uint64_t sought = secret();
  uint64_t found = 0;
  for (volatile uint64_t* word = (volatile uint64_t*)casemate_boot_info->stack_low; word < end();
       ++word) {
    found += *word == sought;
  }
  say(found);
}

/* Code that is written anew before each call: mov $n, %eax; ret */
static void patch(void) {
  volatile unsigned char* code = (volatile unsigned char*)first();
  uint64_t sum = 0;
  for (uint32_t n = 0; n < 1000; ++n) {
    code[0] = 0xb8;
    code[1] = (unsigned char)n;
    code[2] = (unsigned char)(n >> 8);
    code[3] = 0;
    code[4] = 0;
    code[5] = 0xc3;
    sum += ((uint32_t(*)(void))(uintptr_t)code)();
  }
  say(sum);
}

/* VMX, SVM, and what SVM has. */
static void look_for_virtualization(void) {
  uint32_t a = 1, b, c = 0, d;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  const uint32_t vmx = c >> 5 & 1;
  a = 0x80000001, c = 0;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  const uint32_t svm = c >> 2 & 1;
  a = 0x8000000a, c = 0;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  say(vmx | svm << 1 | (uint64_t)((a | b | c | d) != 0) << 2);
}

/* How many of the leaves that only kernels ask for say anything, and of those that programs do. */
static void look_at_leaves(void) {
  static const uint32_t leaves[][2] = {{0x5, 0}, {0x6, 0}, {0x9, 0},       {0xa, 0},
                                       {0xd, 1}, {0xf, 0}, {0x12, 0},      {0x14, 0},
                                       {0x0, 0}, {0x1, 0}, {0x80000001, 0}};
  uint64_t speaking = 0;
  for (unsigned i = 0; i < sizeof leaves / sizeof *leaves; ++i) {
    uint32_t a = leaves[i][0], b, c = leaves[i][1], d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    speaking += (a | b | c | d) == 0 ? 0 : i < 8 ? 1 : 16;
  }
  say(speaking);
}

static void exit_again_and_again(void) {
  uint64_t count = 0;
  for (; count < 5000; ++count) {
    casemate_write("", 0);
  }
  say(count);
}

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (is(argv[i], "hide")) {
      hide();
    } else if (is(argv[i], "seek")) {
      seek();
    } else if (is(argv[i], "patch")) {
      patch();
    } else if (is(argv[i], "virtualization")) {
      look_for_virtualization();
    } else if (is(argv[i], "leaves")) {
      look_at_leaves();
    } else if (is(argv[i], "exits")) {
      exit_again_and_again();
    } else if (is(argv[i], "stay")) {
      for (;;) {
        __asm__ volatile("pause");
      }
    } else {
      return 99;
    }
  }
  return 0;
}
