#include "addon/kvm.hpp"

#include "addon/kvm_arguments.hpp"
#include "addon/module.hpp"
#include "kvm/kvm.hpp"

#include <cerrno>
#include <fcntl.h>
#include <string>
#include <utility>
#include <vector>

namespace casemate::addon {

namespace {

/// As many as the kernel has room for (KVM_MAX_CPUID_ENTRIES).
constexpr std::size_t max_cpuid_entries = 256;

using GetCpuid = sys::SysError (kvm::Kvm::*)(casemate_kvm_cpuid2*) const;
using GetMsrList = sys::SysError (kvm::Kvm::*)(casemate_kvm_msr_list*) const;

/// The entries, without the head.
Napi::Value cpuid_entries(Napi::Env env, const kvm::Kvm& kvm, GetCpuid get) {
  kvm::Table<casemate_kvm_cpuid2, kvm_cpuid_entry2, max_cpuid_entries> table;
  table->nent = max_cpuid_entries;
  check(env, (kvm.*get)(table.get()));
  return copy_of(env, table->entries, table->nent * sizeof(kvm_cpuid_entry2));
}

/// An open /dev/kvm.
class KvmHandle : public Napi::ObjectWrap<KvmHandle> {
public:
  static void define(Napi::Env env, Napi::Object exports) {
    exports.Set(
        "KvmHandle",
        DefineClass(env, "KvmHandle",
                    {
                        InstanceMethod<&KvmHandle::get_api_version>("getApiVersion"),
                        InstanceMethod<&KvmHandle::check_extension>("checkExtension"),
                        InstanceMethod<&KvmHandle::cpuid<&kvm::Kvm::get_supported_cpuid>>(
                            "getSupportedCpuid"),
                        InstanceMethod<&KvmHandle::cpuid<&kvm::Kvm::get_emulated_cpuid>>(
                            "getEmulatedCpuid"),
                        InstanceMethod<&KvmHandle::msr_list<&kvm::Kvm::get_msr_index_list>>(
                            "getMsrIndexList"),
                        InstanceMethod<&KvmHandle::msr_list<&kvm::Kvm::get_msr_feature_index_list>>(
                            "getMsrFeatureIndexList"),
                        InstanceMethod<&KvmHandle::get_msrs>("getMsrs"),
                        InstanceMethod<&KvmHandle::close>("close"),
                    }));
  }

  /// Of a path, which is opened, or of a descriptor, which is duplicated.
  explicit KvmHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<KvmHandle>(info) {
    if (info[0].IsString()) {
      const std::string path = info[0].As<Napi::String>();
      kvm_ = take(info.Env(), kvm::Kvm::open(path.c_str()), path.c_str());
      return;
    }
    const long fd =
        sys::call(__NR_fcntl, info[0].As<Napi::Number>().Int32Value(), F_DUPFD_CLOEXEC, 0);
    check(info.Env(), sys::check("fcntl(F_DUPFD_CLOEXEC)", fd));
    kvm_ = kvm::Kvm(sys::Fd(static_cast<int>(fd)));
  }

  const kvm::Kvm& kvm() const { return kvm_; }

private:
  Napi::Value get_api_version(const Napi::CallbackInfo& info) {
    return number(info.Env(), kvm_.get_api_version());
  }

  Napi::Value check_extension(const Napi::CallbackInfo& info) {
    return number(info.Env(), kvm_.check_extension(u32(info[0])));
  }

  template <GetCpuid Get> Napi::Value cpuid(const Napi::CallbackInfo& info) {
    return cpuid_entries(info.Env(), kvm_, Get);
  }

  template <GetMsrList Get> Napi::Value msr_list(const Napi::CallbackInfo& info) {
    // Asked with too little room the kernel says how much it takes.
    casemate_kvm_msr_list head{};
    const sys::SysError error = (kvm_.*Get)(&head);
    if (error && error.number != E2BIG) {
      throw_system_error(info.Env(), error);
    }
    std::vector<std::uint32_t> words(1 + std::size_t{head.nmsrs});
    auto* list = reinterpret_cast<casemate_kvm_msr_list*>(words.data());
    list->nmsrs = head.nmsrs;
    check(info.Env(), (kvm_.*Get)(list));
    return copy_of(info.Env(), list->indices, list->nmsrs * sizeof(list->indices[0]));
  }

  Napi::Value get_msrs(const Napi::CallbackInfo& info) {
    return number(info.Env(), kvm_.get_msrs(msrs(info[0])));
  }

  void close(const Napi::CallbackInfo&) { kvm_ = kvm::Kvm(); }

  kvm::Kvm kvm_;
};

/// For launches, which have the descriptor of a /dev/kvm and need no object.
class Borrowed {
public:
  explicit Borrowed(const Napi::Value& fd) : kvm_{sys::Fd(fd.As<Napi::Number>().Int32Value())} {}
  ~Borrowed() { kvm_.release(); }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;

  const kvm::Kvm& operator*() const { return kvm_; }

private:
  kvm::Kvm kvm_;
};

Napi::Value supported_cpuid(const Napi::CallbackInfo& info) {
  return cpuid_entries(info.Env(), *Borrowed(info[0]), &kvm::Kvm::get_supported_cpuid);
}

Napi::Value run_size(const Napi::CallbackInfo& info) {
  return number(info.Env(), (*Borrowed(info[0])).vcpu_mmap_size());
}

Napi::Value extension(const Napi::CallbackInfo& info) {
  return number(info.Env(),
                (*Borrowed(info[0])).check_extension(info[1].As<Napi::Number>().Uint32Value()));
}

} // namespace

const kvm::Kvm& kvm_of(const Napi::Value& value) {
  return KvmHandle::Unwrap(value.As<Napi::Object>())->kvm();
}

void init_kvm(Napi::Env env, Napi::Object exports) {
  KvmHandle::define(env, exports);
  exports.Set("kvmSupportedCpuid", Napi::Function::New(env, supported_cpuid, "kvmSupportedCpuid"));
  exports.Set("kvmRunSize", Napi::Function::New(env, run_size, "kvmRunSize"));
  exports.Set("kvmExtension", Napi::Function::New(env, extension, "kvmExtension"));
  init_kvm_vm(env, exports);
  init_kvm_vcpu(env, exports);
  init_eventfd(env, exports);
}

} // namespace casemate::addon
