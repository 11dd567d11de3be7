// The compressions that Linux builds its kernels with, one function each. All but LZO's
// hand the work to the library that the format comes from.
#pragma once

#include "unpack/stream.hpp"

namespace casemate::unpack {

Status unpack_gzip(Input& input, Output& output);
Status unpack_bzip2(Input& input, Output& output);
Status unpack_lzma(Input& input, Output& output);
Status unpack_xz(Input& input, Output& output);
Status unpack_zstd(Input& input, Output& output);
Status unpack_lz4(Input& input, Output& output); // of `lz4 -l`, the legacy framing
Status unpack_lzo(Input& input, Output& output); // of lzop

} // namespace casemate::unpack
