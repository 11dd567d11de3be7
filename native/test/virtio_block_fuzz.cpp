// libFuzzer: any bytes as what a driver does with a disk; ASan and UBSan watch. The first byte
// says what the driver has accepted, the second what the disk is like.
#include "machine/virtio/block.hpp"
#include "test/virtio_fuzz.hpp"

#include <cstdlib>
#include <memory>
#include <sys/mman.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

using namespace casemate;
using namespace casemate::machine;
using namespace casemate::machine::virtio;

namespace {

constexpr std::uint64_t disk_size = 64 * 1024 + 100;

/// One file and what serves it, for all runs.
struct Host {
  Host() : file(memfd_create("disk", MFD_CLOEXEC)) {
    const int files[] = {file.get()};
    if (ftruncate(file.get(), disk_size) != 0 || engine.open(files)) {
      std::abort();
    }
    if (engine.needs_threads()) {
      std::thread([this] { engine.serve(); }).detach();
    }
  }

  sys::Fd file;
  BlockEngine engine;
};

Host& host() {
  static auto& one = *new Host; // a thread may use it to the very end
  return one;
}

struct Machine {
  explicit Machine(std::uint8_t kind) : disk(options(kind), host().engine), driver(ram, disk) {
    if (loop.open() || loop.add(source, host().engine.descriptor(), 1 /* EPOLLIN */)) {
      std::abort();
    }
    disk.attach(ram.memory, loop, {[](void*, const Device&, std::uint32_t, int) {}, nullptr});
  }
  ~Machine() { loop.remove(source); }

  static BlockOptions options(std::uint8_t kind) {
    BlockOptions options;
    options.size = disk_size;
    options.is_read_only = (kind & 1) != 0;
    options.limit.operations_per_second = (kind & 2) != 0 ? 1'000'000 : 0;
    options.set_block_sizes(kind << 4, kind << 6);
    return options;
  }

  /// A request as a driver would make it, of any kind and for any sector.
  void request(const unit::Step& step) {
    const std::uint64_t header = unit::GuestRam::data + step.offset;
    ram.write(header, std::uint32_t{step.number} % 16);
    ram.write(header + 8, step.value & 0x80000000 ? ~std::uint64_t{step.value} : step.value % 140);
    const bool is_read = step.number % 16 == 0 || step.number % 16 == 8;
    driver.queues[0].add(
        {{header, 16}, {header + 16, step.value >> 8 & 0xffff, is_read}, {header, 1, true}});
  }

  unit::GuestRam ram{1 << 18};
  sys::Mutex mutex;
  sys::Lock lock{mutex};
  sys::EventLoop loop{mutex};
  sys::EventLoop::Source source{[](void*, std::uint32_t) { host().engine.finish(); }, nullptr};
  Block disk;
  unit::Driver driver;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) {
    return 0;
  }
  const auto machine = std::make_unique<Machine>(data[1]);
  machine->driver.start(data[0]);
  unit::for_each_step({data + 2, size - 2}, [&](unit::Step step) {
    step.kind %= unit::driver_steps + 1;
    if (step.kind < unit::driver_steps) {
      unit::take_driver_step(machine->driver, step);
    } else {
      machine->request(step);
    }
    machine->loop.turn(0);
    machine->driver.settle();
    machine->driver.transport.take_interrupt();
  });
  machine->driver.reset();
  struct stat status {};
  if (fstat(host().file.get(), &status) != 0 || status.st_size != disk_size) {
    std::abort(); // no request changes how large a disk is
  }
  return 0;
}
