// What ThreadSanitizer is to see, and what not: the launcher's mutex around what two threads
// write, or, with any argument, nothing around it.
#include "sys/futex.hpp"

#include <cstdio>
#include <mutex>
#include <thread>

namespace {

casemate::sys::TaskMutex mutex;
int written = 0;

void write_often(bool alone) {
  for (int i = 0; i < 10'000; ++i) {
    std::unique_lock lock(mutex, std::defer_lock);
    if (alone) {
      lock.lock();
    }
    ++written;
  }
}

} // namespace

int main(int argc, char**) {
  std::thread other(write_often, argc == 1);
  write_often(argc == 1);
  other.join();
  std::printf("%d\n", written);
}
