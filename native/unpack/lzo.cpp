// LZO1X as lzop frames it. By our own lines: the library of that name is under the GPL,
// which a program linked with it would be, too. The format is that of the kernel's
// Documentation/staging/lzo.rst.
#include "unpack/formats.hpp"

#include <zlib.h>

#include <array>
#include <cstring>

namespace casemate::unpack {

namespace {

/// The largest block that Linux takes.
constexpr std::size_t block_size = 256 * 1024;

/// Of an lzop file; what else they can say, kernels do not.
enum Flags : std::uint32_t {
  Adler32Unpacked = 0x1,
  Adler32Packed = 0x2,
  HasExtraField = 0x40,
  Crc32Unpacked = 0x100,
  Crc32Packed = 0x200,
  HasFilter = 0x800,
};

/// Numbers of 1 to 4 bytes, the high ones first.
class Numbers {
public:
  explicit Numbers(Input& input) : input_(input) {}

  std::uint32_t read(std::size_t size) {
    std::array<std::byte, 4> bytes{};
    is_whole_ = is_whole_ && input_.read_exactly(std::span(bytes).first(size));
    std::uint32_t number = 0;
    for (std::size_t i = 0; i < size; ++i) {
      number = number << 8 | std::to_integer<std::uint32_t>(bytes[i]);
    }
    return number;
  }

  void skip(std::uint32_t size) {
    for (; size > 0 && is_whole_; --size) {
      read(1);
    }
  }

  /// Whether all of them were there.
  bool is_whole() const { return is_whole_; }

private:
  Input& input_;
  bool is_whole_ = true;
};

/// One block. Whatever it says, it reads what is in `from_` and writes into `to_`.
class Block {
public:
  Block(std::span<const std::byte> from, std::span<std::byte> to) : from_(from), to_(to) {}

  /// Whether it is one, and fills `to` exactly.
  bool unpack() {
    // Literals can come first, and only then.
    if (!from_.empty() && peek() > 17) {
      const std::size_t count = next() - 17;
      copy_literals(count);
      literals_ = count < 4 ? count : 4;
    }
    while (is_good_ && !is_ended_) {
      unpack_one();
    }
    return is_good_ && size_ == to_.size();
  }

private:
  /// One instruction. What the low ones mean hangs on how many literals came before them.
  void unpack_one() {
    const std::size_t code = next();
    if (code >= 128) {
      copy_near(5 + (code >> 5 & 3), code);
    } else if (code >= 64) {
      copy_near(3 + (code >> 5 & 1), code);
    } else if (code >= 32) {
      const std::size_t length = 2 + long_count(code, 31);
      const std::size_t low = next();
      const std::size_t high = next();
      copy_match(length, (high << 6 | low >> 2) + 1, low);
    } else if (code >= 16) {
      const std::size_t length = 2 + long_count(code, 7);
      const std::size_t low = next();
      const std::size_t high = next();
      const std::size_t distance = ((code & 8) << 11) + (high << 6 | low >> 2);
      if (distance == 0) {
        is_ended_ = true;
      } else {
        copy_match(length, distance + 16384, low);
      }
    } else if (literals_ == 0) {
      copy_literals(3 + long_count(code, 15));
      literals_ = 4;
    } else {
      const bool is_far = literals_ == 4;
      const std::size_t distance = (next() << 2) + (code >> 2) + 1;
      copy_match(is_far ? 3 : 2, distance + (is_far ? 2048 : 0), code);
    }
  }

  void copy_near(std::size_t length, std::size_t code) {
    copy_match(length, (next() << 3) + (code >> 2 & 7) + 1, code);
  }

  /// The low bits of `code`; where they are 0, a count of 255 for each zero byte that
  /// follows, and the byte after those.
  std::size_t long_count(std::size_t code, std::size_t mask) {
    std::size_t count = code & mask;
    if (count > 0) {
      return count;
    }
    count = mask;
    std::size_t byte = next();
    for (; byte == 0 && is_good_; byte = next()) {
      count += 255;
    }
    return count + byte;
  }

  /// What stands `distance` before the end of the output, and then the 0 to 3 literals that
  /// the low bits of `code` announce. Both may overlap: that is how a byte is repeated.
  void copy_match(std::size_t length, std::size_t distance, std::size_t code) {
    if (!is_good_ || distance > size_ || length > to_.size() - size_) {
      is_good_ = false;
      return;
    }
    for (; length > 0; --length, ++size_) {
      to_[size_] = to_[size_ - distance];
    }
    literals_ = code & 3;
    copy_literals(literals_);
  }

  void copy_literals(std::size_t count) {
    if (!is_good_ || count > from_.size() || count > to_.size() - size_) {
      is_good_ = false;
      return;
    }
    std::memcpy(to_.data() + size_, from_.data(), count);
    from_ = from_.subspan(count);
    size_ += count;
  }

  std::size_t peek() const { return std::to_integer<std::size_t>(from_.front()); }

  std::size_t next() {
    if (from_.empty()) {
      is_good_ = false;
      return 0;
    }
    const std::size_t byte = peek();
    from_ = from_.subspan(1);
    return byte;
  }

  std::span<const std::byte> from_;
  std::span<std::byte> to_;
  std::size_t size_ = 0;     // of what is in to_
  std::size_t literals_ = 0; // that the last instruction copied; 4 stands for a run of them
  bool is_good_ = true;
  bool is_ended_ = false;
};

std::uint32_t adler32_of(std::span<const std::byte> bytes) {
  return static_cast<std::uint32_t>(
      ::adler32(1, reinterpret_cast<const Bytef*>(bytes.data()), static_cast<uInt>(bytes.size())));
}

/// The header of an lzop file; its flags.
std::uint32_t read_header(Numbers& numbers) {
  constexpr std::uint32_t magic_size = 9;
  constexpr std::uint32_t with_levels = 0x940;
  numbers.skip(magic_size);
  const std::uint32_t version = numbers.read(2);
  const bool is_newer = version >= with_levels;
  numbers.skip(is_newer ? 4 : 2); // versions of the library, and which can unpack it
  numbers.skip(is_newer ? 2 : 1); // method and level
  const std::uint32_t flags = numbers.read(4);
  numbers.skip((flags & HasFilter) != 0 ? 4 : 0);
  numbers.skip(is_newer ? 12 : 8); // mode and time
  numbers.skip(numbers.read(1));   // name
  numbers.skip(4);                 // checksum
  return flags;
}

} // namespace

Status unpack_lzo(Input& input, Output& output) {
  static std::byte packed[block_size];
  static std::byte unpacked[block_size];
  Numbers numbers(input);
  const std::uint32_t flags = read_header(numbers);
  if ((flags & HasExtraField) != 0) {
    return CASEMATE_UNPACK_UNKNOWN;
  }
  for (;;) {
    const std::uint32_t size = numbers.read(4);
    if (numbers.is_whole() && size == 0) {
      return CASEMATE_UNPACK_DONE;
    }
    const std::uint32_t packed_size = numbers.read(4);
    const bool is_packed = packed_size < size;
    const std::uint32_t checksum = (flags & Adler32Unpacked) != 0 ? numbers.read(4) : 0;
    numbers.skip((flags & Crc32Unpacked) != 0 ? 4 : 0);
    numbers.skip(is_packed && (flags & Adler32Packed) != 0 ? 4 : 0);
    numbers.skip(is_packed && (flags & Crc32Packed) != 0 ? 4 : 0);
    if (!numbers.is_whole()) {
      return CASEMATE_UNPACK_TRUNCATED;
    }
    if (size > block_size || packed_size > size) {
      return CASEMATE_UNPACK_DAMAGED;
    }
    const auto from = std::span(packed).first(packed_size);
    const auto to = std::span(unpacked).first(size);
    if (!input.read_exactly(from)) {
      return CASEMATE_UNPACK_TRUNCATED;
    }
    if (is_packed && !Block(from, to).unpack()) {
      return CASEMATE_UNPACK_DAMAGED;
    }
    // A block that would not get smaller stands there as it is.
    const std::span<const std::byte> made = is_packed ? to : from;
    if ((flags & Adler32Unpacked) != 0 && adler32_of(made) != checksum) {
      return CASEMATE_UNPACK_DAMAGED;
    }
    if (const Status status = output.write(made)) {
      return status;
    }
  }
}

} // namespace casemate::unpack
