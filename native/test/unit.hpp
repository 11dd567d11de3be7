// Unit tests of what is pure C++, in the Test Anything Protocol: what ava and
// scripts/ speak too, so one counter serves all suites.
//
//   TEST("a moved-from Fd owns nothing") {
//     REQUIRE(number >= 0);    // leaves the test where it fails
//     CHECK_EQ(fd.get(), -1);  // says both values, goes on
//   }
#pragma once

#include <sstream>
#include <string>

namespace casemate::unit {

struct Test {
  Test(const char* title, void (*body)());

  const char* title;
  void (*body)();
  Test* next = nullptr; // in order of registration
};

void fail(const char* file, int line, const std::string& message);
void skip(const char* reason);

template <typename T> std::string show(const T& value) {
  std::ostringstream out;
  if constexpr (requires { out << value; }) {
    out << std::boolalpha << value;
  } else {
    out << "a value of " << sizeof(T) << " bytes";
  }
  return out.str();
}

template <typename A, typename B>
void check_equal(const char* file, int line, const char* expression, const A& actual,
                 const B& expected) {
  if (!(actual == expected)) {
    fail(file, line, std::string(expression) + ": " + show(actual) + " != " + show(expected));
  }
}

} // namespace casemate::unit

#define CASEMATE_JOIN_(a, b) a##b
#define CASEMATE_JOIN(a, b) CASEMATE_JOIN_(a, b)
#define CASEMATE_TEST(title, name)                                                                 \
  static void name();                                                                              \
  static ::casemate::unit::Test CASEMATE_JOIN(name, _entry)(title, name);                          \
  static void name()

#define TEST(title) CASEMATE_TEST(title, CASEMATE_JOIN(test_at_line_, __LINE__))
#define CHECK(expression)                                                                          \
  ((expression) ? void() : ::casemate::unit::fail(__FILE__, __LINE__, #expression))
#define CHECK_EQ(actual, expected)                                                                 \
  ::casemate::unit::check_equal(__FILE__, __LINE__, #actual " == " #expected, actual, expected)
#define REQUIRE(expression)                                                                        \
  do {                                                                                             \
    if (!(expression)) {                                                                           \
      ::casemate::unit::fail(__FILE__, __LINE__, #expression);                                     \
      return;                                                                                      \
    }                                                                                              \
  } while (false)
#define SKIP(reason)                                                                               \
  do {                                                                                             \
    ::casemate::unit::skip(reason);                                                                \
    return;                                                                                        \
  } while (false)
