#include "machine/rate_limit.hpp"
#include "unit.hpp"

namespace casemate::unit {

namespace {

using machine::RateLimit;

constexpr std::uint64_t second = 1'000'000'000;
constexpr std::uint64_t start = 1000 * second;

/// How many operations of a size are done until `end`, as soon as each may be.
std::uint64_t done_until(RateLimit& limit, std::uint64_t size, std::uint64_t end) {
  std::uint64_t count = 0;
  for (std::uint64_t now = start; now < end;) {
    if (const std::uint64_t at = limit.wait(now); at != 0) {
      now = at;
    } else {
      limit.charge(size, now);
      ++count;
    }
  }
  return count;
}

} // namespace

TEST("without a limit everything may be done at once") {
  RateLimit limit;
  for (int i = 0; i < 1000; ++i) {
    limit.charge(~std::uint64_t{0}, start);
    CHECK_EQ(limit.wait(start), 0u);
  }
}

TEST("bytes are limited to their rate, behind a burst") {
  RateLimit limit({1'000'000, 100'000, 0, 0});
  CHECK_EQ(done_until(limit, 1000, start + 10 * second), 10'100u);
}

TEST("operations are limited to their rate, whatever their size") {
  RateLimit limit({0, 0, 100, 10});
  CHECK_EQ(done_until(limit, 1'000'000, start + 10 * second), 1010u);
}

TEST("the smaller of both limits counts") {
  RateLimit by_bytes({1000, 0, 100, 0});
  CHECK_EQ(done_until(by_bytes, 100, start + 10 * second), 100u);
  RateLimit by_operations({1000, 0, 5, 0});
  CHECK_EQ(done_until(by_operations, 100, start + 10 * second), 50u);
}

TEST("an operation that is larger than the burst is done, and paid for afterwards") {
  RateLimit limit({1000, 10, 0, 0});
  CHECK_EQ(limit.wait(start), 0u);
  limit.charge(5000, start);
  CHECK_EQ(limit.wait(start), start + 5 * second - second / 100);
}

TEST("amounts that take less than a nanosecond add up") {
  RateLimit limit({3'000'000'000, 0, 0, 0});
  CHECK_EQ(done_until(limit, 1, start + 1000), 3000u);
}

TEST("a long rest gives no more than a burst") {
  RateLimit limit({1000, 500, 0, 0});
  limit.charge(500, start);
  limit.charge(0, start + 1000 * second);
  limit.charge(500, start + 1000 * second);
  CHECK_EQ(limit.wait(start + 1000 * second), 0u);
  limit.charge(1, start + 1000 * second);
  CHECK(limit.wait(start + 1000 * second) != 0);
}

TEST("a burst is there at once, also one that takes longer than the machine is up") {
  RateLimit limit({1000, 4'000'000'000, 0, 0});
  limit.charge(3'999'999'999, start);
  CHECK_EQ(limit.wait(start), 0u);
  limit.charge(1001, start);
  CHECK_EQ(limit.wait(start), start + second);
}

TEST("numbers as large as they can be lead to no overflow") {
  constexpr std::uint64_t most = ~std::uint64_t{0};
  RateLimit fast({most, most, most, most});
  fast.charge(most, start);
  CHECK_EQ(fast.wait(start + 2 * second), 0u);
  RateLimit slow({1, most, 0, 0});
  for (int i = 0; i < 10; ++i) {
    slow.charge(most, start);
  }
  CHECK(slow.wait(start) > start);
}

} // namespace casemate::unit
