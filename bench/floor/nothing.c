/*
 * The smallest static program: ends with 0. What the peers of the bench start.
 *
 * With -DSTAMPED it first writes when its first instruction ran (as floor.h stamps) to the
 * descriptor that is the monitor's control socket: `floor --exec-only`.
 */
#include "floor.h"

_Noreturn void _start(void) {
#ifdef STAMPED
  uint64_t now = stamp();
  CALL(__NR_write, CONTROL, &now, sizeof now);
#endif
  for (;;) {
    CALL(__NR_exit_group, 0);
  }
}
