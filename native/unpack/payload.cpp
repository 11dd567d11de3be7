#include "unpack/payload.hpp"

#include "unpack/formats.hpp"

#include <algorithm>
#include <cstring>
#include <string_view>

namespace casemate::unpack {

namespace {

/// What of the header is needed; offsets in the file.
struct [[gnu::packed]] SetupHeader {
  std::uint8_t setup_sectors; // 0x1f1
  std::uint8_t ignored1[16];
  char magic[4]; // 0x202
  std::uint16_t version;
  std::uint8_t ignored2[64];
  std::uint32_t payload_offset; // 0x248, from the protected-mode part on
  std::uint32_t payload_size;
};
constexpr std::uint64_t header_offset = 0x1f1;
static_assert(header_offset + offsetof(SetupHeader, magic) == 0x202);
static_assert(header_offset + offsetof(SetupHeader, payload_offset) == 0x248);

constexpr std::uint64_t sector_size = 512;
constexpr std::uint16_t oldest_version = 0x208; // the first that tells of its payload

/// Behind each payload stands how large it is when unpacked, 32 bits; gzip has that at its own end.
constexpr std::uint64_t trailer_size = 4;

struct Format {
  std::string_view magic;
  Status (*unpack)(Input&, Output&);
  bool owns_trailer;
};

using namespace std::string_view_literals;
constexpr Format formats[] = {
    {"\x1f\x8b"sv, unpack_gzip, true},
    {"\xfd\x37zXZ\0"sv, unpack_xz, false},
    {"\x02\x21\x4c\x18"sv, unpack_lz4, false},
    {"\x28\xb5\x2f\xfd"sv, unpack_zstd, false},
    {"\x5d\0\0"sv, unpack_lzma, false},
    {"BZh"sv, unpack_bzip2, false},
    {"\x89LZO\0\r\n\x1a\n"sv, unpack_lzo, false},
};
constexpr std::size_t longest_magic = 9;

/// What is left of a payload.
class PayloadInput : public Input {
public:
  PayloadInput(const Image& image, std::uint64_t offset, std::uint64_t size)
      : image_(image), offset_(offset), left_(size) {}

  std::size_t read(std::span<std::byte> to) override {
    const auto part = to.first(std::min<std::uint64_t>(to.size(), left_));
    if (!image_.read_at(offset_, part)) {
      left_ = 0;
      has_failed_ = true;
      return 0;
    }
    offset_ += part.size();
    left_ -= part.size();
    return part.size();
  }

  bool has_failed() const { return has_failed_; }

private:
  const Image& image_;
  std::uint64_t offset_;
  std::uint64_t left_;
  bool has_failed_ = false;
};

const Format* format_of(std::span<const std::byte> start) {
  for (const Format& format : formats) {
    if (start.size() >= format.magic.size() &&
        std::memcmp(start.data(), format.magic.data(), format.magic.size()) == 0) {
      return &format;
    }
  }
  return nullptr;
}

} // namespace

Status find_payload(const Image& image, Payload& payload) {
  SetupHeader header;
  if (image.size() < header_offset + sizeof header) {
    return CASEMATE_UNPACK_NOT_BZIMAGE;
  }
  if (!image.read_at(header_offset, std::as_writable_bytes(std::span(&header, 1)))) {
    return CASEMATE_UNPACK_SYSTEM;
  }
  if (std::memcmp(header.magic, "HdrS", sizeof header.magic) != 0 ||
      header.version < oldest_version) {
    return CASEMATE_UNPACK_NOT_BZIMAGE;
  }
  // 0 stands for 4, and always has.
  const std::uint64_t sectors = header.setup_sectors == 0 ? 4 : header.setup_sectors;
  payload.offset = (sectors + 1) * sector_size + header.payload_offset;
  payload.size = header.payload_size;
  if (payload.size < trailer_size || payload.offset + payload.size > image.size()) {
    return CASEMATE_UNPACK_TRUNCATED;
  }
  std::uint32_t unpacked_size = 0;
  if (!image.read_at(payload.offset + payload.size - trailer_size,
                     std::as_writable_bytes(std::span(&unpacked_size, 1)))) {
    return CASEMATE_UNPACK_SYSTEM;
  }
  payload.unpacked_size = unpacked_size;
  return CASEMATE_UNPACK_DONE;
}

Status unpack_kernel(const Image& image, Output& output) {
  Payload payload;
  if (const Status status = find_payload(image, payload)) {
    return status;
  }
  std::byte bytes[longest_magic];
  const auto start = std::span(bytes).first(std::min<std::uint64_t>(payload.size, sizeof bytes));
  if (!image.read_at(payload.offset, start)) {
    return CASEMATE_UNPACK_SYSTEM;
  }
  const Format* format = format_of(start);
  if (format == nullptr) {
    return CASEMATE_UNPACK_UNKNOWN;
  }
  if (payload.unpacked_size > CASEMATE_UNPACK_MAX_SIZE) {
    return CASEMATE_UNPACK_TOO_BIG;
  }
  output.expect(payload.unpacked_size);
  PayloadInput input(image, payload.offset,
                     payload.size - (format->owns_trailer ? 0 : trailer_size));
  const Status status = format->unpack(input, output);
  if (input.has_failed()) {
    return CASEMATE_UNPACK_SYSTEM;
  }
  return status == CASEMATE_UNPACK_DONE ? output.finish() : status;
}

} // namespace casemate::unpack
