// How much a guest may do in a time: bytes and operations, each by a bucket of tokens.
#pragma once

#include <algorithm>
#include <cstdint>

namespace casemate::machine {

/// 0 per second: without limit. A burst is what may be done at once after a rest.
struct RateLimitOptions {
  std::uint64_t bytes_per_second = 0;
  std::uint64_t bytes_burst = 0;
  std::uint64_t operations_per_second = 0;
  std::uint64_t operations_burst = 0;
};

/// A bucket kept as the time at which it is empty: what is taken out moves that on, by the
/// time that it takes to flow in again, and a full bucket is empty a burst ago.
class TokenBucket {
public:
  /// Of an amount; more counts as that, and then all below fits into 64 bits.
  static constexpr std::uint64_t max_amount = std::uint64_t{1} << 32;

  TokenBucket() = default;
  TokenBucket(std::uint64_t per_second, std::uint64_t burst)
      : per_second_(std::min(per_second, max_per_second)), burst_ns_(time_of(burst)) {}

  bool is_limited() const { return per_second_ != 0; }

  /// From when on something may be taken out.
  std::int64_t empty_until() const { return empty_until_; }

  /// As much as it was: a bucket may owe, and then takes longer to have something.
  void take(std::uint64_t amount, std::int64_t now) {
    if (per_second_ == 0) {
      return;
    }
    if (empty_until_ < now - burst_ns_) {
      empty_until_ = now - burst_ns_;
      remainder_ = 0;
    }
    const std::uint64_t tokens = std::min(amount, max_amount) * second + remainder_;
    empty_until_ =
        std::min(empty_until_, longest) + static_cast<std::int64_t>(tokens / per_second_);
    remainder_ = tokens % per_second_;
  }

private:
  static constexpr std::uint64_t second = 1'000'000'000;
  static constexpr std::uint64_t max_per_second = std::uint64_t{1} << 62;
  static constexpr std::int64_t longest = std::int64_t{1} << 61;

  std::int64_t time_of(std::uint64_t amount) const {
    return per_second_ == 0
               ? 0
               : static_cast<std::int64_t>(std::min(amount, max_amount) * second / per_second_);
  }

  std::uint64_t per_second_ = 0;
  std::int64_t burst_ns_ = 0;
  std::int64_t empty_until_ = -longest * 3; // CLOCK_MONOTONIC ns; full, however long that takes
  std::uint64_t remainder_ = 0;             // of the last division, so that small amounts add up
};

class RateLimit {
public:
  RateLimit() = default;
  explicit RateLimit(const RateLimitOptions& options)
      : bytes_(options.bytes_per_second, options.bytes_burst),
        operations_(options.operations_per_second, options.operations_burst) {}

  /// Or else there is no need to look at the clock.
  bool is_limited() const { return bytes_.is_limited() || operations_.is_limited(); }

  /// 0 where an operation may be done, or else the time to ask again. CLOCK_MONOTONIC ns
  std::uint64_t wait(std::uint64_t now) const {
    const std::int64_t at = std::max(bytes_.empty_until(), operations_.empty_until());
    return at <= static_cast<std::int64_t>(now) ? 0 : static_cast<std::uint64_t>(at);
  }

  /// An operation was done. One that is larger than what was left is paid for by the next.
  void charge(std::uint64_t bytes, std::uint64_t now) {
    bytes_.take(bytes, static_cast<std::int64_t>(now));
    operations_.take(1, static_cast<std::int64_t>(now));
  }

private:
  TokenBucket bytes_;
  TokenBucket operations_;
};

} // namespace casemate::machine
