/* Writes what it reads, until the end of input. */
#include "casemate-guest.h"

static char buffer[256 * 1024];

int main(void) {
  int64_t size;
  while ((size = casemate_read(buffer, sizeof buffer)) > 0) {
    if (casemate_write(buffer, (size_t)size) < 0) {
      return 1;
    }
  }
  return 0;
}
