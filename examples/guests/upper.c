/* Reads its console and writes it back in capitals, until the end of input.
 *
 *   echo hello | casemate run upper.elf
 */
#include "casemate-guest.h"

static char buffer[64 * 1024];

int main(void) {
  for (;;) {
    int64_t size = casemate_read(buffer, sizeof buffer);
    if (size <= 0) {
      return 0;
    }
    for (int64_t i = 0; i < size; ++i) {
      if (buffer[i] >= 'a' && buffer[i] <= 'z') {
        buffer[i] = (char)(buffer[i] - 'a' + 'A');
      }
    }
    if (casemate_write(buffer, (size_t)size) < 0) {
      return 1;
    }
  }
}
