// libFuzzer: any bytes as what a driver does with a network device, and what comes from the
// other side meanwhile; ASan and UBSan watch. The first byte says what that is and what the
// driver has accepted, then each step is 8 bytes.
#include "machine/virtio/net.hpp"
#include "sys/fd.hpp"
#include "virtio.hpp"

#include <cstdlib>
#include <memory>
#include <sys/socket.h>

using namespace casemate;
using namespace casemate::machine::virtio;
using unit::GuestRam;

namespace {

struct Step {
  std::uint8_t kind;
  std::uint8_t number;
  std::uint16_t offset; // of what memory there is, or of a register
  std::uint32_t value;
};
static_assert(sizeof(Step) == 8);

struct Machine {
  explicit Machine(bool is_stream, int own) : net(options(is_stream, own)), driver(ram, net) {
    if (loop.open()) {
      std::abort();
    }
    net.attach(ram.memory, loop, {[](void*, const Device&, std::uint32_t, int) {}, nullptr});
  }
  static NetOptions options(bool is_stream, int own) {
    NetOptions options;
    options.backend = is_stream ? NetBackend::Stream : NetBackend::Tap;
    options.fd = own;
    options.mtu = 1500;
    return options;
  }

  GuestRam ram{1 << 18};
  sys::Mutex mutex;
  sys::Lock lock{mutex};
  sys::EventLoop loop{mutex};
  Net net;
  unit::Driver driver;
};

void take(Machine& machine, const Step& step, sys::Fd& peer) {
  static std::byte bytes[70'000];
  auto& driver = machine.driver;
  auto& queue = driver.queues[step.number % 2];
  const std::uint64_t address = GuestRam::data + step.offset;
  switch (step.kind % 10) {
  case 0: // a chain of one buffer, or of two
    queue.add({{address, step.value % 70'000, step.number % 2 == 0}});
    break;
  case 1:
    queue.add({{address, step.value % 64, (step.number & 2) != 0},
               {address + 64, step.value >> 16, (step.number & 4) != 0}});
    break;
  case 2: // anything anywhere, in the rings for example
    machine.ram.write(step.offset * std::uint64_t{step.number}, step.value);
    break;
  case 3:
    driver.kick(step.number);
    break;
  case 4: // bytes of a stream, or a frame
    std::memcpy(bytes, &step.value, sizeof step.value);
    ::send(peer.get(), bytes, step.offset, MSG_DONTWAIT | MSG_NOSIGNAL);
    break;
  case 5: // what stands in the guest's memory
    if (const std::byte* from = machine.ram.memory.at(address, step.value % 4096)) {
      ::send(peer.get(), from, step.value % 4096, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    break;
  case 6:
    ::recv(peer.get(), bytes, sizeof bytes, MSG_DONTWAIT);
    break;
  case 7:
    driver.write(step.offset % Transport::size, step.value);
    driver.settle();
    break;
  case 8:
    driver.start(step.value);
    break;
  default:
    if (step.number == 0xff) {
      peer.reset();
    }
  }
  machine.loop.turn(0);
  driver.settle();
  driver.transport.take_interrupt();
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return 0;
  }
  const bool is_stream = (data[0] & 1) != 0;
  int ends[2];
  if (::socketpair(AF_UNIX, (is_stream ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK, 0, ends) != 0) {
    std::abort();
  }
  const sys::Fd own(ends[0]);
  sys::Fd peer(ends[1]);
  const auto machine = std::make_unique<Machine>(is_stream, own.get());
  machine->driver.start((data[0] & 2) != 0 ? 1u << 15 : 0);
  for (++data, --size; size >= sizeof(Step); data += sizeof(Step), size -= sizeof(Step)) {
    Step step;
    std::memcpy(&step, data, sizeof step);
    take(*machine, step, peer);
  }
  return 0;
}
