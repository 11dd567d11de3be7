#pragma once

#include "guest/agent/stream.hpp"

namespace casemate::agent {

/// Sends a file's contents.
void read_file(Stream& stream, std::span<const std::byte> request);

/// Receives a file's contents.
void write_file(Stream& stream, std::span<const std::byte> request);

} // namespace casemate::agent
