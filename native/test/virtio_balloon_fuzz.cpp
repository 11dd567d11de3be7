// libFuzzer: any bytes as what a driver does with a balloon; ASan and UBSan watch. The first
// byte says what the driver has accepted.
#include "machine/virtio/balloon.hpp"
#include "test/virtio_fuzz.hpp"

#include <cstdlib>
#include <memory>

using namespace casemate;
using namespace casemate::machine::virtio;

namespace {

struct Machine {
  Machine() {
    if (loop.open()) {
      std::abort();
    }
    balloon.attach(ram.memory, loop, {});
  }

  unit::GuestRam ram{1 << 18};
  sys::Mutex mutex;
  sys::Lock lock{mutex};
  sys::EventLoop loop{mutex};
  bool is_asked = false;
  Balloon balloon{{true, true},
                  {[](void* machine, const MemoryStatistics&) {
                     static_cast<Machine*>(machine)->is_asked = false;
                   },
                   this}};
  unit::Driver driver{ram, balloon};
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return 0;
  }
  const auto machine = std::make_unique<Machine>();
  machine->driver.start(data[0]);
  unit::for_each_step({data + 1, size - 1}, [&](unit::Step step) {
    step.kind %= unit::driver_steps + 2;
    if (step.kind < unit::driver_steps) {
      unit::take_driver_step(machine->driver, step);
    } else if (step.kind == unit::driver_steps) {
      machine->balloon.set_target(step.value);
    } else {
      machine->is_asked = true;
      machine->balloon.ask_statistics();
    }
    machine->loop.turn(0);
    machine->driver.settle();
    machine->driver.transport.take_interrupt();
  });
  machine->driver.reset();
  if (machine->is_asked) {
    std::abort(); // there is always an answer
  }
  return 0;
}
