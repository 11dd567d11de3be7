#include "addon/plan.hpp"

#include <string>

namespace casemate::addon {

std::vector<std::byte> copy_of(const Napi::Value& value) {
  if (!value.IsTypedArray()) {
    return {};
  }
  auto array = value.As<Napi::Uint8Array>();
  auto* bytes = reinterpret_cast<const std::byte*>(array.Data());
  return {bytes, bytes + array.ByteLength()};
}

Napi::Function Plan::define(Napi::Env env) { return DefineClass(env, "Plan", {}); }

/// new Plan(bytes, given, { lasting, inHostMounts, lean, controlSlot, announcement, release })
Plan::Plan(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Plan>(info) {
  auto contents = std::make_shared<Contents>();
  contents->bytes = copy_of(info[0]);
  contents->given = info[1].As<Napi::Number>().Uint32Value();
  if (jail::PlanFault fault = jail::check_plan(contents->bytes, contents->given)) {
    std::string where = fault.step == SIZE_MAX ? "" : " in step " + std::to_string(fault.step);
    throw Napi::RangeError::New(info.Env(), std::string("invalid plan: ") + fault.reason + where);
  }
  auto options = info[2].As<Napi::Object>();
  contents->lasting.assign(contents->given, -1);
  if (Napi::Value lasting = options.Get("lasting"); lasting.IsArray()) {
    for (std::uint32_t i = 0; i < contents->given; ++i) {
      contents->lasting[i] = lasting.As<Napi::Array>().Get(i).As<Napi::Number>();
    }
  }
  contents->in_host_mounts = options.Get("inHostMounts").ToBoolean();
  contents->is_lean = options.Get("lean").ToBoolean();
  if (Napi::Value slot = options.Get("controlSlot"); slot.IsNumber()) {
    contents->control_slot = slot.As<Napi::Number>();
    contents->announcement = copy_of(options.Get("announcement"));
    contents->release = copy_of(options.Get("release"));
  }
  contents_ = std::move(contents);
}

} // namespace casemate::addon
