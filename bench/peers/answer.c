/*
 * The smallest static program that answers: prints as much as the built-in guest does. What the
 * HTTP servers beside examples/http-vm-per-request start.
 */
#include "../floor/floor.h"

static const char text[] =
    "Hello from a process.\n"
    "I run as any program of this machine's user does, on its kernel, its files\n"
    "and its network, unless whoever started me has seen to it:\n"
    "  processor  the machine's\n"
    "  memory     as much as there is\n"
    "  devices    all that this user may open, and a system call for everything\n"
    "Goodbye.\n";

_Noreturn void _start(void) {
  CALL(__NR_write, 1, text, sizeof text - 1);
  for (;;) {
    CALL(__NR_exit_group, 0);
  }
}
