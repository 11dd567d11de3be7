/* Rings the doorbell (the start-up code does) and is never heard of again. */
#include "casemate-guest.h"

int main(void) {
  for (;;) {
    __asm__ volatile("pause");
  }
}
