#pragma once

#include "sys/fd.hpp"

#include <cstdint>
#include <napi.h>

namespace casemate::addon {

/// A memory file of `bytes | size`, sealed with `seals` (none for 0); throws a system
/// error. memfd_create(2), fcntl(2) F_ADD_SEALS
sys::Fd make_memfd(Napi::Env env, const char* name, const Napi::Value& contents,
                   std::uint32_t seals);

} // namespace casemate::addon
