// The console of a bare-metal guest: a stream socket for each direction, written to and
// read from in the guest's own memory. A Node that does not read is backpressure on the guest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace casemate::machine {

enum class ConsoleStatus {
  Done,
  WouldBlock,  // not without waiting, which was not asked for
  Interrupted, // look at `control`, then call again to go on
  Closed       // the other end is gone
};

class Console {
public:
  /// The sockets are -1 for no console: writes vanish, reads are at the end of input. No
  /// wait goes on while `control` is readable.
  Console(int output, int input, int control) : output_(output), input_(input), control_(control) {}

  /// Writes all of `data`, and takes off its front what is written.
  ConsoleStatus write(std::span<const std::byte>& data) const;

  /// Reads what there is, at least a byte. `size` 0: the end of input.
  ConsoleStatus read(std::span<std::byte> buffer, bool wait, std::size_t& size) const;

private:
  ConsoleStatus wait_for(int socket, std::int16_t events) const;

  int output_;
  int input_;
  int control_;
};

} // namespace casemate::machine
