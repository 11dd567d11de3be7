// libFuzzer: any bytes as what a driver does with a console, and what is read and typed
// meanwhile; ASan and UBSan watch.
#include "machine/virtio/console.hpp"
#include "sys/fd.hpp"
#include "test/virtio_fuzz.hpp"

#include <cstdlib>
#include <memory>
#include <sys/socket.h>

using namespace casemate;
using namespace casemate::machine::virtio;

namespace {

struct Sockets {
  Sockets() {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) {
      std::abort();
    }
    ours = sys::Fd(ends[0]);
    its = sys::Fd(ends[1]);
  }

  sys::Fd ours;
  sys::Fd its;
};

struct Machine {
  Machine() {
    if (loop.open()) {
      std::abort();
    }
    console.attach(ram.memory, loop, {});
  }

  unit::GuestRam ram{1 << 18};
  Sockets output;
  Sockets input;
  sys::Mutex mutex;
  sys::Lock lock{mutex};
  sys::EventLoop loop{mutex};
  Console console{output.its.get(), input.its.get()};
  unit::Driver driver{ram, console};
};

void take(Machine& machine, const unit::Step& step) {
  static std::byte bytes[1 << 16];
  switch (step.kind % 4) {
  case 0:
    ::send(machine.input.ours.get(), bytes, step.offset, MSG_DONTWAIT | MSG_NOSIGNAL);
    break;
  case 1:
    ::recv(machine.output.ours.get(), bytes, step.offset, MSG_DONTWAIT);
    break;
  case 2:
    machine.input.ours.reset();
    break;
  default:
    machine.output.ours.reset();
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto machine = std::make_unique<Machine>();
  machine->driver.start();
  unit::for_each_step({data, size}, [&](unit::Step step) {
    step.kind %= unit::driver_steps + 4;
    if (step.kind < unit::driver_steps) {
      unit::take_driver_step(machine->driver, step);
    } else {
      step.kind -= unit::driver_steps;
      take(*machine, step);
    }
    machine->loop.turn(0);
    machine->driver.settle();
    machine->driver.transport.take_interrupt();
  });
  return 0;
}
