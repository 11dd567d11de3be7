// libFuzzer: any bytes as a bzImage. Either refused, or a whole ELF file comes out of
// them; ASan and UBSan watch. Our own lines are the header's, the blocks' of LZ4, and all
// of LZO's.
#include "unpack/payload.hpp"

#include <cstdlib>
#include <cstring>

using namespace casemate::unpack;

namespace {

class ImageBytes : public Image {
public:
  explicit ImageBytes(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::uint64_t size() const override { return bytes_.size(); }

  bool read_at(std::uint64_t offset, std::span<std::byte> to) const override {
    // What reads beyond the end has not checked what it has read before.
    if (offset > bytes_.size() || to.size() > bytes_.size() - offset) {
      std::abort();
    }
    std::memcpy(to.data(), bytes_.data() + offset, to.size());
    return true;
  }

private:
  std::span<const std::byte> bytes_;
};

/// Takes a little, and looks at all of it.
class OutputBytes : public Output {
  static constexpr std::uint64_t most = 16 << 20;

  bool store(std::span<const std::byte> bytes) override {
    for (const std::byte byte : bytes) {
      sum_ = sum_ + std::to_integer<unsigned>(byte);
    }
    return size() <= most;
  }

  volatile unsigned sum_ = 0;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const ImageBytes image(std::as_bytes(std::span(data, size)));
  OutputBytes output;
  Payload payload;
  const Status found = find_payload(image, payload);
  const Status status = unpack_kernel(image, output);
  if (found == CASEMATE_UNPACK_DONE ? payload.offset + payload.size > size : status != found) {
    std::abort();
  }
  if (status == CASEMATE_UNPACK_DONE && output.size() != payload.unpacked_size) {
    std::abort();
  }
  return 0;
}
