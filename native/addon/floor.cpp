// What the headers of a newer libstdc++ and glibc take from their libraries, and
// libraries of the age that Node itself asks for (glibc 2.28, the libstdc++ of
// gcc 8) do not have. Defined here, hidden, the addon needs none of it from them:
// it loads wherever Node does, whatever it was compiled on. scripts/binaries.js
// says what would be missing next.
//
// By their names in the object files: in those headers they are visible to all.
#include <cstdlib>
#include <cxxabi.h>

extern "C" {

// Whether atomic operations may be plain ones (glibc 2.32). In Node they never may.
[[gnu::visibility("hidden")]] char casemate_single_threaded asm("__libc_single_threaded") = 0;

// std::__throw_bad_array_new_length() of gcc 11.
[[noreturn, gnu::visibility("hidden")]] void
casemate_bad_array_new_length() asm("_ZSt28__throw_bad_array_new_lengthv");

void casemate_bad_array_new_length() { abi::__cxa_throw_bad_array_new_length(); }

// std::__glibcxx_assert_fail(const char*, int, const char*, const char*) of gcc 12,
// for _GLIBCXX_ASSERTIONS. That it aborts is all that matters: what was indexed
// outside of its bounds goes no further.
[[noreturn, gnu::visibility("hidden")]] void
casemate_assert_fail(const char*, int, const char*,
                     const char*) asm("_ZSt21__glibcxx_assert_failPKciS0_S0_");

void casemate_assert_fail(const char*, int, const char*, const char*) { std::abort(); }
}
