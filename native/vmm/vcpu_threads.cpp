#include "vmm/vcpu_threads.hpp"

#include "machine/cpuid.hpp"
#include "vmm/confinement.hpp"

#include <asm/errno.h>
#include <csignal>
#include <span>

namespace casemate::vmm {

namespace {

/// What firmware would have set: memory is cached (or a guest may take it for a device's),
/// and string instructions are fast.
sys::SysError set_msrs(const kvm::Vcpu& vcpu) {
  constexpr std::uint32_t misc_enable = 0x1a0;
  constexpr std::uint32_t mtrr_default_type = 0x2ff;
  kvm::Table<casemate_kvm_msrs, kvm_msr_entry, 2> msrs;
  msrs->nmsrs = 2;
  msrs->entries[0] = {misc_enable, 0, 1};
  msrs->entries[1] = {mtrr_default_type, 0, 1u << 11 | 6}; // enabled, write-back
  auto count = vcpu.set_msrs(msrs.get());
  if (!count) {
    return count.error();
  }
  return static_cast<std::uint32_t>(count.value()) == msrs->nmsrs
             ? sys::SysError{}
             : sys::SysError{"ioctl(KVM_SET_MSRS)", EINVAL};
}

} // namespace

sys::SysError VcpuThreads::create(const kvm::VirtualMachine& vm,
                                  const Configuration& configuration) {
  count_ = configuration.vcpu_count;
  for (std::uint32_t i = 0; i < count_; ++i) {
    auto vcpu = vm.create_vcpu(i, configuration.run_size);
    if (!vcpu) {
      return vcpu.error();
    }
    threads_[i].all = this;
    threads_[i].vcpu = std::move(vcpu).value();
    machine::set_apic_id(*configuration.cpuid, i);
    if (auto error = threads_[i].vcpu.set_cpuid2(configuration.cpuid)) {
      return error;
    }
    if (auto error = set_msrs(threads_[i].vcpu)) {
      return error;
    }
  }
  return {};
}

sys::SysError VcpuThreads::start(const Configuration& configuration, const Handlers& handlers) {
  handlers_ = handlers;
  is_confined_ = configuration.has(CASEMATE_CONFIGURE_SECCOMP);
  process_ = sys::call(__NR_getpid);
  auto stacks = Stacks::map(count_);
  if (!stacks) {
    return stacks.error();
  }
  stacks_ = std::move(stacks).value();
  for (std::uint32_t i = 0; i < count_; ++i) {
    threads_[i].id = stacks_.start(i, enter, &threads_[i]);
    if (threads_[i].id < 0) {
      return sys::check("clone3", threads_[i].id);
    }
  }
  while (standing_ < count_) {
    changed_.wait(lock_);
  }
  return error_;
}

void VcpuThreads::stop() {
  is_stopping_ = true;
  if (standing_ == count_) {
    return;
  }
  for (const Thread& thread : std::span(threads_).first(count_)) {
    // In this order: one that is about to enter the guest sees the first, one that is in it
    // is interrupted by the second.
    thread.vcpu.set_immediate_exit(true);
    sys::call(__NR_tgkill, process_, thread.id, SIGIO);
  }
  notify(); // those that wait while they handle an exit
  while (standing_ < count_) {
    changed_.wait(lock_);
  }
}

void VcpuThreads::resume() {
  is_stopping_ = false;
  ++resumes_;
  notify();
}

void VcpuThreads::wait() {
  if (is_stopping_) {
    stand_still();
  } else {
    changed_.wait(lock_);
  }
}

void VcpuThreads::stand_still() {
  if (++standing_ == count_) {
    notify();
  }
  while (is_stopping_) {
    changed_.wait(lock_);
  }
  --standing_;
}

void VcpuThreads::enter(void* argument) {
  auto& thread = *static_cast<Thread*>(argument);
  thread.all->run(thread);
}

void VcpuThreads::run(Thread& thread) {
  const sys::SysError refused = is_confined_ ? confine_vcpu() : sys::SysError{};
  lock_.lock();
  if (refused) {
    error_ = refused;
  }
  std::uint32_t resumes_seen = 1; // the first is the start
  for (;;) {
    if (is_stopping_) {
      stand_still();
    }
    if (resumes_seen != resumes_) {
      resumes_seen = resumes_;
      // A guest that stood still is told so, or its watchdogs would call it a fault of its
      // own. EINVAL where it has no such clock.
      static_cast<void>(thread.vcpu.kvmclock_ctrl());
    }
    thread.vcpu.set_immediate_exit(false);
    lock_.unlock();
    const sys::SysError error = thread.vcpu.run();
    lock_.lock();
    if (!error) {
      handlers_.exited(handlers_.context, thread.vcpu);
    } else if (error.number != EINTR && (error.number != EAGAIN || &thread == &threads_[0])) {
      handlers_.failed(handlers_.context, thread.vcpu, error.number);
    }
  }
}

} // namespace casemate::vmm
