// libFuzzer: any bytes as the accesses of a Linux guest to its machine's devices, 12 for
// each; ASan and UBSan watch.
#include "machine/board.hpp"

#include <cstdlib>
#include <cstring>

using namespace casemate::machine;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Board board;
  for (; size >= 12; data += 12, size -= 12) {
    std::byte bytes[8];
    std::memcpy(bytes, data + 4, sizeof bytes);
    const auto value = std::span(bytes).first(1 + data[1] % 8);
    std::uint16_t where;
    std::memcpy(&where, data + 2, sizeof where);
    switch (data[0] % 5) {
    case 0:
      static_cast<void>(board.write_port(where, value));
      break;
    case 1:
      board.read_port(where, value);
      break;
    case 2:
      board.write_memory(Ioapic::address + where, value);
      break;
    case 3:
      board.read_memory(Ioapic::address + where, value);
      break;
    default:
      board.serial().receive(value);
    }
    board.update_interrupts();
    if (board.take_message() && board.take_message()) {
      std::abort(); // one device, one line
    }
    if (!board.can_write_port(Serial::port)) {
      board.serial().take_output(1 + value.size());
    }
  }
  return 0;
}
