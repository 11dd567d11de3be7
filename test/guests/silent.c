/* Never makes a hypercall, not even the doorbell: without the start-up code. */
void _start(void) {
  for (;;) {
    __asm__ volatile("pause");
  }
}
