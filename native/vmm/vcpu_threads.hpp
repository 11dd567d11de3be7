// The vCPUs of a Linux guest, each with a thread of its own.
//
// A vCPU's thread holds the machine's lock whenever it is not in KVM_RUN: exits are handled
// one at a time, and by whom does not matter to a device.
#pragma once

#include "kvm/vm.hpp"
#include "sys/futex.hpp"
#include "vmm/configuration.hpp"
#include "vmm/threads.hpp"

#include <array>
#include <cstdint>

namespace casemate::vmm {

class VcpuThreads {
public:
  /// What to do with a vCPU that has left the guest, on its thread: at an exit, which is in
  /// its state(), or where KVM_RUN gave an error.
  struct Handlers {
    void (*exited)(void* context, const kvm::Vcpu& vcpu) = nullptr;
    void (*failed)(void* context, const kvm::Vcpu& vcpu, int error) = nullptr;
    void* context = nullptr;
  };

  explicit VcpuThreads(sys::Mutex& lock) : lock_(lock) {}

  /// The first is the bootstrap processor; the others wait for it to start them.
  sys::SysError create(const kvm::VirtualMachine& vm, const Configuration& configuration);
  const kvm::Vcpu& bootstrap() const { return threads_[0].vcpu; }

  /// Starts the threads. Returns when each has its filter and stands still, as after stop().
  sys::SysError start(const Configuration& configuration, const Handlers& handlers);

  // ---- By the event loop ----

  /// Gets all vCPUs out of the guest. Returns when they stand still.
  void stop();
  void resume();

  // ---- By a vCPU's thread, while it handles an exit ----

  /// No vCPU enters the guest any more; who is in it is for stop() to get out.
  void ask_to_stop() { is_stopping_ = true; }
  /// Until notify(), or for no reason. Where all are to stand still, this one does.
  void wait();

  // ---- By both ----

  void notify() { changed_.notify_all(); }

private:
  struct Thread {
    VcpuThreads* all = nullptr;
    kvm::Vcpu vcpu;
    long id = 0;
  };

  [[noreturn]] static void enter(void* thread);
  [[noreturn]] void run(Thread& thread);
  void stand_still();

  sys::Mutex& lock_;
  sys::Changed changed_;
  Handlers handlers_;
  std::array<Thread, CASEMATE_MAX_VCPUS> threads_{};
  std::uint32_t count_ = 0;
  std::uint32_t standing_ = 0;
  std::uint32_t resumes_ = 0; // how many there have been
  long process_ = 0;
  bool is_stopping_ = true;
  bool is_confined_ = false;
  sys::SysError error_{}; // of a thread that could not be confined
  Stacks stacks_;
};

} // namespace casemate::vmm
