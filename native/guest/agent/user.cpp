#include "guest/agent/user.hpp"

#include "sys/fd.hpp"
#include "sys/mapping.hpp"
#include "sys/syscall.hpp"

#include <fcntl.h>
#include <sys/stat.h>

namespace casemate::agent {

namespace {

/// A file of the guest, mapped; empty where there is none.
class Lines {
public:
  explicit Lines(const char* path) {
    const sys::Fd file{static_cast<int>(sys::call(__NR_open, path, O_RDONLY | O_CLOEXEC))};
    struct stat status {};
    if (!file || sys::call(__NR_fstat, file.get(), &status) < 0 || status.st_size <= 0) {
      return;
    }
    auto mapping = sys::Mapping::map(static_cast<std::size_t>(status.st_size), PROT_READ,
                                     MAP_PRIVATE, file.get());
    if (mapping) {
      mapping_ = std::move(mapping).value();
      rest_ = {reinterpret_cast<const char*>(mapping_.data()), mapping_.size()};
    }
  }

  bool next(std::string_view& line) {
    if (rest_.empty()) {
      return false;
    }
    line = agent::next(rest_, '\n');
    return true;
  }

private:
  sys::Mapping mapping_;
  std::string_view rest_;
};

/// passwd(5): name, password, uid, gid, comment, home, shell.
bool read_entry(std::string_view line, User& user) {
  const auto name = next(line, ':');
  next(line, ':');
  if (!number(next(line, ':'), user.uid) || !number(next(line, ':'), user.gid)) {
    return false;
  }
  next(line, ':');
  user.name.clear();
  user.name << name;
  user.home.clear();
  user.home << next(line, ':');
  return user.name.fits() && user.home.fits();
}

/// group(5): name, password, gid, members.
void find_groups(std::string_view name, User& user) {
  Lines lines("/etc/group");
  for (std::string_view line; lines.next(line) && user.group_count < user.groups.size();) {
    next(line, ':');
    next(line, ':');
    std::uint32_t gid;
    if (!number(next(line, ':'), gid)) {
      continue;
    }
    while (!line.empty()) {
      if (next(line, ',') == name) {
        user.groups[user.group_count++] = gid;
        break;
      }
    }
  }
}

} // namespace

bool find_user(std::string_view name, User& user) {
  Lines lines("/etc/passwd");
  for (std::string_view line; lines.next(line);) {
    std::string_view rest = line;
    if (next(rest, ':') == name && read_entry(line, user)) {
      find_groups(name, user);
      return true;
    }
  }
  return false;
}

void describe_user(User& user) {
  Lines lines("/etc/passwd");
  for (std::string_view line; lines.next(line);) {
    User found;
    if (read_entry(line, found) && found.uid == user.uid) {
      user.name = found.name;
      user.home = found.home;
      return;
    }
  }
}

} // namespace casemate::agent
