/* Writes as many MiB as its argument says: bytes that count up from 0, over and over. */
#include "casemate-guest.h"

static unsigned char mebibyte[1 << 20];

int main(int argc, char** argv) {
  uint64_t count = 0;
  for (const char* digit = argc > 1 ? argv[1] : ""; *digit != 0; ++digit) {
    count = count * 10 + (uint64_t)(*digit - '0');
  }
  for (size_t i = 0; i < sizeof mebibyte; ++i) {
    mebibyte[i] = (unsigned char)i;
  }
  for (; count > 0; --count) {
    if (casemate_write(mebibyte, sizeof mebibyte) < 0) {
      return 1;
    }
  }
  return 0;
}
