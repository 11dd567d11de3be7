#include "addon/module.hpp"

namespace casemate::addon {

static Napi::Object init(Napi::Env env, Napi::Object exports) {
  init_system(env, exports);
  init_jail(env, exports);
  init_step_thread(env, exports);
  init_kvm(env, exports);
  init_kernel_messages(env, exports);
  init_selinux(env, exports);
  return exports;
}

} // namespace casemate::addon

static Napi::Object init_module(Napi::Env env, Napi::Object exports) {
  return casemate::addon::init(env, exports);
}

NODE_API_MODULE(casemate, init_module)
