// libFuzzer: any bytes as a guest image. Either refused, or loaded within what the
// parser promised; ASan and UBSan watch.
#include "machine/image.hpp"
#include "sys/fd.hpp"
#include "sys/mapping.hpp"

#include <cstdlib>
#include <linux/memfd.h>

using namespace casemate;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::uint64_t ram = 8 << 20;
  sys::Fd file(static_cast<int>(sys::call(__NR_memfd_create, "image", MFD_CLOEXEC)));
  if (sys::call(__NR_write, file.get(), data, size) != static_cast<long>(size)) {
    return -1;
  }
  auto mapped = sys::Mapping::map(ram, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (!mapped) {
    return -1;
  }
  sys::Mapping mapping = std::move(mapped).value();
  machine::GuestMemory memory(mapping.data(), ram);
  for (std::uint32_t format : {CASEMATE_IMAGE_AUTO, CASEMATE_IMAGE_ELF, CASEMATE_IMAGE_FLAT}) {
    machine::Image image;
    if (machine::parse_image(file.get(), size, format, memory, image)) {
      continue;
    }
    for (const machine::Segment& segment : image.segments()) {
      if (memory.at(segment.address, segment.memory_size) == nullptr ||
          segment.address + segment.memory_size > image.end ||
          segment.file_size > segment.memory_size || segment.offset + segment.file_size > size) {
        std::abort();
      }
    }
    if (machine::load_image(file.get(), image, memory)) {
      std::abort();
    }
  }
  return 0;
}
