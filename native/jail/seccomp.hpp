// Allow-lists of system calls, compiled into a seccomp filter: at compile time for
// the monitor's own threads, at run time for the steps of a plan. seccomp(2)
//
// Every installation has the kernel walk the filter once for each system call
// number, so the depth of the program is what it costs: a binary search over
// intervals of numbers took 113 us where a linear list took 322.
#pragma once

#include "sys/result.hpp"
#include "sys/syscall.hpp"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace casemate::jail::seccomp {

/// One allowed system call. With `values`, only while the low 32 bits of that
/// argument (0 to 5) are one of them: right for what the kernel takes as an int or
/// an unsigned int, as descriptors, ioctl numbers and flags are. The order of
/// `values` is the order of comparison. With `also_values`, only while another argument is one
/// of those, too.
struct Rule {
  std::uint32_t number = 0;
  std::uint32_t argument = 0;
  std::span<const std::uint32_t> values{};
  std::uint32_t also_argument = 0;
  std::span<const std::uint32_t> also_values{};
};

inline constexpr std::size_t max_rules = 512;
inline constexpr std::size_t max_values = 255; // a jump in classic BPF spans a byte

namespace detail {

/// Numbers from `first` up to the next interval's share a verdict.
struct Interval {
  std::uint32_t first = 0;
  std::uint32_t verdict = 0;  // SECCOMP_RET_*, where there is no rule
  const Rule* rule = nullptr; // one with values
};

constexpr sock_filter statement(unsigned code, std::uint32_t operand) {
  return {static_cast<std::uint16_t>(code), 0, 0, operand};
}

constexpr sock_filter branch(unsigned test, std::uint32_t operand, std::size_t if_true,
                             std::size_t if_false) {
  return {static_cast<std::uint16_t>(BPF_JMP | test | BPF_K), static_cast<std::uint8_t>(if_true),
          static_cast<std::uint8_t>(if_false), operand};
}

constexpr sock_filter load(std::size_t offset) {
  return statement(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset));
}

constexpr sock_filter verdict(std::uint32_t action) { return statement(BPF_RET | BPF_K, action); }

class Compiler {
public:
  constexpr Compiler(std::uint32_t refused, std::span<sock_filter> out)
      : refused_(refused), out_(out) {}

  constexpr std::size_t compile(std::span<Rule> rules) {
    if (!split(rules)) {
      return 0;
    }
    // On another architecture the numbers mean other calls.
    emit(load(offsetof(seccomp_data, arch)));
    emit(branch(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0));
    emit(verdict(SECCOMP_RET_KILL_PROCESS));
    emit(load(offsetof(seccomp_data, nr)));
    search(0, count_);
    return size_ <= out_.size() && size_ <= BPF_MAXINSNS ? size_ : 0;
  }

private:
  constexpr bool split(std::span<Rule> rules) {
    if (rules.size() > max_rules) {
      return false;
    }
    std::sort(rules.begin(), rules.end(),
              [](const Rule& a, const Rule& b) { return a.number < b.number; });
    std::uint32_t next = 0; // the first number without a verdict yet
    for (const Rule& rule : rules) {
      if (rule.number < next || rule.number >= x32_bit || rule.argument > 5 ||
          rule.values.size() > max_values || rule.also_argument > 5 ||
          rule.also_values.size() > max_values) {
        return false;
      }
      if (rule.number > next) {
        append({next, refused_, nullptr});
      }
      append({rule.number, SECCOMP_RET_ALLOW, is_free(rule) ? nullptr : &rule});
      next = rule.number + 1;
    }
    append({next, refused_, nullptr});
    append({x32_bit, SECCOMP_RET_KILL_PROCESS, nullptr});
    return true;
  }

  static constexpr bool is_free(const Rule& rule) {
    return rule.values.empty() && rule.also_values.empty();
  }

  constexpr void append(const Interval& interval) {
    if (count_ > 0) {
      const Interval& last = intervals_[count_ - 1];
      if (last.rule == nullptr && interval.rule == nullptr && last.verdict == interval.verdict) {
        return; // neighbours with one verdict are one interval
      }
    }
    intervals_[count_++] = interval;
  }

  constexpr void search(std::size_t from, std::size_t to) {
    if (to - from == 1) {
      leaf(intervals_[from]);
      return;
    }
    const std::size_t middle = from + (to - from) / 2;
    const std::size_t left = length(from, middle);
    if (left <= 255) {
      emit(branch(BPF_JGE, intervals_[middle].first, left, 0));
    } else {
      emit(branch(BPF_JGE, intervals_[middle].first, 0, 1));
      emit(statement(BPF_JMP | BPF_JA, static_cast<std::uint32_t>(left)));
    }
    search(from, middle);
    search(middle, to);
  }

  /// How many instructions search() emits.
  constexpr std::size_t length(std::size_t from, std::size_t to) const {
    if (to - from == 1) {
      const Rule* rule = intervals_[from].rule;
      return rule == nullptr ? 1 : length(rule->values) + length(rule->also_values) + 1;
    }
    const std::size_t middle = from + (to - from) / 2;
    const std::size_t left = length(from, middle);
    return (left <= 255 ? 1 : 2) + left + length(middle, to);
  }

  /// How many instructions require() emits.
  static constexpr std::size_t length(std::span<const std::uint32_t> values) {
    return values.empty() ? 0 : values.size() + 2;
  }

  constexpr void leaf(const Interval& interval) {
    if (interval.rule == nullptr) {
      emit(verdict(interval.verdict));
      return;
    }
    require(interval.rule->argument, interval.rule->values);
    require(interval.rule->also_argument, interval.rule->also_values);
    emit(verdict(SECCOMP_RET_ALLOW));
  }

  /// Goes on behind it where the argument is one of these.
  constexpr void require(std::uint32_t argument, std::span<const std::uint32_t> values) {
    if (values.empty()) {
      return;
    }
    emit(load(offsetof(seccomp_data, args) + 8 * argument));
    for (std::size_t i = 0; i < values.size(); ++i) {
      emit(branch(BPF_JEQ, values[i], values.size() - i, 0));
    }
    emit(verdict(refused_));
  }

  constexpr void emit(const sock_filter& instruction) {
    if (size_ < out_.size()) {
      out_[size_] = instruction;
    }
    ++size_;
  }

  static constexpr std::uint32_t x32_bit = 0x40000000;

  std::uint32_t refused_;
  std::span<sock_filter> out_;
  std::size_t size_ = 0;
  std::size_t count_ = 0;
  std::array<Interval, 2 * max_rules + 2> intervals_{};
};

} // namespace detail

/// Compiles `rules`, which it sorts, into `out`; whatever is not allowed ends in
/// `refused` (SECCOMP_RET_*), another architecture and x32 end the process. Returns
/// the number of instructions, or 0: a number twice, an argument that is none, too
/// many rules or values, or an `out` too small (BPF_MAXINSNS always suffices to tell).
constexpr std::size_t compile(std::span<Rule> rules, std::uint32_t refused,
                              std::span<sock_filter> out) {
  return detail::Compiler(refused, out).compile(rules);
}

/// The program of `MakeRules()`, an array of rules, made by the compiler.
template <auto MakeRules, std::uint32_t Refused> consteval auto assemble() {
  constexpr std::size_t size = [] {
    auto rules = MakeRules();
    std::array<sock_filter, BPF_MAXINSNS> program{};
    return compile(rules, Refused, program);
  }();
  static_assert(size > 0, "these rules do not compile");
  auto rules = MakeRules();
  std::array<sock_filter, size> program{};
  compile(rules, Refused, program);
  return program;
}

/// Puts a filter on the calling thread, on top of those it has. Needs no_new_privs,
/// or CAP_SYS_ADMIN in the user namespace. `flags` are SECCOMP_FILTER_FLAG_*.
inline sys::SysError install(std::span<const sock_filter> program, unsigned flags = 0) {
  const sock_fprog argument{static_cast<unsigned short>(program.size()),
                            const_cast<sock_filter*>(program.data())};
  return sys::check("seccomp", sys::call(__NR_seccomp, SECCOMP_SET_MODE_FILTER, flags, &argument));
}

} // namespace casemate::jail::seccomp
