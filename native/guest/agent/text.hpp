// Text, without libc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace casemate::agent {

/// As strlen(3). A volatile read, or gcc would make a call to strlen of it.
inline std::size_t length(const char* text) {
  std::size_t size = 0;
  while (*const_cast<const volatile char*>(text + size) != 0) {
    ++size;
  }
  return size;
}

inline std::string_view view(const char* text) { return {text, length(text)}; }

/// What stands before the next `separator`, which is taken away with it.
inline std::string_view next(std::string_view& rest, char separator) {
  std::size_t size = 0;
  while (size < rest.size() && rest[size] != separator) {
    ++size;
  }
  const auto field = rest.substr(0, size);
  rest.remove_prefix(size < rest.size() ? size + 1 : size);
  return field;
}

/// A decimal number of 32 bits. False where it is none.
inline bool number(std::string_view text, std::uint32_t& value) {
  std::uint64_t sum = 0;
  for (const char digit : text) {
    if (digit < '0' || digit > '9') {
      return false;
    }
    sum = sum * 10 + static_cast<std::uint64_t>(digit - '0');
    if (sum > UINT32_MAX) {
      return false;
    }
  }
  value = static_cast<std::uint32_t>(sum);
  return !text.empty();
}

/// Text in a buffer of fixed size, NUL-terminated. What does not fit makes it invalid.
template <std::size_t size> class Text {
public:
  Text& operator<<(std::string_view text) {
    for (const char character : text) {
      if (used_ + 1 >= size) {
        cut_ = true;
        break;
      }
      text_[used_++] = character;
    }
    text_[used_] = 0;
    return *this;
  }
  Text& operator<<(const char* text) { return *this << view(text); }
  Text& operator<<(std::uint64_t number) {
    char digits[20];
    std::size_t at = sizeof digits;
    do {
      digits[--at] = static_cast<char>('0' + number % 10);
      number /= 10;
    } while (number != 0);
    return *this << std::string_view{digits + at, sizeof digits - at};
  }

  bool fits() const { return !cut_; }
  const char* c_str() const { return text_; }
  std::size_t length() const { return used_; }
  void clear() {
    used_ = 0;
    text_[0] = 0;
    cut_ = false;
  }

private:
  char text_[size]{};
  std::size_t used_ = 0;
  bool cut_ = false;
};

} // namespace casemate::agent
