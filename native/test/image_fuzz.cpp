// libFuzzer: any bytes as a guest image. Either refused, or loaded within what the
// parser promised; ASan and UBSan watch.
#include "machine/image.hpp"
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
