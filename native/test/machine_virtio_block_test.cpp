#include "machine/virtio/block.hpp"
#include "sys/clock.hpp"
#include "test/unit.hpp"
#include "test/virtio.hpp"
#include "vmm/wire.h"

#include <cstring>
#include <fcntl.h>
#include <memory>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>
#include <vector>

using namespace casemate;
using namespace casemate::machine;
using namespace casemate::machine::virtio;
using unit::Buffer;

namespace {

constexpr std::uint64_t mib = 1 << 20;
constexpr std::uint64_t header_at = unit::GuestRam::data;
constexpr std::uint64_t status_at = header_at + 0x100;
constexpr std::uint64_t data_at = header_at + 0x1000;

enum : std::uint32_t { in = 0, out = 1, flush = 4, get_id = 8, discard = 11, write_zeroes = 13 };
enum : int { ok = 0, io_error = 1, unsupported = 2 };

constexpr std::uint64_t feature_flush = 1 << 9;

sys::Fd memory_file(std::uint64_t size) {
  sys::Fd file(memfd_create("disk", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  CHECK_EQ(ftruncate(file.get(), static_cast<off_t>(size)), 0);
  return file;
}

BlockOptions disk_of(std::uint64_t size) {
  BlockOptions options;
  options.size = size;
  std::memcpy(options.serial.data(), "a disk of mine", 14);
  return options;
}

/// A disk with its driver, by an io_uring or by threads.
struct Disk {
  explicit Disk(bool has_ring, const BlockOptions& options = disk_of(mib), int other = -1)
      : file(other >= 0 ? sys::Fd(dup(other)) : memory_file(options.size)) {
    lock.lock();
    CHECK(!loop.open());
    const int files[] = {file.get()};
    CHECK(!engine.open(files, has_ring));
    is_usable = engine.needs_threads() != has_ring;
    if (engine.needs_threads()) {
      for (int i = 0; i < 2; ++i) {
        threads.emplace_back([this] { engine.serve(); });
      }
    }
    device = std::make_unique<Block>(options, engine);
    device->attach(ram.memory, loop,
                   {[](void* self, const Device&, std::uint32_t operation, int error) {
                      static_cast<Disk*>(self)->errors.emplace_back(operation, error);
                    },
                    this});
    driver = std::make_unique<unit::Driver>(ram, *device);
    source = {[](void* self, std::uint32_t) { static_cast<Disk*>(self)->engine.finish(); }, this};
    CHECK(!loop.add(source, engine.descriptor(), 1 /* EPOLLIN */));
    CHECK(driver->start(feature_flush));
  }
  ~Disk() {
    driver->reset();
    engine.stop();
    for (std::thread& thread : threads) {
      thread.join();
    }
  }

  void put(std::uint64_t address, const std::string& text) const {
    std::memcpy(ram.memory.at(address, text.size()), text.data(), text.size());
  }
  std::string get(std::uint64_t address, std::size_t size) const {
    return {reinterpret_cast<const char*>(ram.memory.at(address, size)), size};
  }
  std::string stored(off_t offset, std::size_t size) const {
    std::string text(size, '\0');
    CHECK_EQ(pread(file.get(), text.data(), size, offset), static_cast<ssize_t>(size));
    return text;
  }
  /// A request with one buffer of data, and what it comes to.
  int request(std::uint32_t type, std::uint64_t sector, std::uint32_t size = 0) {
    const bool reads = type == in || type == get_id;
    const Buffer header{header_at, 16};
    const Buffer status{status_at, 1, true};
    set_header(header_at, type, sector);
    ram.write(status_at, std::uint8_t{0xee});
    if (size == 0) {
      driver->queues[0].add({header, status});
    } else {
      driver->queues[0].add({header, {data_at, size, reads}, status});
    }
    return complete();
  }
  int range(std::uint32_t type, std::uint64_t sector, std::uint32_t sectors,
            std::uint32_t flags = 0) {
    ram.write(data_at, sector);
    ram.write(data_at + 8, sectors);
    ram.write(data_at + 12, flags);
    return request(type, 0, 16);
  }
  void set_header(std::uint64_t address, std::uint32_t type, std::uint64_t sector) const {
    ram.write(address, type);
    ram.write(address + 4, std::uint32_t{0});
    ram.write(address + 8, sector);
  }
  /// Kicks, and turns the loop until something comes back. The status.
  int complete() {
    driver->kick(0);
    used = driver->queues[0].take_used();
    for (int turns = 0; !used && turns < 1000 && !driver->needs_reset(); ++turns) {
      loop.turn(10);
      driver->settle();
      used = driver->queues[0].take_used();
    }
    return used ? ram.read<std::uint8_t>(status_at) : -1;
  }

  unit::GuestRam ram{4 * mib};
  sys::Mutex lock;
  sys::EventLoop loop{lock};
  sys::EventLoop::Source source;
  sys::Fd file;
  BlockEngine engine;
  bool is_usable = false;
  std::unique_ptr<Block> device;
  std::unique_ptr<unit::Driver> driver;
  std::vector<std::thread> threads;
  std::vector<std::pair<std::uint32_t, int>> errors;
  std::optional<unit::Used> used;
};

/// Both ways that there are to the host's files.
template <typename Body> void with_both(Body body) {
  for (const bool has_ring : {false, true}) {
    if (Disk disk(has_ring); disk.is_usable) {
      body(disk);
    }
  }
}

} // namespace

TEST("an io_uring serves disks here, or else threads do") {
  const Disk disk(true);
  if (!disk.is_usable) {
    SKIP("this kernel gives no io_uring");
  }
  CHECK(!disk.engine.needs_threads());
}

TEST("an io_uring is for its operations and its files alone, and for good") {
  const sys::Fd file = memory_file(4096);
  const std::uint8_t operations[] = {IORING_OP_READV};
  const int files[] = {file.get()};
  auto made = sys::IoUring::create(4, operations, files);
  if (!made) {
    SKIP("this kernel gives no io_uring");
  }
  sys::IoUring ring = std::move(made).value();
  const auto result_of = [&](std::uint8_t operation, std::uint8_t flags, int fd) {
    io_uring_sqe* entry = ring.next();
    entry->opcode = operation;
    entry->flags = flags;
    entry->fd = fd;
    CHECK(!ring.submit(1));
    std::uint64_t data = 0;
    long result = 0;
    CHECK(ring.take(data, result));
    return result;
  };
  CHECK_EQ(result_of(IORING_OP_READV, IOSQE_FIXED_FILE, 0), 0);
  CHECK_EQ(result_of(IORING_OP_READV, 0, file.get()), -EACCES);
  CHECK_EQ(result_of(IORING_OP_WRITEV, IOSQE_FIXED_FILE, 0), -EACCES);
  CHECK_EQ(result_of(IORING_OP_NOP, 0, 0), -EACCES);
  CHECK_EQ(result_of(IORING_OP_READV, IOSQE_FIXED_FILE, 1), -EBADF);
  CHECK_EQ(sys::call(__NR_io_uring_register, ring.fd(), IORING_UNREGISTER_FILES, 0, 0), -EACCES);
}

TEST("a disk says how large it is and what it can") {
  BlockOptions options = disk_of(mib + 700);
  options.physical_block_size = 4096;
  Disk disk(false, options);
  CHECK_EQ(disk.driver->config<std::uint64_t>(0), 2049u);
  CHECK_EQ(disk.driver->config<std::uint32_t>(12), 254u);
  CHECK_EQ(disk.driver->config<std::uint32_t>(20), 512u);
  CHECK_EQ(disk.driver->config<std::uint8_t>(24), 3);
  const std::uint64_t writable = disk.device->features();
  options.is_read_only = true;
  Disk other(false, options);
  CHECK_EQ(writable & (1 << 5 | 1 << 9 | 1 << 13 | 1 << 14), 1u << 9 | 1u << 13 | 1u << 14);
  CHECK_EQ(other.device->features() & (1 << 5 | 1 << 9 | 1 << 13 | 1 << 14), 1u << 5 | 1u << 9);
}

TEST("what is written is in the file, and is read again") {
  with_both([](Disk& disk) {
    disk.put(data_at, std::string(512, 'a') + std::string(512, 'b'));
    CHECK_EQ(disk.request(out, 3, 1024), ok);
    CHECK_EQ(disk.used->written, 1u);
    CHECK_EQ(disk.stored(3 * 512, 1024), std::string(512, 'a') + std::string(512, 'b'));
    disk.put(data_at, std::string(1024, 'x'));
    CHECK_EQ(disk.request(in, 4, 512), ok);
    CHECK_EQ(disk.used->written, 513u);
    CHECK_EQ(disk.get(data_at, 1024), std::string(512, 'b') + std::string(512, 'x'));
    CHECK_EQ(disk.request(flush, 0), ok);
    CHECK(disk.errors.empty());
  });
}

TEST("a request may be cut into buffers anywhere") {
  with_both([](Disk& disk) {
    const std::string text = std::string(500, '1') + std::string(24, '2') + std::string(500, '3');
    disk.set_header(header_at, out, 1);
    disk.put(header_at + 16, text.substr(0, 100)); // right behind the header
    disk.put(data_at, text.substr(100));
    disk.driver->queues[0].add(
        {{header_at, 5}, {header_at + 5, 111}, {data_at, 924}, {status_at, 1, true}});
    CHECK_EQ(disk.complete(), ok);
    CHECK_EQ(disk.stored(512, 1024), text);
    disk.set_header(header_at, in, 1);
    disk.ram.write(data_at + 0x1000 + 600, std::uint8_t{0xee});
    disk.driver->queues[0].add(
        {{header_at, 16}, {data_at + 0x2000, 424, true}, {data_at + 0x1000, 601, true}});
    disk.complete();
    CHECK_EQ(disk.get(data_at + 0x2000, 424) + disk.get(data_at + 0x1000, 600), text);
    CHECK_EQ(disk.ram.read<std::uint8_t>(data_at + 0x1000 + 600), 0);
  });
}

TEST("many requests at once are all done, with more of them than the host has at once") {
  with_both([](Disk& disk) {
    disk.driver->queues[0] = unit::DriverQueue(disk.ram, 0, 256);
    disk.driver->reset();
    REQUIRE(disk.driver->start(feature_flush | feature_indirect));
    constexpr std::uint32_t count = 256;
    auto& queue = disk.driver->queues[0];
    for (std::uint16_t i = 0; i < count; ++i) {
      // In tables, so that the ring has room for all.
      const std::uint64_t at = data_at + 0x1000 * i;
      disk.set_header(at, out, i);
      disk.put(at + 0x200, std::string(512, static_cast<char>('A' + i % 26)));
      disk.ram.write(at + 0x100, unit::Descriptor{at, 16, unit::has_next, 1});
      disk.ram.write(at + 0x110, unit::Descriptor{at + 0x200, 512, unit::has_next, 2});
      disk.ram.write(at + 0x120, unit::Descriptor{at + 0x80, 1, unit::is_writable, 0});
      disk.ram.write(at + 0x80, std::uint8_t{0xee});
      queue.set(i, {at + 0x100, 48, unit::is_indirect, 0});
      queue.offer(i);
    }
    disk.driver->kick(0);
    for (int turns = 0; queue.used_index() < count && turns < 1000; ++turns) {
      disk.loop.turn(10);
      disk.driver->settle();
    }
    REQUIRE(queue.used_index() == count);
    for (std::uint32_t i = 0; i < count; ++i) {
      CHECK_EQ(disk.ram.read<std::uint8_t>(data_at + 0x1000 * i + 0x80), 0);
      CHECK_EQ(disk.stored(i * 512, 1)[0], static_cast<char>('A' + i % 26));
    }
  });
}

TEST("space is given back by a discard, and zeroes are written without writing them") {
  with_both([](Disk& disk) {
    disk.put(data_at, std::string(0x4000, 'x'));
    CHECK_EQ(disk.request(out, 0, 0x4000), ok);
    CHECK_EQ(disk.range(discard, 8, 8), ok);
    CHECK_EQ(disk.stored(0x1000, 0x1000), std::string(0x1000, '\0'));
    CHECK_EQ(disk.range(write_zeroes, 16, 1), ok);
    CHECK_EQ(disk.stored(0x2000, 512), std::string(512, '\0'));
    CHECK_EQ(disk.range(write_zeroes, 24, 8, 1), ok);
    CHECK_EQ(disk.stored(0x3000, 0x1000), std::string(0x1000, '\0'));
    CHECK_EQ(disk.stored(0, 0x1000), std::string(0x1000, 'x'));
    CHECK_EQ(disk.stored(0x2200, 512), std::string(512, 'x'));
    struct stat status {};
    fstat(disk.file.get(), &status);
    CHECK_EQ(status.st_size, static_cast<off_t>(mib));
  });
}

TEST("a disk tells its serial, as much of it as there is room for") {
  with_both([](Disk& disk) {
    CHECK_EQ(disk.request(get_id, 0, 20), ok);
    CHECK_EQ(disk.get(data_at, 20), std::string("a disk of mine\0\0\0\0\0\0", 20));
    disk.put(data_at, "......");
    CHECK_EQ(disk.request(get_id, 0, 3), ok);
    CHECK_EQ(disk.get(data_at, 6), "a d...");
  });
}

TEST("requests beyond the end, of no whole sectors, or of no known kind are refused") {
  with_both([](Disk& disk) {
    constexpr std::uint64_t end = mib / 512;
    CHECK_EQ(disk.request(in, end, 512), io_error);
    CHECK_EQ(disk.request(out, end - 1, 1024), io_error);
    CHECK_EQ(disk.request(out, UINT64_MAX, 512), io_error);
    CHECK_EQ(disk.request(out, UINT64_MAX / 512 + 1, 512), io_error);
    CHECK_EQ(disk.request(in, 0, 511), io_error);
    CHECK_EQ(disk.range(discard, end, 1), io_error);
    CHECK_EQ(disk.range(discard, 0, 0xffffffff), io_error);
    CHECK_EQ(disk.range(write_zeroes, UINT64_MAX, 2), io_error);
    CHECK_EQ(disk.range(write_zeroes, 0, 1, 2), unsupported);
    CHECK_EQ(disk.range(discard, 0, 1, 1), unsupported);
    CHECK_EQ(disk.request(discard, 0, 32), io_error);
    CHECK_EQ(disk.request(99, 0, 512), unsupported);
    CHECK_EQ(disk.request(in, 0), ok); // nothing, from a place that is there
    CHECK_EQ(disk.stored(0, 512), std::string(512, '\0'));
    CHECK(disk.errors.empty()); // nothing is wrong with the disk
  });
}

TEST("a read-only disk is not written to, whatever its file allows") {
  BlockOptions options = disk_of(mib);
  options.is_read_only = true;
  Disk disk(true, options);
  disk.put(data_at, std::string(512, 'x'));
  CHECK_EQ(disk.request(out, 0, 512), io_error);
  CHECK_EQ(disk.range(discard, 0, 8), io_error);
  CHECK_EQ(disk.range(write_zeroes, 0, 8), io_error);
  CHECK_EQ(disk.request(in, 0, 512), ok);
  CHECK_EQ(disk.request(flush, 0), ok);
  CHECK_EQ(disk.stored(0, 512), std::string(512, '\0'));
}

TEST("a driver that has no place for a status is not to be talked to") {
  for (const auto& buffers : {std::vector<Buffer>{{header_at, 16}},
                              {{header_at, 15}, {status_at, 1, true}},
                              {{status_at, 600, true}}}) {
    Disk disk(false);
    disk.set_header(header_at, in, 0);
    if (buffers.size() == 1) {
      disk.driver->queues[0].add({buffers[0]});
    } else {
      disk.driver->queues[0].add({buffers[0], buffers[1]});
    }
    disk.driver->kick(0);
    disk.driver->transport.take_interrupt();
    CHECK(disk.driver->needs_reset());
    REQUIRE(disk.driver->start(feature_flush));
    CHECK_EQ(disk.request(in, 0, 512), ok);
  }
}

TEST("a file that has become shorter is an error to its guest, told once, and no end of the disk") {
  with_both([](Disk& disk) {
    CHECK_EQ(ftruncate(disk.file.get(), 4096), 0);
    CHECK_EQ(disk.request(in, 8, 512), io_error);
    CHECK_EQ(disk.request(in, 100, 512), io_error);
    CHECK_EQ(disk.request(in, 0, 512), ok);
    CHECK_EQ(disk.request(in, 7, 1024), io_error);
    REQUIRE(disk.errors.size() == 1);
    CHECK_EQ(disk.errors[0].first, std::uint32_t{CASEMATE_OPERATION_READ});
    CHECK_EQ(disk.errors[0].second, EIO);
  });
}

TEST("a file that takes no more is an error to its guest, told once for each operation") {
  for (const bool has_ring : {false, true}) {
    const sys::Fd file = memory_file(mib);
    CHECK_EQ(fcntl(file.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
    Disk disk(has_ring, disk_of(mib), file.get());
    CHECK_EQ(disk.request(out, 0, 512), io_error);
    CHECK_EQ(disk.request(out, 1, 512), io_error);
    CHECK_EQ(disk.range(discard, 0, 8), io_error);
    CHECK_EQ(disk.request(in, 0, 512), ok);
    REQUIRE(disk.errors.size() == 2);
    CHECK(disk.errors[0] == std::pair(std::uint32_t{CASEMATE_OPERATION_WRITE}, EPERM));
    CHECK(disk.errors[1] == std::pair(std::uint32_t{CASEMATE_OPERATION_DISCARD}, EPERM));
  }
}

TEST("a full device under a disk is an error to its guest") {
  const sys::Fd full(open("/dev/full", O_RDWR | O_CLOEXEC));
  REQUIRE(full.get() >= 0);
  for (const bool has_ring : {false, true}) {
    Disk disk(has_ring, disk_of(mib), full.get());
    CHECK_EQ(disk.request(out, 0, 512), io_error);
    REQUIRE(disk.errors.size() == 1);
    CHECK_EQ(disk.errors[0].second, ENOSPC);
  }
}

TEST("a reset waits for what is under way, and gives nothing back") {
  with_both([](Disk& disk) {
    disk.put(data_at, std::string(512, 'r'));
    disk.set_header(header_at, out, 5);
    disk.driver->queues[0].add({{header_at, 16}, {data_at, 512}, {status_at, 1, true}});
    disk.driver->transport.kick(0);
    disk.driver->write(unit::mmio::status, 0);
    disk.driver->settle();
    disk.put(data_at, std::string(512, 'n')); // the driver's again
    CHECK_EQ(disk.stored(5 * 512, 512), std::string(512, 'r'));
    REQUIRE(disk.driver->start(feature_flush));
    CHECK_EQ(disk.request(in, 5, 512), ok);
    CHECK_EQ(disk.get(data_at, 512), std::string(512, 'r'));
  });
}

TEST("a limit of operations holds them back, and lets all of them through in time") {
  BlockOptions options = disk_of(mib);
  options.limit.operations_per_second = 100;
  options.limit.operations_burst = 2;
  Disk disk(true, options);
  const std::uint64_t from = sys::monotonic_ns();
  for (int i = 0; i < 6; ++i) {
    CHECK_EQ(disk.request(in, 0, 512), ok);
  }
  CHECK(sys::monotonic_ns() - from >= 30'000'000);
}
