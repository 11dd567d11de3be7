#pragma once

#include "guest/agent/stream.hpp"

namespace casemate::agent {

/// Runs a command, with its streams, to its end.
void run_command(Stream& stream, std::span<const std::byte> request);

} // namespace casemate::agent
