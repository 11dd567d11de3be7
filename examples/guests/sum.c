/* Computes on the input buffer it was launched with: how many little-endian 32-bit
 * numbers there are in it, their sum, the smallest and the largest. */
#include "casemate-guest.h"

int main(void) {
  size_t size;
  const uint32_t* numbers = (const uint32_t*)casemate_input(&size);
  if (size % sizeof *numbers != 0) {
    casemate_print("the input is not a whole number of 32-bit numbers\n");
    return 1;
  }

  size_t count = size / sizeof *numbers;
  uint64_t sum = 0;
  uint32_t smallest = UINT32_MAX, largest = 0;
  for (size_t i = 0; i < count; ++i) {
    sum += numbers[i];
    smallest = numbers[i] < smallest ? numbers[i] : smallest;
    largest = numbers[i] > largest ? numbers[i] : largest;
  }

  casemate_print("count ");
  casemate_print_number(count);
  casemate_print("\nsum ");
  casemate_print_number(sum);
  if (count > 0) {
    casemate_print("\nsmallest ");
    casemate_print_number(smallest);
    casemate_print("\nlargest ");
    casemate_print_number(largest);
  }
  casemate_print("\n");
  return 0;
}
