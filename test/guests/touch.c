/* Touches memory for the first time, in the way that its arguments name: `way border other`, again
 * and again. `border` and `other` are addresses in hexadecimal at which one extent of memory ends
 * and another one begins. Ends with the number of the way that did not do what it does in memory
 * that was always there. */
/* What touches memory is written out below; nothing else should, in a way of the compiler's. */
#pragma GCC target("general-regs-only")

#include "casemate-guest.h"

static int is(const char* left, const char* right) {
  return strlen(left) == strlen(right) && memcmp(left, right, strlen(left)) == 0;
}

static uint64_t hexadecimal(const char* text) {
  uint64_t value = 0;
  for (; *text != '\0'; ++text) {
    value = value << 4 | (uint64_t)(*text <= '9' ? *text - '0' : *text - 'a' + 10);
  }
  return value;
}

#define AT(type, address) (*(volatile type*)(address))

static int reads(uint64_t border, uint64_t other) {
  return AT(uint8_t, border) == 0 && AT(uint16_t, other - 2) == 0 && AT(uint32_t, other) == 0 &&
         AT(uint64_t, border - 8) == 0;
}

static int writes(uint64_t border, uint64_t other) {
  AT(uint64_t, border) = 0x0123456789abcdef;
  AT(uint8_t, other - 1) = 0x5a;
  AT(uint16_t, other) = 0xa5a5;
  return AT(uint64_t, border) == 0x0123456789abcdef && AT(uint64_t, border + 8) == 0 &&
         AT(uint8_t, other - 1) == 0x5a && AT(uint8_t, other - 2) == 0 &&
         AT(uint32_t, other) == 0xa5a5;
}

/* One access of 8 bytes, 4 on either side. */
static int straddles(uint64_t border, uint64_t other) {
  const uint64_t before = AT(uint64_t, border - 4);
  AT(uint64_t, other - 4) = 0x0123456789abcdef;
  return before == 0 && AT(uint32_t, other - 4) == 0x89abcdef && AT(uint32_t, other) == 0x01234567;
}

/* Of the processor's vectors, which KVM emulates few of. */
static int moves_vectors(uint64_t border, uint64_t other) {
  uint64_t low = 1, high = 1;
  __asm__ volatile("movups -8(%2), %%xmm0\n\t"
                   "movq %%xmm0, %0\n\t"
                   "psrldq $8, %%xmm0\n\t"
                   "movq %%xmm0, %1\n\t"
                   "pcmpeqd %%xmm1, %%xmm1\n\t"
                   "movaps %%xmm1, (%3)\n\t"
                   "movntdq %%xmm1, -16(%3)\n\t"
                   "paddd -16(%3), %%xmm1\n\t"
                   "fxsave64 64(%3)"
                   : "=&r"(low), "=&r"(high)
                   : "r"(border), "r"(other)
                   : "memory");
  return low == 0 && high == 0 && AT(uint64_t, other) == ~0ull &&
         AT(uint64_t, other + 8) == ~0ull && AT(uint64_t, other - 16) == ~0ull &&
         AT(uint32_t, other + 64 + 24) == 0x1f80; /* MXCSR */
}

static int locks(uint64_t border, uint64_t other) {
  uint64_t expected = 0, old = 5;
  uint8_t is_equal, was_set;
  __asm__ volatile("lock incq (%0)" : : "r"(border) : "memory", "cc");
  __asm__ volatile("lock xaddq %0, (%1)" : "+r"(old) : "r"(border) : "memory", "cc");
  __asm__ volatile("lock btsq $3, -8(%1)\n\tsetc %0" : "=q"(was_set) : "r"(other) : "memory", "cc");
  __asm__ volatile("lock cmpxchg16b (%2)\n\tsete %0"
                   : "=q"(is_equal), "+a"(expected)
                   : "r"(other), "b"(7ull), "c"(8ull), "d"(0ull)
                   : "memory", "cc");
  return old == 1 && AT(uint64_t, border) == 6 && was_set == 0 && AT(uint64_t, other - 8) == 8 &&
         is_equal && AT(uint64_t, other) == 7 && AT(uint64_t, other + 8) == 8;
}

/* The same memory to itself: two touches in one instruction, and strings over either border. */
static int copies(uint64_t border, uint64_t other) {
  enum { half = 0x2000, words = 2 * half / 8 };
  volatile uint64_t* from = (volatile uint64_t*)(border - half);
  const volatile uint64_t* to = (const volatile uint64_t*)(other - half);
  uint64_t count = 2 * half, at = border - half;
  __asm__ volatile("rep stosb" : "+D"(at), "+c"(count) : "a"(0x5a) : "memory");
  for (uint64_t i = 0; i < words; ++i) {
    from[i] += i;
  }
  uint64_t source = border - half, target = other - half;
  count = words;
  __asm__ volatile("rep movsq" : "+S"(source), "+D"(target), "+c"(count) : : "memory");
  for (uint64_t i = 0; i < words; ++i) {
    if (to[i] != 0x5a5a5a5a5a5a5a5a + i) {
      return 0;
    }
  }
  return count == 0 && source == border + half && target == other + half &&
         AT(uint64_t, border + half) == 0 && AT(uint64_t, other + half) == 0;
}

static int copies_backwards(uint64_t border, uint64_t other) {
  uint64_t source = border + 56, target = other + 56, count = 16;
  __asm__ volatile("std\n\trep movsq\n\tcld"
                   : "+S"(source), "+D"(target), "+c"(count)
                   :
                   : "memory", "cc");
  return count == 0 && source == border - 72 && target == other - 72;
}

/* What pushes and calls on a stack of the compiler's: it may keep things below where it ends. */
#define ON_STACK(instructions) "sub $128, %%rsp\n\t" instructions "\n\tadd $128, %%rsp"

/* A stack out there, down over a border; push from memory that is out there, too. */
static int calls(uint64_t border, uint64_t other) {
  uint64_t pushed = 1, flags = 0, depth = 1000, returns = 0;
  __asm__ volatile(
      "mov %%rsp, %%rbx\n\t"
      "lea 16(%[border]), %%rsp\n\t"
      "pushq (%[other])\n\t"
      "pushfq\n\t"
      "call 1f\n\t"
      "popq %[flags]\n\t"
      "popq %[pushed]\n\t"
      "mov %%rbx, %%rsp\n\t"
      "jmp 2f\n"
      "1:\n\t"
      "dec %[depth]\n\t"
      "jz 3f\n\t"
      "call 1b\n"
      "3:\n\t"
      "inc %[returns]\n\t"
      "ret\n"
      "2:"
      : [pushed] "+r"(pushed), [flags] "+r"(flags), [depth] "+r"(depth), [returns] "+r"(returns)
      : [border] "r"(border), [other] "r"(other)
      : "rbx", "memory", "cc");
  return returns == 1000 && pushed == 0 && (flags & 2) != 0;
}

/* Zeros are code: add %al, (%rax). There is a return behind them. */
static int executes(uint64_t border, uint64_t other) {
  uint64_t sum = 0;
  AT(uint8_t, border) = 0xc3;
  __asm__ volatile(ON_STACK("call *%0") : : "r"(border - 8), "a"(&sum) : "memory", "cc");
  AT(uint8_t, other) = 0xc3;
  __asm__ volatile(ON_STACK("call *%0") : : "r"(other - 16), "a"(&sum) : "memory", "cc");
  return (uint8_t)sum == (uint8_t)((4 + 8) * (uintptr_t)&sum);
}

/* The monitor writes what the guest has not touched, and that finds it there: the code
 * mov $0x12345678, %eax; ret, whose first instruction lies on both sides of the border, and bytes.
 */
static int finds_what_it_was_given(uint64_t border, uint64_t other) {
  uint32_t result = 0;
  for (uint64_t got = 0; got < 6;) {
    const int64_t more = casemate_read((void*)(border - 3 + got), 6 - got);
    if (more <= 0) {
      return 0;
    }
    got += (uint64_t)more;
  }
  __asm__ volatile(ON_STACK("call *%1") : "=a"(result) : "r"(border - 3) : "memory", "cc");
  casemate_random((void*)(other - 128), 256);
  uint64_t before = 0, behind = 0;
  for (uint64_t i = 0; i < 128; i += 8) {
    before |= AT(uint64_t, other - 128 + i);
    behind |= AT(uint64_t, other + i);
  }
  return result == 0x12345678 && before != 0 && behind != 0;
}

/* A touch changes no register, of whatever kind. */
static int keeps_registers(uint64_t border, uint64_t other) {
  enum { arithmetic = 0xcd5 };  /* CF PF AF ZF SF DF OF */
  uint32_t before[4], after[4]; /* CS, SS, GS, FS */
  uint64_t vector;
  __asm__ volatile("mov %%ss, %0\n\tmov %0, %%gs\n\txor %0, %0\n\tmov %0, %%fs" : "=&r"(before[0]));
  __asm__ volatile("movq %0, %%xmm7" : : "r"(0x7777ull));
#define SEGMENTS(to)                                                                               \
  __asm__ volatile("mov %%cs, %0\n\tmov %%ss, %1\n\tmov %%gs, %2\n\tmov %%fs, %3"                  \
                   : "=&r"(to[0]), "=&r"(to[1]), "=&r"(to[2]), "=&r"(to[3]))
  SEGMENTS(before);
  uint64_t a = 0xa1, b = 0xb1, c = 0xc1, d = 0xd1, si = 0x51, di = 0xd2, flags = arithmetic;
  register uint64_t r8 __asm__("r8") = 0x81;
  register uint64_t r9 __asm__("r9") = 0x91;
  register uint64_t r10 __asm__("r10") = 0x101;
  register uint64_t r11 __asm__("r11") = 0x111;
  __asm__ volatile(ON_STACK("pushq %[flags]\n\t"
                            "popfq\n\t"
                            "movb $1, (%[border])\n\t"
                            "movb $1, (%[other])\n\t"
                            "pushfq\n\t"
                            "popq %[flags]\n\t"
                            "cld")
                   : [flags] "+r"(flags), "+a"(a), "+b"(b), "+c"(c), "+d"(d), "+S"(si), "+D"(di),
                     "+r"(r8), "+r"(r9), "+r"(r10), "+r"(r11)
                   : [border] "r"(border), [other] "r"(other)
                   : "memory", "cc");
  const int kept = a == 0xa1 && b == 0xb1 && c == 0xc1 && d == 0xd1 && si == 0x51 && di == 0xd2 &&
                   r8 == 0x81 && r9 == 0x91 && r10 == 0x101 && r11 == 0x111;
  SEGMENTS(after);
  __asm__ volatile("movq %%xmm7, %0" : "=r"(vector));
  return kept && vector == 0x7777 && (flags & arithmetic) == arithmetic &&
         memcmp(before, after, sizeof before) == 0;
}

static const struct {
  const char* name;
  int (*touch)(uint64_t border, uint64_t other);
} ways[] = {
    {"reads", reads},
    {"writes", writes},
    {"straddles", straddles},
    {"moves-vectors", moves_vectors},
    {"locks", locks},
    {"copies", copies},
    {"copies-backwards", copies_backwards},
    {"calls", calls},
    {"executes", executes},
    {"finds-what-it-was-given", finds_what_it_was_given},
    {"keeps-registers", keeps_registers},
};

int main(int argc, char** argv) {
  for (int i = 1; i + 2 < argc; i += 3) {
    int result = 0;
    for (size_t way = 0; way < sizeof ways / sizeof *ways; ++way) {
      if (is(argv[i], ways[way].name)) {
        result = ways[way].touch(hexadecimal(argv[i + 1]), hexadecimal(argv[i + 2]));
      }
    }
    if (!result) {
      return i;
    }
  }
  return 0;
}
