#include "unpack/formats.hpp"

#include <bzlib.h>
#include <lz4.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

namespace casemate::unpack {

namespace {

constexpr std::size_t buffer_size = 64 * 1024;

/// What one call of a library's has come to.
enum class Progress { More, End, Damaged, NoMemory };

/// Feeds `step`, which takes from the front of one span, fills the front of the other, and
/// leaves what it has not used of both.
template <typename Step> Status pump(Input& input, Output& output, Step step) {
  static std::byte in_buffer[buffer_size];
  static std::byte out_buffer[buffer_size];
  std::span<std::byte> in;
  for (;;) {
    if (in.empty()) {
      in = std::span(in_buffer).first(input.read(in_buffer));
    }
    const std::size_t available = in.size();
    std::span<std::byte> room(out_buffer);
    const Progress progress = step(in, room);
    const auto made = std::span(out_buffer).first(sizeof out_buffer - room.size());
    if (const Status status = output.write(made)) {
      return status;
    }
    switch (progress) {
    case Progress::End:
      return CASEMATE_UNPACK_DONE;
    case Progress::Damaged:
      return CASEMATE_UNPACK_DAMAGED;
    case Progress::NoMemory:
      return CASEMATE_UNPACK_NO_MEMORY;
    case Progress::More:
      break;
    }
    if (made.empty() && in.size() == available) {
      return available == 0 ? CASEMATE_UNPACK_TRUNCATED : CASEMATE_UNPACK_DAMAGED;
    }
  }
}

/// Ends a library's state, however a function is left.
template <typename State, auto End> struct Ended {
  State& state;
  ~Ended() { static_cast<void>(End(&state)); }
};

template <typename Byte> Byte* bytes(std::span<std::byte> span) {
  return reinterpret_cast<Byte*>(span.data());
}

/// The most memory that liblzma may take: dictionaries of kernels have up to 128 MiB.
constexpr std::uint64_t lzma_memory = 256u << 20;

Status unpack_lzma_stream(lzma_stream& stream, lzma_ret opened, Input& input, Output& output) {
  const Ended<lzma_stream, lzma_end> end{stream};
  if (opened != LZMA_OK) {
    return CASEMATE_UNPACK_NO_MEMORY;
  }
  return pump(input, output, [&](std::span<std::byte>& in, std::span<std::byte>& out) {
    stream.next_in = bytes<std::uint8_t>(in);
    stream.avail_in = in.size();
    stream.next_out = bytes<std::uint8_t>(out);
    stream.avail_out = out.size();
    const lzma_ret result = lzma_code(&stream, LZMA_RUN);
    in = in.last(stream.avail_in);
    out = out.last(stream.avail_out);
    switch (result) {
    case LZMA_OK:
    case LZMA_BUF_ERROR: // no progress, which is seen to
      return Progress::More;
    case LZMA_STREAM_END:
      return Progress::End;
    case LZMA_MEM_ERROR:
    case LZMA_MEMLIMIT_ERROR:
      return Progress::NoMemory;
    default:
      return Progress::Damaged;
    }
  });
}

} // namespace

Status unpack_gzip(Input& input, Output& output) {
  z_stream stream{};
  const Ended<z_stream, inflateEnd> end{stream};
  constexpr int with_gzip_header = 16;
  if (inflateInit2(&stream, MAX_WBITS + with_gzip_header) != Z_OK) {
    return CASEMATE_UNPACK_NO_MEMORY;
  }
  return pump(input, output, [&](std::span<std::byte>& in, std::span<std::byte>& out) {
    stream.next_in = bytes<Bytef>(in);
    stream.avail_in = static_cast<uInt>(in.size());
    stream.next_out = bytes<Bytef>(out);
    stream.avail_out = static_cast<uInt>(out.size());
    const int result = inflate(&stream, Z_NO_FLUSH);
    in = in.last(stream.avail_in);
    out = out.last(stream.avail_out);
    switch (result) {
    case Z_OK:
    case Z_BUF_ERROR:
      return Progress::More;
    case Z_STREAM_END:
      return Progress::End;
    case Z_MEM_ERROR:
      return Progress::NoMemory;
    default:
      return Progress::Damaged;
    }
  });
}

Status unpack_bzip2(Input& input, Output& output) {
  bz_stream stream{};
  const Ended<bz_stream, BZ2_bzDecompressEnd> end{stream};
  if (BZ2_bzDecompressInit(&stream, 0, 0) != BZ_OK) {
    return CASEMATE_UNPACK_NO_MEMORY;
  }
  return pump(input, output, [&](std::span<std::byte>& in, std::span<std::byte>& out) {
    stream.next_in = bytes<char>(in);
    stream.avail_in = static_cast<unsigned>(in.size());
    stream.next_out = bytes<char>(out);
    stream.avail_out = static_cast<unsigned>(out.size());
    const int result = BZ2_bzDecompress(&stream);
    in = in.last(stream.avail_in);
    out = out.last(stream.avail_out);
    switch (result) {
    case BZ_OK:
      return Progress::More;
    case BZ_STREAM_END:
      return Progress::End;
    case BZ_MEM_ERROR:
      return Progress::NoMemory;
    default:
      return Progress::Damaged;
    }
  });
}

Status unpack_lzma(Input& input, Output& output) {
  lzma_stream stream = LZMA_STREAM_INIT;
  return unpack_lzma_stream(stream, lzma_alone_decoder(&stream, lzma_memory), input, output);
}

Status unpack_xz(Input& input, Output& output) {
  lzma_stream stream = LZMA_STREAM_INIT;
  return unpack_lzma_stream(stream, lzma_stream_decoder(&stream, lzma_memory, 0), input, output);
}

Status unpack_zstd(Input& input, Output& output) {
  ZSTD_DStream* stream = ZSTD_createDStream();
  if (stream == nullptr) {
    return CASEMATE_UNPACK_NO_MEMORY;
  }
  // Its default limit of the window, 128 MiB, is the largest that kernels are built with.
  const Status status =
      pump(input, output, [&](std::span<std::byte>& in, std::span<std::byte>& out) {
        ZSTD_inBuffer from{in.data(), in.size(), 0};
        ZSTD_outBuffer to{out.data(), out.size(), 0};
        const std::size_t result = ZSTD_decompressStream(stream, &to, &from);
        in = in.subspan(from.pos);
        out = out.subspan(to.pos);
        if (ZSTD_isError(result) != 0) {
          return ZSTD_getErrorCode(result) == ZSTD_error_memory_allocation ? Progress::NoMemory
                                                                           : Progress::Damaged;
        }
        return result == 0 ? Progress::End : Progress::More;
      });
  ZSTD_freeDStream(stream);
  return status;
}

/// A magic, then blocks of at most 8 MiB, each behind its compressed size. The magic again
/// begins another such file.
Status unpack_lz4(Input& input, Output& output) {
  constexpr std::uint32_t magic = 0x184c2102;
  constexpr int block_size = 8 << 20;
  static std::byte packed[LZ4_COMPRESSBOUND(block_size)];
  static std::byte unpacked[block_size];
  for (;;) {
    std::uint32_t size = 0;
    const std::size_t got = input.read(std::as_writable_bytes(std::span(&size, 1)));
    if (got != sizeof size) {
      // Nothing says that it ends but its end.
      return got == 0 ? CASEMATE_UNPACK_DONE : CASEMATE_UNPACK_TRUNCATED;
    }
    if (size == magic) {
      continue;
    }
    if (size > sizeof packed) {
      return CASEMATE_UNPACK_DAMAGED;
    }
    if (!input.read_exactly(std::span(packed).first(size))) {
      return CASEMATE_UNPACK_TRUNCATED;
    }
    const int made = LZ4_decompress_safe(bytes<char>(packed), bytes<char>(unpacked),
                                         static_cast<int>(size), sizeof unpacked);
    if (made < 0) {
      return CASEMATE_UNPACK_DAMAGED;
    }
    if (const Status status =
            output.write(std::span(unpacked).first(static_cast<std::size_t>(made)))) {
      return status;
    }
  }
}

} // namespace casemate::unpack
