#include "jail/seccomp.hpp"
#include "test/unit.hpp"

#include <array>
#include <cstring>
#include <set>
#include <vector>

using namespace casemate::jail::seccomp;

namespace {

constexpr std::uint32_t refused = SECCOMP_RET_TRAP;

/// What the kernel would answer. As its checker does, takes no program that jumps out
/// of itself or does not end in a verdict.
std::uint32_t evaluate(std::span<const sock_filter> program, const seccomp_data& data) {
  std::uint32_t accumulator = 0;
  for (std::size_t at = 0; at < program.size(); ++at) {
    const sock_filter& instruction = program[at];
    switch (instruction.code) {
    case BPF_LD | BPF_W | BPF_ABS:
      if (instruction.k + 4 > sizeof data) {
        return 1;
      }
      std::memcpy(&accumulator, reinterpret_cast<const char*>(&data) + instruction.k, 4);
      break;
    case BPF_JMP | BPF_JEQ | BPF_K:
      at += accumulator == instruction.k ? instruction.jt : instruction.jf;
      break;
    case BPF_JMP | BPF_JGE | BPF_K:
      at += accumulator >= instruction.k ? instruction.jt : instruction.jf;
      break;
    case BPF_JMP | BPF_JA:
      at += instruction.k;
      break;
    case BPF_RET | BPF_K:
      return instruction.k;
    default:
      return 1;
    }
  }
  return 1;
}

seccomp_data call(std::uint32_t number, std::uint64_t first = 0, std::uint64_t second = 0) {
  seccomp_data data{};
  data.nr = static_cast<int>(number);
  data.arch = AUDIT_ARCH_X86_64;
  data.args[0] = first;
  data.args[1] = second;
  return data;
}

std::vector<sock_filter> compile_all(std::vector<Rule> rules) {
  std::vector<sock_filter> program(BPF_MAXINSNS);
  program.resize(compile(rules, refused, program));
  return program;
}

/// Every number up to 600, and the ones at the edges of what a number can be.
void check_numbers(const std::set<std::uint32_t>& allowed) {
  std::vector<Rule> rules;
  for (const std::uint32_t number : allowed) {
    rules.insert(rules.begin(), Rule{number}); // any order will do
  }
  const auto program = compile_all(rules);
  REQUIRE(!program.empty());
  for (std::uint32_t number = 0; number <= 600; ++number) {
    const bool is_allowed = allowed.count(number) != 0;
    if (evaluate(program, call(number)) != (is_allowed ? SECCOMP_RET_ALLOW : refused)) {
      casemate::unit::fail(__FILE__, __LINE__, "number " + std::to_string(number));
    }
  }
  CHECK_EQ(evaluate(program, call(0x3fffffff)), refused);
  CHECK_EQ(evaluate(program, call(0x40000000)), std::uint32_t{SECCOMP_RET_KILL_PROCESS});
  CHECK_EQ(evaluate(program, call(0xffffffff)), std::uint32_t{SECCOMP_RET_KILL_PROCESS});
}

} // namespace

TEST("a seccomp filter allows exactly the listed numbers, whatever their pattern") {
  check_numbers({});
  check_numbers({0});
  check_numbers({0, 1, 2, 3});
  check_numbers({600});
  check_numbers({1, 3, 5, 16, 17, 18, 231, 334, 435});
  std::set<std::uint32_t> even, dense, all;
  for (std::uint32_t number = 0; number <= 600; ++number) {
    if (number % 2 == 0) {
      even.insert(number);
    }
    if (number % 7 != 3 && number < 590) {
      dense.insert(number);
    }
  }
  check_numbers(even); // longer than a jump of one byte
  even.insert(dense.begin(), dense.lower_bound(60));
  check_numbers(even);
  dense.erase(dense.lower_bound(500), dense.end());
  check_numbers(dense);
}

TEST("a seccomp filter searches in logarithmic depth") {
  std::vector<Rule> rules;
  for (std::uint32_t number = 0; number < 256; number += 2) {
    rules.push_back({number});
  }
  const auto program = compile_all(rules);
  REQUIRE(!program.empty());
  for (std::uint32_t number = 0; number < 256; ++number) {
    // As evaluate() does, counting.
    std::size_t steps = 0;
    for (std::size_t at = 4; program[at].code != (BPF_RET | BPF_K); ++at, ++steps) {
      at += program[at].code == (BPF_JMP | BPF_JA) ? program[at].k
            : number >= program[at].k              ? program[at].jt
                                                   : program[at].jf;
    }
    CHECK(steps <= 11); // log2 of 257 intervals, and jumps that take two
  }
}

TEST("a seccomp filter can limit one argument of a call to some values") {
  constexpr std::uint32_t commands[] = {0xae80, 0x8090ae81, 7};
  constexpr std::uint32_t descriptors[] = {3};
  const auto program = compile_all({{16, 1, commands}, {44, 0, descriptors}, {17}});
  REQUIRE(!program.empty());
  for (const std::uint32_t command : commands) {
    CHECK_EQ(evaluate(program, call(16, 99, command)), std::uint32_t{SECCOMP_RET_ALLOW});
    // The kernel takes it as 32 bits too: the upper half does not matter.
    CHECK_EQ(evaluate(program, call(16, 0, command | 1ull << 40)),
             std::uint32_t{SECCOMP_RET_ALLOW});
  }
  CHECK_EQ(evaluate(program, call(16, 7, 0xae81)), refused);
  CHECK_EQ(evaluate(program, call(16, 0xae80, 0)), refused);
  CHECK_EQ(evaluate(program, call(44, 3)), std::uint32_t{SECCOMP_RET_ALLOW});
  CHECK_EQ(evaluate(program, call(44, 4)), refused);
  CHECK_EQ(evaluate(program, call(17, 4)), std::uint32_t{SECCOMP_RET_ALLOW});
}

TEST("a seccomp filter can limit two arguments of a call") {
  constexpr std::uint32_t descriptors[] = {3, 9};
  constexpr std::uint32_t commands[] = {4, 5};
  const auto program = compile_all({{71}, {72, 0, descriptors, 1, commands}, {73}});
  REQUIRE(!program.empty());
  for (std::uint32_t descriptor = 0; descriptor < 12; ++descriptor) {
    for (std::uint32_t command = 0; command < 12; ++command) {
      const bool is_allowed =
          (descriptor == 3 || descriptor == 9) && (command == 4 || command == 5);
      CHECK_EQ(evaluate(program, call(72, descriptor, command)),
               is_allowed ? SECCOMP_RET_ALLOW : refused);
    }
  }
  CHECK_EQ(evaluate(program, call(71, 1, 1)), std::uint32_t{SECCOMP_RET_ALLOW});
  CHECK_EQ(evaluate(program, call(73, 1, 1)), std::uint32_t{SECCOMP_RET_ALLOW});
  CHECK_EQ(evaluate(program, call(74)), refused);
}

TEST("a seccomp filter takes as many values as a jump can span") {
  std::vector<std::uint32_t> values(max_values);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<std::uint32_t>(3 * i);
  }
  const auto program = compile_all({{1}, {16, 1, values}, {300}});
  REQUIRE(!program.empty());
  for (std::uint32_t value = 0; value < 800; ++value) {
    const bool is_allowed = value % 3 == 0 && value / 3 < values.size();
    CHECK_EQ(evaluate(program, call(16, 0, value)), is_allowed ? SECCOMP_RET_ALLOW : refused);
  }
  CHECK_EQ(evaluate(program, call(300)), std::uint32_t{SECCOMP_RET_ALLOW});
  CHECK_EQ(evaluate(program, call(301)), refused);
}

TEST("a seccomp filter ends the process on another architecture") {
  const auto program = compile_all({{0}});
  seccomp_data data = call(0);
  data.arch = AUDIT_ARCH_I386;
  CHECK_EQ(evaluate(program, data), std::uint32_t{SECCOMP_RET_KILL_PROCESS});
}

TEST("rules that make no sense do not compile") {
  CHECK(compile_all({{5}, {5}}).empty());
  CHECK(compile_all({{0x40000000}}).empty());
  CHECK(compile_all({{1, 6}}).empty());
  const std::vector<std::uint32_t> too_many(max_values + 1);
  CHECK(compile_all({{1, 0, too_many}}).empty());
  CHECK(compile_all({{1, 0, {}, 6}}).empty());
  CHECK(compile_all({{1, 0, {}, 1, too_many}}).empty());
  CHECK(compile_all(std::vector<Rule>(max_rules + 1)).empty());
}

TEST("a program that does not fit is refused, and nothing behind its end is touched") {
  std::vector<Rule> rules = {{1}, {3}, {5}, {7}};
  std::vector<sock_filter> whole(BPF_MAXINSNS);
  const std::size_t size = compile(rules, refused, whole);
  REQUIRE(size > 0);
  std::array<sock_filter, 64> small{};
  CHECK_EQ(compile(rules, refused, std::span(small).first(size)), size);
  small = {};
  CHECK_EQ(compile(rules, refused, std::span(small).first(size - 1)), 0u);
  CHECK_EQ(small[size - 1].code, 0);
}

TEST("a filter made by the compiler is the one made at run time") {
  constexpr auto make = [] { return std::array{Rule{60}, Rule{1}, Rule{231}}; };
  constexpr auto program = assemble<make, refused>();
  const auto expected = compile_all({{1}, {60}, {231}});
  REQUIRE(program.size() == expected.size());
  CHECK(std::memcmp(program.data(), expected.data(), sizeof program) == 0);
}
