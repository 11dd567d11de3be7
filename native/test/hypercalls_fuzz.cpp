// libFuzzer: any bytes as what a bare-metal guest writes to its memory and calls, 24 for each.
// The machine's own pages cannot be written to, nor is anything mapped behind the guest's; ASan
// and UBSan watch.
#include "machine/hypercalls.hpp"
#include "machine/layout.hpp"
#include "sys/eventfd.hpp"
#include "sys/fd.hpp"
#include "sys/mapping.hpp"

#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <sys/socket.h>

using namespace casemate;
using machine::HypercallStatus;

namespace {

constexpr std::uint64_t ram = 4 << 20;
constexpr std::uint64_t guard = 2 << 20;

/// What one guest had, the next one has as well.
struct Machine {
  Machine() {
    auto mapped =
        sys::Mapping::map(ram + guard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    auto eventfd = sys::make_eventfd();
    int ends[2];
    if (!mapped || !eventfd || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) != 0) {
      std::abort();
    }
    guest.reset(ends[0]);
    node.reset(ends[1]);
    mapping = std::move(mapped).value();
    control = std::move(eventfd).value();
    // Whoever waits is interrupted: what is to be read there is never taken.
    sys::tell_eventfd(control.get());
    if (mprotect(mapping.data(), machine::image_base, PROT_READ) != 0 ||
        mprotect(static_cast<std::byte*>(mapping.data()) + ram, guard, PROT_NONE) != 0) {
      std::abort();
    }
  }

  sys::Mapping mapping;
  sys::Fd guest;
  sys::Fd node;
  sys::Fd control;
};

/// Numbers near the ends of memory as often as any.
std::uint64_t address(std::uint64_t any) {
  switch (any % 4) {
  case 0:
    return machine::image_base - 64 + (any >> 2) % 0x1000;
  case 1:
    return ram - 64 + (any >> 2) % 128;
  default:
    return any;
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Machine all;
  const machine::GuestMemory memory(static_cast<std::byte*>(all.mapping.data()), ram);
  const machine::Console console(all.guest.get(), all.guest.get(), all.control.get());
  machine::Hypercalls hypercalls(memory, console);
  bool is_interrupted = false;
  for (; size >= 24; data += 24, size -= 24) {
    std::uint64_t words[3];
    std::memcpy(words, data, sizeof words);
    const std::uint64_t at = address(words[0] >> 16);
    if (at >= machine::image_base) {
      memory.write(at, casemate_transfer{address(words[1]), words[2] >> 8, words[2] & 3, 0});
    }
    std::byte bytes[256]{};
    if ((data[1] & 1) != 0) {
      sys::call(__NR_recvfrom, all.node.get(), bytes, sizeof bytes, MSG_DONTWAIT, nullptr, 0);
    }
    if ((data[1] & 2) != 0) {
      sys::call(__NR_sendto, all.node.get(), bytes, sizeof bytes, MSG_DONTWAIT, nullptr, 0);
    }
    const auto port = static_cast<std::uint16_t>(CASEMATE_PORT_DOORBELL + data[0] % 0x20);
    const HypercallStatus status = is_interrupted
                                       ? hypercalls.proceed()
                                       : hypercalls.start(port, static_cast<std::uint32_t>(at));
    if (status == HypercallStatus::Exit || status == HypercallStatus::Violation) {
      break; // the end of a guest
    }
    is_interrupted = status == HypercallStatus::Interrupted;
  }
  return 0;
}
