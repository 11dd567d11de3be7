// libFuzzer: any bytes as a Linux kernel. Either refused, or loaded within what the
// parser promised; ASan and UBSan watch.
#include "machine/kernel.hpp"
#include "machine/linux.hpp"
#include "test/loader_fuzz.hpp"

#include <cstdlib>

using namespace casemate;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  unit::LoaderInput input;
  if (!input.open(data, size)) {
    return -1;
  }
  const sys::Fd& file = input.file;
  const machine::GuestMemory& memory = input.memory;

  for (const auto protocol : {machine::BootProtocol::Linux, machine::BootProtocol::Pvh}) {
    machine::Image kernel;
    const bool is_refused =
        static_cast<bool>(machine::parse_kernel(file.get(), size, protocol, memory, kernel));
    for (const machine::Segment& segment : kernel.segments()) {
      if (memory.at(segment.address, segment.memory_size) == nullptr ||
          segment.address < machine::kernel_base ||
          segment.address + segment.memory_size > kernel.end ||
          segment.file_size > segment.memory_size || segment.offset + segment.file_size > size) {
        std::abort();
      }
    }

    // The same bytes as two initrds, which nobody looks into.
    machine::LinuxSource source;
    source.protocol = protocol;
    source.kernel = file.get();
    source.kernel_size = size;
    const machine::File initrds[] = {{file.get(), size}, {file.get(), size}};
    source.initrds = initrds;
    const std::byte command_line[1]{};
    source.command_line = command_line;
    std::uint64_t entry = 0;
    const machine::ImageError error = machine::load_linux(source, memory, entry);
    if (is_refused ? !error : error && error.reason != CASEMATE_IMAGE_INITRD_TOO_BIG) {
      std::abort();
    }
  }
  return 0;
}
