#include "addon/kvm.hpp"

#include "addon/kvm_arguments.hpp"

#include <cerrno>
#include <memory>
#include <sys/mman.h>
#include <type_traits>
#include <utility>

namespace casemate::addon {

namespace {

constexpr std::uint64_t page_size = 4096;

/// Bytes of a dirty bitmap: the kernel reads and writes whole 64-bit words.
constexpr std::uint64_t bitmap_size(std::uint64_t pages) { return (pages + 63) / 64 * 8; }

/// Anonymous memory for a guest, seen by JavaScript as an external ArrayBuffer. Mapped
/// as long as this object, the ArrayBuffer or a slot of a VM needs it.
class MemoryHandle : public Napi::ObjectWrap<MemoryHandle> {
public:
  static void define(Napi::Env env, Napi::Object exports) {
    exports.Set("MemoryHandle", DefineClass(env, "MemoryHandle",
                                            {InstanceMethod<&MemoryHandle::buffer>("buffer")}));
  }

  explicit MemoryHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<MemoryHandle>(info) {
    mapping_ = Shared<sys::Mapping>::make(
        take(info.Env(), sys::Mapping::map(u53(info[0]), PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)));
  }

  const Shared<sys::Mapping>& mapping() const { return mapping_; }

private:
  Napi::Value buffer(const Napi::CallbackInfo& info) {
    auto share = std::make_unique<Shared<sys::Mapping>>(mapping_);
    auto buffer = Napi::ArrayBuffer::New(
        info.Env(), mapping_->data(), mapping_->size(),
        [](Napi::Env, void*, Shared<sys::Mapping>* held) { delete held; }, share.get());
    static_cast<void>(share.release()); // The ArrayBuffer's now.
    return buffer;
  }

  Shared<sys::Mapping> mapping_;
};

class VmHandle : public Napi::ObjectWrap<VmHandle> {
public:
  static void define(Napi::Env env, Napi::Object exports) {
    using Vm = kvm::VirtualMachine;
    exports.Set(
        "VmHandle",
        DefineClass(env, "VmHandle",
                    {
                        InstanceMethod<&VmHandle::check_extension>("checkExtension"),
                        InstanceMethod<&VmHandle::enable_cap>("enableCap"),
                        InstanceMethod<&VmHandle::set_memory>("setMemory"),
                        InstanceMethod<&VmHandle::get_dirty_log>("getDirtyLog"),
                        InstanceMethod<&VmHandle::clear_dirty_log>("clearDirtyLog"),
                        InstanceMethod<&VmHandle::reset_dirty_rings>("resetDirtyRings"),
                        InstanceMethod<&VmHandle::set_tss_addr>("setTssAddr"),
                        InstanceMethod<&VmHandle::set_identity_map_addr>("setIdentityMapAddr"),
                        InstanceMethod<&VmHandle::create_irqchip>("createIrqchip"),
                        InstanceMethod<&VmHandle::with<&Vm::get_irqchip>>("getIrqchip"),
                        InstanceMethod<&VmHandle::with<&Vm::set_irqchip>>("setIrqchip"),
                        InstanceMethod<&VmHandle::with<&Vm::create_pit2>>("createPit2"),
                        InstanceMethod<&VmHandle::with<&Vm::get_pit2>>("getPit2"),
                        InstanceMethod<&VmHandle::with<&Vm::set_pit2>>("setPit2"),
                        InstanceMethod<&VmHandle::set_gsi_routing>("setGsiRouting"),
                        InstanceMethod<&VmHandle::with<&Vm::irqfd>>("irqfd"),
                        InstanceMethod<&VmHandle::with<&Vm::ioeventfd>>("ioeventfd"),
                        InstanceMethod<&VmHandle::with<&Vm::signal_msi>>("signalMsi"),
                        InstanceMethod<&VmHandle::irq_line>("irqLine"),
                        InstanceMethod<&VmHandle::set_boot_cpu_id>("setBootCpuId"),
                        InstanceMethod<&VmHandle::with<&Vm::get_clock>>("getClock"),
                        InstanceMethod<&VmHandle::with<&Vm::set_clock>>("setClock"),
                        InstanceMethod<&VmHandle::set_tsc_khz>("setTscKhz"),
                        InstanceMethod<&VmHandle::get_tsc_khz>("getTscKhz"),
                        InstanceMethod<&VmHandle::close>("close"),
                    }));
  }

  explicit VmHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<VmHandle>(info) {
    const kvm::Kvm& kvm = kvm_of(info[0]);
    auto machine = Shared<Machine>::make();
    machine->run_size = static_cast<std::size_t>(take(info.Env(), kvm.vcpu_mmap_size()));
    machine->vm = take(info.Env(), kvm::VirtualMachine::create(kvm));
    machine_ = std::move(machine);
  }

  const Shared<Machine>& machine() const {
    if (!machine_) {
      throw_system_error(Env(), {"ioctl", EBADF});
    }
    return machine_;
  }

private:
  const kvm::VirtualMachine& vm() const { return machine()->vm; }

  /// For all ioctls on one fixed structure, read or written in place.
  template <auto Method> Napi::Value with(const Napi::CallbackInfo& info) {
    using Struct = std::remove_const_t<decltype(argument_of(Method))>;
    auto result = (vm().*Method)(structure<Struct>(info[0]));
    if constexpr (std::is_same_v<decltype(result), sys::SysError>) {
      check(info.Env(), result);
      return info.Env().Undefined();
    } else {
      return number(info.Env(), std::move(result));
    }
  }

  Napi::Value check_extension(const Napi::CallbackInfo& info) {
    return number(info.Env(), vm().check_extension(u32(info[0])));
  }

  void enable_cap(const Napi::CallbackInfo& info) {
    const auto& cap = structure<kvm_enable_cap>(info[0]);
    check(info.Env(), vm().enable_cap(cap));
    if (cap.cap == KVM_CAP_DIRTY_LOG_RING || cap.cap == KVM_CAP_DIRTY_LOG_RING_ACQ_REL) {
      machine_->dirty_ring_size = cap.args[0];
    }
  }

  /// slot, flags, guest address, memory or null, offset in it, size.
  void set_memory(const Napi::CallbackInfo& info) {
    kvm_userspace_memory_region region{};
    region.slot = u32(info[0]);
    region.flags = u32(info[1]);
    region.guest_phys_addr = u53(info[2]);
    if (info[3].IsNull()) {
      check(info.Env(), vm().set_user_memory_region(region));
      machine_->slots.erase(region.slot);
      return;
    }
    const auto& memory = MemoryHandle::Unwrap(info[3].As<Napi::Object>())->mapping();
    const std::uint64_t offset = u53(info[4]);
    region.memory_size = u53(info[5]);
    if (offset > memory->size() || region.memory_size > memory->size() - offset) {
      throw_wrong_size(info.Env());
    }
    region.userspace_addr = reinterpret_cast<std::uintptr_t>(memory->data() + offset);
    check(info.Env(), vm().set_user_memory_region(region));
    // What the slot showed before is let go only now, when no guest can reach it.
    machine_->slots[region.slot] = {memory, region.memory_size};
  }

  void get_dirty_log(const Napi::CallbackInfo& info) {
    const std::uint32_t slot = u32(info[0]);
    const auto bitmap = bytes(info[1]);
    const auto known = machine()->slots.find(slot);
    if (known != machine_->slots.end() &&
        bitmap.size() < bitmap_size(known->second.size / page_size)) {
      throw_wrong_size(info.Env());
    }
    check(info.Env(), vm().get_dirty_log(slot, bitmap.data()));
  }

  /// slot, first page, number of pages, bitmap.
  void clear_dirty_log(const Napi::CallbackInfo& info) {
    const std::uint32_t pages = u32(info[2]);
    const auto bitmap = bytes(info[3]);
    if (bitmap.size() < bitmap_size(pages)) {
      throw_wrong_size(info.Env());
    }
    check(info.Env(), vm().clear_dirty_log(u32(info[0]), u53(info[1]), pages, bitmap.data()));
  }

  Napi::Value reset_dirty_rings(const Napi::CallbackInfo& info) {
    return number(info.Env(), vm().reset_dirty_rings());
  }

  void set_tss_addr(const Napi::CallbackInfo& info) {
    check(info.Env(), vm().set_tss_addr(u32(info[0])));
  }

  void set_identity_map_addr(const Napi::CallbackInfo& info) {
    check(info.Env(), vm().set_identity_map_addr(u53(info[0])));
  }

  void create_irqchip(const Napi::CallbackInfo& info) { check(info.Env(), vm().create_irqchip()); }

  void set_gsi_routing(const Napi::CallbackInfo& info) {
    check(info.Env(), vm().set_gsi_routing(counted<casemate_kvm_irq_routing, kvm_irq_routing_entry>(
                          info[0], &casemate_kvm_irq_routing::nr)));
  }

  void irq_line(const Napi::CallbackInfo& info) {
    check(info.Env(), vm().irq_line(u32(info[0]), info[1].As<Napi::Boolean>()));
  }

  void set_boot_cpu_id(const Napi::CallbackInfo& info) {
    check(info.Env(), vm().set_boot_cpu_id(u32(info[0])));
  }

  void set_tsc_khz(const Napi::CallbackInfo& info) {
    check(info.Env(), vm().set_tsc_khz(u32(info[0])));
  }

  Napi::Value get_tsc_khz(const Napi::CallbackInfo& info) {
    return number(info.Env(), vm().get_tsc_khz());
  }

  void close(const Napi::CallbackInfo&) { machine_ = {}; }

  Shared<Machine> machine_;
};

} // namespace

Shared<Machine> machine_of(const Napi::Value& value) {
  return VmHandle::Unwrap(value.As<Napi::Object>())->machine();
}

void init_kvm_vm(Napi::Env env, Napi::Object exports) {
  MemoryHandle::define(env, exports);
  VmHandle::define(env, exports);
}

} // namespace casemate::addon
