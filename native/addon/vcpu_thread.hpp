#pragma once

#include "kvm/vcpu.hpp"
#include "sys/fd.hpp"
#include "sys/result.hpp"

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>

namespace casemate::addon {

/// The thread on which one vCPU runs, so that the guest does not stop Node.
///
/// One caller (the thread of the JavaScript environment) starts a run, sees
/// completion() become readable, takes the result, starts the next. Between a
/// completion and the next run() the vCPU is the caller's.
///
/// Nothing of the process is changed for it. The signal that gets a vCPU out of guest
/// code needs no handler: the thread keeps it blocked, KVM_SET_SIGNAL_MASK lets it
/// through during KVM_RUN alone (which then returns EINTR), and the thread takes it
/// from its queue afterwards. All other signals that Node or its addons handle are
/// blocked in this thread at all times, and go to the other threads.
class VcpuThread {
public:
  /// `vcpu` stays the caller's and outlives this object. Only from a thread that may
  /// create others.
  static sys::Result<std::unique_ptr<VcpuThread>> create(const kvm::Vcpu& vcpu);

  /// Interrupts a run and joins the thread.
  ~VcpuThread();
  VcpuThread(const VcpuThread&) = delete;
  VcpuThread& operator=(const VcpuThread&) = delete;

  /// An eventfd that becomes readable when a run has ended.
  int completion() const { return completion_.get(); }

  /// Starts a run. `immediate`: only completes what the last exit left to be done, and
  /// comes back with EINTR before any guest code runs.
  void run(bool immediate);

  /// Makes the run that is under way end with EINTR, unless it ends by itself first.
  void interrupt();

  /// To be called once completion() is readable: resets it and gives the run's result.
  /// Nothing where it was not readable after all.
  std::optional<sys::SysError> take();

private:
  enum Command : std::uint32_t { idle, run_vcpu, stop };

  explicit VcpuThread(const kvm::Vcpu& vcpu) : vcpu_(vcpu) {}
  void loop();
  sys::SysError run_to_exit();

  const kvm::Vcpu& vcpu_;
  sys::Fd completion_;
  std::atomic<std::uint32_t> command_{idle};
  std::atomic<int> id_{0};
  sys::SysError result_; // Written before command_ goes back to idle, read after.
  std::thread thread_;
};

} // namespace casemate::addon
