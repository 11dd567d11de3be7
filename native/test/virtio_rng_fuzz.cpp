// libFuzzer: any bytes as what a driver does with the entropy device; ASan and UBSan watch.
// The first byte says what the driver has accepted.
#include "machine/virtio/rng.hpp"
#include "test/virtio_fuzz.hpp"

#include <memory>

using namespace casemate;
using namespace casemate::machine::virtio;

namespace {

struct Machine {
  unit::GuestRam ram{1 << 18};
  Rng device;
  unit::Driver driver{ram, device};
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return 0;
  }
  const auto machine = std::make_unique<Machine>();
  machine->driver.start(data[0]);
  unit::for_each_step({data + 1, size - 1}, [&](unit::Step step) {
    step.kind %= unit::driver_steps;
    unit::take_driver_step(machine->driver, step);
    machine->driver.transport.take_interrupt();
  });
  machine->driver.reset();
  return 0;
}
