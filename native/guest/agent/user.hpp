#pragma once

#include "guest/agent/text.hpp"

#include <array>
#include <cstdint>
#include <string_view>

namespace casemate::agent {

/// Who a command runs as.
struct User {
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::array<std::uint32_t, 64> groups{};
  std::size_t group_count = 0;
  Text<256> name;
  Text<4096> home;
};

/// By the guest's /etc/passwd, and /etc/group for the other groups. False: no such user.
bool find_user(std::string_view name, User& user);

/// Completes a user of whom the ids are known: name and home, where /etc/passwd has them.
void describe_user(User& user);

} // namespace casemate::agent
