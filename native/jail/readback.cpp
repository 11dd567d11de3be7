#include "jail/readback.hpp"

#include <fcntl.h>
#include <string_view>

namespace casemate::jail {

namespace {

/// A small file of /proc in a buffer. The kernel writes it, so it is trusted.
struct ProcFile {
  char data[4096];
  std::string_view text;
  sys::SysError error{};

  ProcFile(const Host& host, long pid, const char* name) {
    long fd =
        sys::call(__NR_openat, host.proc.get(), ProcPath(pid, name).text, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
      error = sys::check("open(/proc/pid)", fd);
      return;
    }
    long size = sys::call_retry(__NR_read, fd, data, sizeof data);
    sys::call(__NR_close, fd);
    error = sys::check("read(/proc/pid)", size);
    text = {data, size < 0 ? 0 : static_cast<std::size_t>(size)};
  }
};

/// The rest of the line that starts with "<name>:\t".
std::string_view field(std::string_view status, std::string_view name) {
  std::size_t at = 0;
  while (at < status.size()) {
    std::size_t end = status.find('\n', at);
    std::string_view line = status.substr(at, end == status.npos ? status.npos : end - at);
    if (line.size() > name.size() && line.starts_with(name) && line[name.size()] == ':') {
      line.remove_prefix(name.size() + 1);
      while (!line.empty() && (line.front() == '\t' || line.front() == ' ')) {
        line.remove_prefix(1);
      }
      return line;
    }
    if (end == status.npos) {
      break;
    }
    at = end + 1;
  }
  return {};
}

/// Whether a line holds exactly `count` decimal numbers, each of them `value`.
bool all_are(std::string_view line, std::uint32_t value, int count) {
  int seen = 0;
  std::size_t at = 0;
  while (at < line.size()) {
    if (line[at] == '\t' || line[at] == ' ') {
      ++at;
      continue;
    }
    std::uint64_t number = 0;
    while (at < line.size() && line[at] >= '0' && line[at] <= '9') {
      number = number * 10 + static_cast<std::uint64_t>(line[at++] - '0');
    }
    if (number != value || ++seen > count) {
      return false;
    }
  }
  return seen == count;
}

bool no_capabilities(std::string_view status) {
  for (std::string_view set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}) {
    std::string_view value = field(status, set);
    if (value.empty() || value.find_first_not_of('0') != value.npos) {
      return false;
    }
  }
  return true;
}

} // namespace

Mismatch read_back(const Host& host, long pid, const Expected& expected) {
  ProcFile status(host, pid, "status");
  if (status.error) {
    return {nullptr, status.error};
  }
  auto asked = [&](casemate_check check) { return (expected.checks & check) != 0; };
  // Four ids each: real, effective, saved, filesystem.
  if (asked(CASEMATE_CHECK_IDS) && (!all_are(field(status.text, "Uid"), expected.user_id, 4) ||
                                    !all_are(field(status.text, "Gid"), expected.group_id, 4))) {
    return {"ids"};
  }
  if (asked(CASEMATE_CHECK_CAPABILITIES) && !no_capabilities(status.text)) {
    return {"capabilities"};
  }
  if (asked(CASEMATE_CHECK_NO_NEW_PRIVS) && field(status.text, "NoNewPrivs") != "1") {
    return {"noNewPrivs"};
  }
  if (asked(CASEMATE_CHECK_SECCOMP) && field(status.text, "Seccomp") != "2") {
    return {"seccomp"};
  }
  if (asked(CASEMATE_CHECK_LABEL)) {
    ProcFile current(host, pid, "attr/current");
    if (current.error) {
      return {nullptr, current.error};
    }
    std::string_view label = current.text;
    while (!label.empty() && (label.back() == '\0' || label.back() == '\n')) {
      label.remove_suffix(1);
    }
    if (label != expected.label) {
      return {"selinux"};
    }
  }
  return {};
}

} // namespace casemate::jail
