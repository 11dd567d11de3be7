// What the KVM files of this folder share.
#pragma once

#include "addon/shared.hpp"
#include "kvm/kvm.hpp"
#include "kvm/vm.hpp"
#include "sys/mapping.hpp"

#include <cstddef>
#include <cstdint>
#include <map>
#include <napi.h>

namespace casemate::addon {

/// A virtual machine with the memory of its slots. The JavaScript objects of the VM and
/// of its vCPUs share it, so that in whatever order the garbage collector takes them,
/// memory is unmapped after the last descriptor of the VM is closed: until then the
/// guest could write to it, and to whatever of Node would be mapped there next.
struct Machine {
  struct Slot {
    Shared<sys::Mapping> memory;
    std::uint64_t size;
  };

  std::map<std::uint32_t, Slot> slots; // First here: destroyed last.
  kvm::VirtualMachine vm;
  std::size_t run_size = 0;        // Kvm::vcpu_mmap_size()
  std::size_t dirty_ring_size = 0; // In bytes; 0: there is none.
};

/// From the JavaScript objects that other classes take as arguments.
const kvm::Kvm& kvm_of(const Napi::Value& value);
Shared<Machine> machine_of(const Napi::Value& value);

void init_kvm_vm(Napi::Env env, Napi::Object exports);
void init_kvm_vcpu(Napi::Env env, Napi::Object exports);
void init_eventfd(Napi::Env env, Napi::Object exports);

} // namespace casemate::addon
