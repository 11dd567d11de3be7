// How the KVM classes take their arguments. TypeScript validates what users pass; what
// is checked here is what memory safety needs, once, where the bytes enter.
#pragma once

#include "addon/errors.hpp"
#include "kvm/abi.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <napi.h>
#include <span>

namespace casemate::addon {

/// The bytes of a Uint8Array: JavaScript's own, valid during this call.
inline std::span<std::uint8_t> bytes(const Napi::Value& value) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throw Napi::TypeError::New(value.Env(), "Expected a Uint8Array");
  }
  auto array = value.As<Napi::Uint8Array>();
  return {array.Data(), array.ElementLength()};
}

[[noreturn]] inline void throw_wrong_size(Napi::Env env) {
  throw Napi::RangeError::New(env, "The buffer has not the size of the kernel's structure");
}

/// A Uint8Array that holds one of the kernel's structs, whole and aligned.
template <typename Struct> Struct& structure(const Napi::Value& value) {
  const auto memory = bytes(value);
  if (memory.size() != sizeof(Struct) ||
      reinterpret_cast<std::uintptr_t>(memory.data()) % alignof(Struct) != 0) {
    throw_wrong_size(value.Env());
  }
  return *reinterpret_cast<Struct*>(memory.data());
}

/// A Uint8Array that holds one of the kernel's structs that end in an array, and exactly
/// as many entries as its field `count` says.
template <typename Head, typename Entry>
Head* counted(const Napi::Value& value, __u32 Head::*count) {
  const auto memory = bytes(value);
  auto* head = reinterpret_cast<Head*>(memory.data());
  if (memory.size() < sizeof(Head) || reinterpret_cast<std::uintptr_t>(head) % alignof(Head) != 0 ||
      head->*count != (memory.size() - sizeof(Head)) / sizeof(Entry)) {
    throw_wrong_size(value.Env());
  }
  return head;
}

inline casemate_kvm_msrs* msrs(const Napi::Value& value) {
  return counted<casemate_kvm_msrs, kvm_msr_entry>(value, &casemate_kvm_msrs::nmsrs);
}

inline std::uint32_t u32(const Napi::Value& value) {
  return value.As<Napi::Number>().Uint32Value();
}
/// Sizes and guest-physical addresses are numbers: they fit into 53 bits.
inline std::uint64_t u53(const Napi::Value& value) {
  return static_cast<std::uint64_t>(value.As<Napi::Number>().Int64Value());
}

inline Napi::Value number(Napi::Env env, sys::Result<int> result) {
  return Napi::Number::New(env, take(env, std::move(result)));
}

inline Napi::Value copy_of(Napi::Env env, const void* data, std::size_t size) {
  auto copy = Napi::Uint8Array::New(env, size);
  std::copy_n(static_cast<const std::uint8_t*>(data), size, copy.Data());
  return copy;
}

/// What an ioctl of the classes in native/kvm takes by reference.
template <typename Class, typename Return, typename Struct>
Struct argument_of(Return (Class::*)(Struct&) const);

} // namespace casemate::addon
