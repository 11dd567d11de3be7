// The one result type below the Node-API seam. The addon turns an error into a
// typed JavaScript error in one place (addon/errors.cpp); the monitor sends it
// over the control socket.
#pragma once

#include <utility>

namespace casemate::sys {

/// A failed system call: which one, and its errno. `call` is a string literal.
struct [[nodiscard]] SysError {
  const char* call = nullptr;
  int number = 0;

  explicit operator bool() const { return number != 0; }
};

/// A value, or the system call that failed to give it.
template <typename T> class [[nodiscard]] Result {
public:
  Result(T value) : value_(std::move(value)) {}
  Result(SysError error) : error_(error) {}

  bool ok() const { return error_.number == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & { return value_; }
  T&& value() && { return std::move(value_); }
  SysError error() const { return error_; }

private:
  T value_{};
  SysError error_{};
};

/// The result of a call whose value on success is of no interest.
inline SysError check(const char* call, long result) {
  return result < 0 ? SysError{call, static_cast<int>(-result)} : SysError{};
}

} // namespace casemate::sys
