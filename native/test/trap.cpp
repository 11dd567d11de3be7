// What UBSan is to trap, and what not, in a program without libc as the monitor is one: a shift by
// less than an int has bits, or, with any argument, by more.
#include "sys/start.hpp"
#include "sys/syscall.hpp"

void casemate_main(const unsigned long* stack, const casemate::sys::Instant* /* started */) {
  const auto arguments = static_cast<int>(stack[0]);
  const int shifted = 1 << 20 * arguments;
  for (;;) {
    casemate::sys::call(__NR_exit_group, shifted == 1 << 20 ? 0 : 1);
  }
}
