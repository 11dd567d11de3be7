#include "test/unit.hpp"

#include <cstdio>

namespace casemate::unit {

namespace {

struct {
  Test* first = nullptr;
  Test** end = &first;
  int count = 0;
} registered;

struct {
  bool failed;
  const char* skipped;
} current;

} // namespace

Test::Test(const char* title, void (*body)()) : title(title), body(body) {
  *registered.end = this;
  registered.end = &next;
  ++registered.count;
}

void fail(const char* file, int line, const std::string& message) {
  current.failed = true;
  std::printf("# %s:%d: %s\n", file, line, message.c_str());
}

void skip(const char* reason) { current.skipped = reason; }

} // namespace casemate::unit

int main() {
  using namespace casemate::unit;
  // By line: a test that crashes must not take along what was said before it.
  static_cast<void>(std::setvbuf(stdout, nullptr, _IOLBF, 0));
  std::printf("TAP version 13\n1..%d\n", registered.count);
  bool failed = false;
  int number = 0;
  for (Test* test = registered.first; test != nullptr; test = test->next) {
    current = {};
    test->body();
    failed |= current.failed;
    std::printf("%s %d - %s%s%s\n", current.failed ? "not ok" : "ok", ++number, test->title,
                current.skipped ? " # SKIP " : "", current.skipped ? current.skipped : "");
  }
  return failed ? 1 : 0;
}
