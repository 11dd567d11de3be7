// The addon: a seam and nothing else. Each file of this folder turns one noun's
// C++ into JavaScript values and back; validation is TypeScript's, work is the
// layers' below.
#pragma once

#include <napi.h>

namespace casemate::addon {

void init_jail(Napi::Env env, Napi::Object exports);
void init_kvm(Napi::Env env, Napi::Object exports);
void init_step_thread(Napi::Env env, Napi::Object exports);
void init_system(Napi::Env env, Napi::Object exports);
void init_kernel_messages(Napi::Env env, Napi::Object exports);
void init_selinux(Napi::Env env, Napi::Object exports);

} // namespace casemate::addon
