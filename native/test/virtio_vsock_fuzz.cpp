// libFuzzer: any bytes as what a guest and a Node do with the vsock device, 8 for each step;
// ASan and UBSan watch.
#include "machine/virtio/vsock.hpp"
#include "test/virtio.hpp"

#include <cstdlib>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <utility>

using namespace casemate;
using namespace casemate::machine::virtio;

namespace {

constexpr std::uint64_t packet_at = unit::GuestRam::data;
constexpr std::uint64_t buffers_at = unit::GuestRam::data + 0x20000;

struct Machine {
  Machine() {
    lock.lock();
    static_cast<void>(loop.open());
    device.attach(ram.memory, loop, {});
    static_cast<void>(driver.start());
  }
  ~Machine() {
    device.on_reset();
    for (const std::uint32_t id : asked) {
      static_cast<void>(device.refuse(id));
    }
    munmap(storage, sizeof *storage);
  }

  static bool tell(void* machine, StreamEvent event, std::uint32_t id, std::uint32_t,
                   bool may_wait) {
    auto& self = *static_cast<Machine*>(machine);
    if (self.is_node_slow && !may_wait) {
      return false;
    }
    if (event == StreamEvent::Requested) {
      self.asked.push_back(id);
    }
    return true;
  }

  sys::Fd make_socket() {
    int fds[2] = {-1, -1};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) {
      std::abort();
    }
    sockets.push_back(sys::Fd(fds[0]));
    return sys::Fd(fds[1]);
  }

  void send_packet(const std::uint8_t* bytes) {
    VsockHeader header;
    header.src_cid = bytes[6] % 16 == 0 ? bytes[6] : 3;
    header.dst_cid = bytes[6] % 16 == 1 ? bytes[6] : 2;
    header.type = bytes[6] % 16 == 2 ? bytes[6] : 1;
    header.src_port = bytes[2] % 4;
    header.dst_port = bytes[3] % 2 == 0 ? bytes[3] % 4 : 0x40000001u + bytes[3] / 64;
    header.op = bytes[1] % 10;
    header.flags = bytes[4] % 8;
    header.buf_alloc = std::uint32_t{bytes[4]} << bytes[5] % 24;
    header.fwd_cnt = std::uint32_t{bytes[5]} << bytes[4] % 25;
    const std::uint32_t size = std::uint32_t{bytes[7]} << 8;
    header.len = bytes[6] % 16 == 3 ? ~size : size;
    ram.write(packet_at, header);
    driver.queues[1].add({{packet_at, 20}, {packet_at + 20, 24 + size}});
    driver.kick(1);
  }

  unit::GuestRam ram{1 << 20};
  sys::Mutex lock;
  sys::EventLoop loop{lock};
  Vsock::Storage* storage =
      static_cast<Vsock::Storage*>(mmap(nullptr, sizeof *storage, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  Vsock device{*storage, loop, {tell, this}};
  unit::Driver driver{ram, device};
  std::vector<sys::Fd> sockets;
  std::vector<std::uint32_t> asked;
  bool is_node_slow = false;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Machine machine;
  for (unsigned steps = 0; size >= 8 && steps < 200; data += 8, size -= 8, ++steps) {
    sys::Fd* socket =
        machine.sockets.empty() ? nullptr : &machine.sockets[data[1] % machine.sockets.size()];
    static char bytes[65536];
    switch (data[0] % 12) {
    case 0: // the driver gives a buffer
      machine.driver.queues[0].add({{buffers_at, data[1] % 64u, true},
                                    {buffers_at + 64, std::uint32_t{data[2]} << 5, true}});
      machine.driver.kick(0);
      break;
    case 1:
      machine.device.connect(data[1], data[2] % 4, machine.make_socket());
      break;
    case 2:
      if (!machine.asked.empty()) {
        static_cast<void>(machine.device.accept(machine.asked.back(), machine.make_socket()));
        machine.asked.pop_back();
      }
      break;
    case 3:
      if (!machine.asked.empty()) {
        static_cast<void>(machine.device.refuse(machine.asked.back()));
        machine.asked.pop_back();
      }
      break;
    case 4:
      if (socket != nullptr) {
        static_cast<void>(!send(socket->get(), bytes, std::size_t{data[2]} << 8, MSG_NOSIGNAL));
      }
      break;
    case 5:
      if (socket != nullptr) {
        static_cast<void>(!recv(socket->get(), bytes, std::size_t{data[2]} << 8, MSG_DONTWAIT));
      }
      break;
    case 6:
      if (socket != nullptr) {
        shutdown(socket->get(), data[2] % 3);
      }
      break;
    case 7:
      if (socket != nullptr) {
        std::swap(*socket, machine.sockets.back());
        machine.sockets.pop_back();
      }
      break;
    case 8:
      machine.is_node_slow = data[1] % 2 == 0;
      machine.loop.turn(0);
      machine.driver.settle();
      break;
    case 9:
      if (data[1] % 16 == 0) {
        static_cast<void>(machine.driver.start());
      }
      break;
    default:
      machine.send_packet(data);
    }
    machine.driver.settle();
  }
  return 0;
}
