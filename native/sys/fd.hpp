#pragma once

#include "sys/syscall.hpp"

#include <utility>

namespace casemate::sys {

/// Owns a file descriptor. Move-only; closing is its only effect, and it is
/// never an error (Linux frees the number whatever close(2) returns).
class Fd {
public:
  Fd() = default;
  explicit Fd(int number) : number_(number) {}
  Fd(Fd&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      reset(std::exchange(other.number_, -1));
    }
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { reset(); }

  int get() const { return number_; }
  explicit operator bool() const { return number_ >= 0; }
  int release() { return std::exchange(number_, -1); }
  void reset(int number = -1) {
    if (number_ >= 0) {
      call(__NR_close, number_);
    }
    number_ = number;
  }

private:
  int number_ = -1;
};

} // namespace casemate::sys
