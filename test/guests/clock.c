/* Prints the time, is busy for as many milliseconds as its argument says, prints it
 * again; in nanoseconds. */
#include "casemate-guest.h"

int main(int argc, char** argv) {
  uint64_t ms = 0;
  for (const char* digit = argc > 1 ? argv[1] : ""; *digit != 0; ++digit) {
    ms = ms * 10 + (uint64_t)(*digit - '0');
  }
  uint64_t start = casemate_time_ns();
  casemate_print_number(start);
  casemate_print("\n");
  uint64_t now;
  do {
    now = casemate_time_ns();
  } while (now - start < ms * 1000000);
  casemate_print_number(now);
  casemate_print("\n");
  return 0;
}
