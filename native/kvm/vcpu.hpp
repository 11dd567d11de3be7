#pragma once

#include "kvm/ioctl.hpp"
#include "sys/fd.hpp"
#include "sys/mapping.hpp"
#include "sys/result.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace casemate::kvm {

/// A virtual CPU, with its kvm_run structure mapped. Made by
/// VirtualMachine::create_vcpu. Run it from one thread; change it while it does not run.
class Vcpu {
public:
  Vcpu() = default;

  static sys::Result<Vcpu> adopt(sys::Fd fd, std::size_t run_size) {
    constexpr int read_write = 1 | 2;
    constexpr int shared = 1;
    auto mapping = sys::Mapping::map(run_size, read_write, shared, fd.get());
    if (!mapping) {
      return mapping.error();
    }
    Vcpu vcpu;
    vcpu.fd_ = std::move(fd);
    vcpu.run_ = std::move(mapping).value();
    return vcpu;
  }

  int fd() const { return fd_.get(); }

  // ---- Running ----

  /// KVM_RUN: enters the guest until it needs something, which is then in state().
  /// EINTR: interrupted by a signal or by immediate_exit; the guest is where it was.
  /// EAGAIN: an application processor that was not started yet; of any other vCPU, that the
  /// kernel could not make a task that KVM needs for the VM (a limit of processes).
  sys::SysError run() const { return ioctl_check("ioctl(KVM_RUN)", fd(), KVM_RUN); }

  /// The shared kvm_run structure. What the kernel writes into it depends on the guest;
  /// nothing writes to it while the vCPU does not run.
  kvm_run& state() const { return *reinterpret_cast<kvm_run*>(run_.data()); }

  /// All of the mapping: kvm_run, then the page of I/O data, then the coalesced ring.
  std::span<std::byte> mapping() const { return {run_.data(), run_.size()}; }

  /// The bytes of a KVM_EXIT_IO: what the guest wrote, or where to put what it reads.
  /// Empty where the kernel's numbers lie outside the mapping.
  std::span<std::byte> io_data() const {
    const auto& io = state().io;
    const std::size_t size = static_cast<std::size_t>(io.size) * io.count;
    if (io.data_offset > run_.size() || size > run_.size() - io.data_offset) {
      return {};
    }
    return {run_.data() + io.data_offset, size};
  }

  /// Makes run() return with EINTR before it enters the guest. To get a vCPU out of guest
  /// code, its thread needs a signal as well, sent after this. Any thread may call this.
  void set_immediate_exit(bool on) const {
    __atomic_store_n(&state().immediate_exit, static_cast<std::uint8_t>(on ? 1 : 0),
                     __ATOMIC_SEQ_CST);
  }
  bool immediate_exit() const {
    return __atomic_load_n(&state().immediate_exit, __ATOMIC_SEQ_CST) != 0;
  }
  /// Signals blocked while in KVM_RUN: bit n - 1 is signal n.
  sys::SysError set_signal_mask(std::uint64_t blocked) const {
    struct {
      std::uint32_t length = CASEMATE_KVM_SIGSET_SIZE;
      std::uint32_t set[2];
    } mask;
    mask.set[0] = static_cast<std::uint32_t>(blocked);
    mask.set[1] = static_cast<std::uint32_t>(blocked >> 32);
    return ioctl_check("ioctl(KVM_SET_SIGNAL_MASK)", fd(), CASEMATE_KVM_SET_SIGNAL_MASK, &mask);
  }
  /// Back to the thread's own signal mask.
  sys::SysError clear_signal_mask() const {
    return ioctl_check("ioctl(KVM_SET_SIGNAL_MASK)", fd(), CASEMATE_KVM_SET_SIGNAL_MASK, nullptr);
  }

  sys::SysError enable_cap(const kvm_enable_cap& cap) const {
    return ioctl_check("ioctl(KVM_ENABLE_CAP)", fd(), KVM_ENABLE_CAP, &cap);
  }

  // ---- Identity: before anything that depends on it, above all MSRs ----

  sys::SysError set_cpuid2(const casemate_kvm_cpuid2* cpuid) const {
    return ioctl_check("ioctl(KVM_SET_CPUID2)", fd(), CASEMATE_KVM_SET_CPUID2, cpuid);
  }
  sys::SysError get_cpuid2(casemate_kvm_cpuid2* cpuid) const {
    return ioctl_check("ioctl(KVM_GET_CPUID2)", fd(), CASEMATE_KVM_GET_CPUID2, cpuid);
  }

  // ---- State ----

  /// For the next run() to put into effect, in place of an ioctl: KVM_CAP_SYNC_REGS. What
  /// no processor could have is EINVAL there.
  void stage_regs(const kvm_regs& regs) const {
    state().s.regs.regs = regs;
    state().kvm_dirty_regs |= KVM_SYNC_X86_REGS;
  }
  void stage_sregs(const kvm_sregs& sregs) const {
    state().s.regs.sregs = sregs;
    state().kvm_dirty_regs |= KVM_SYNC_X86_SREGS;
  }

  sys::SysError get_regs(kvm_regs& regs) const {
    return ioctl_check("ioctl(KVM_GET_REGS)", fd(), KVM_GET_REGS, &regs);
  }
  sys::SysError set_regs(const kvm_regs& regs) const {
    return ioctl_check("ioctl(KVM_SET_REGS)", fd(), KVM_SET_REGS, &regs);
  }
  sys::SysError get_sregs(kvm_sregs& sregs) const {
    return ioctl_check("ioctl(KVM_GET_SREGS)", fd(), KVM_GET_SREGS, &sregs);
  }
  sys::SysError set_sregs(const kvm_sregs& sregs) const {
    return ioctl_check("ioctl(KVM_SET_SREGS)", fd(), KVM_SET_SREGS, &sregs);
  }
  /// KVM_CAP_SREGS2: with the PDPTRs, without the interrupt bitmap.
  sys::SysError get_sregs2(kvm_sregs2& sregs) const {
    return ioctl_check("ioctl(KVM_GET_SREGS2)", fd(), KVM_GET_SREGS2, &sregs);
  }
  sys::SysError set_sregs2(const kvm_sregs2& sregs) const {
    return ioctl_check("ioctl(KVM_SET_SREGS2)", fd(), KVM_SET_SREGS2, &sregs);
  }
  sys::SysError get_fpu(kvm_fpu& fpu) const {
    return ioctl_check("ioctl(KVM_GET_FPU)", fd(), KVM_GET_FPU, &fpu);
  }
  sys::SysError set_fpu(const kvm_fpu& fpu) const {
    return ioctl_check("ioctl(KVM_SET_FPU)", fd(), KVM_SET_FPU, &fpu);
  }
  /// The first 4096 bytes of the XSAVE area; ENOTTY or EINVAL where it is bigger.
  sys::SysError get_xsave(casemate_kvm_xsave* xsave) const {
    return ioctl_check("ioctl(KVM_GET_XSAVE)", fd(), CASEMATE_KVM_GET_XSAVE, xsave);
  }
  /// All of it: as many bytes as VirtualMachine::check_extension(KVM_CAP_XSAVE2) says.
  sys::SysError get_xsave2(casemate_kvm_xsave* xsave) const {
    return ioctl_check("ioctl(KVM_GET_XSAVE2)", fd(), CASEMATE_KVM_GET_XSAVE2, xsave);
  }
  /// Reads as many bytes as get_xsave2 writes, 4096 where the kernel has no such.
  sys::SysError set_xsave(const casemate_kvm_xsave* xsave) const {
    return ioctl_check("ioctl(KVM_SET_XSAVE)", fd(), CASEMATE_KVM_SET_XSAVE, xsave);
  }
  sys::SysError get_xcrs(kvm_xcrs& xcrs) const {
    return ioctl_check("ioctl(KVM_GET_XCRS)", fd(), KVM_GET_XCRS, &xcrs);
  }
  sys::SysError set_xcrs(const kvm_xcrs& xcrs) const {
    return ioctl_check("ioctl(KVM_SET_XCRS)", fd(), KVM_SET_XCRS, &xcrs);
  }
  sys::SysError get_debugregs(kvm_debugregs& debugregs) const {
    return ioctl_check("ioctl(KVM_GET_DEBUGREGS)", fd(), KVM_GET_DEBUGREGS, &debugregs);
  }
  sys::SysError set_debugregs(const kvm_debugregs& debugregs) const {
    return ioctl_check("ioctl(KVM_SET_DEBUGREGS)", fd(), KVM_SET_DEBUGREGS, &debugregs);
  }
  /// How many entries were read: it stops at the first MSR that cannot be.
  sys::Result<int> get_msrs(casemate_kvm_msrs* msrs) const {
    return ioctl_number("ioctl(KVM_GET_MSRS)", fd(), CASEMATE_KVM_GET_MSRS, msrs);
  }
  /// How many entries were written, likewise.
  sys::Result<int> set_msrs(const casemate_kvm_msrs* msrs) const {
    return ioctl_number("ioctl(KVM_SET_MSRS)", fd(), CASEMATE_KVM_SET_MSRS, msrs);
  }
  sys::SysError get_lapic(kvm_lapic_state& lapic) const {
    return ioctl_check("ioctl(KVM_GET_LAPIC)", fd(), KVM_GET_LAPIC, &lapic);
  }
  sys::SysError set_lapic(const kvm_lapic_state& lapic) const {
    return ioctl_check("ioctl(KVM_SET_LAPIC)", fd(), KVM_SET_LAPIC, &lapic);
  }
  sys::Result<std::uint32_t> get_mp_state() const {
    kvm_mp_state state{};
    if (auto error = ioctl_check("ioctl(KVM_GET_MP_STATE)", fd(), KVM_GET_MP_STATE, &state)) {
      return error;
    }
    return state.mp_state;
  }
  sys::SysError set_mp_state(std::uint32_t mp_state) const {
    const kvm_mp_state state{mp_state};
    return ioctl_check("ioctl(KVM_SET_MP_STATE)", fd(), KVM_SET_MP_STATE, &state);
  }
  sys::SysError get_vcpu_events(kvm_vcpu_events& events) const {
    return ioctl_check("ioctl(KVM_GET_VCPU_EVENTS)", fd(), KVM_GET_VCPU_EVENTS, &events);
  }
  sys::SysError set_vcpu_events(const kvm_vcpu_events& events) const {
    return ioctl_check("ioctl(KVM_SET_VCPU_EVENTS)", fd(), KVM_SET_VCPU_EVENTS, &events);
  }

  // ---- Time ----

  sys::Result<int> get_tsc_khz() const {
    return ioctl_number("ioctl(KVM_GET_TSC_KHZ)", fd(), KVM_GET_TSC_KHZ);
  }
  sys::SysError set_tsc_khz(unsigned khz) const {
    return ioctl_check("ioctl(KVM_SET_TSC_KHZ)", fd(), KVM_SET_TSC_KHZ, khz);
  }
  /// Tells a guest with kvmclock that it was paused, so that its watchdogs stay quiet.
  /// EINVAL where the guest uses no kvmclock.
  sys::SysError kvmclock_ctrl() const {
    return ioctl_check("ioctl(KVM_KVMCLOCK_CTRL)", fd(), KVM_KVMCLOCK_CTRL);
  }

  // ---- Events and inspection ----

  sys::SysError nmi() const { return ioctl_check("ioctl(KVM_NMI)", fd(), KVM_NMI); }
  /// An external interrupt, where the LAPIC is not in the kernel (or the PIC is not).
  sys::SysError interrupt(std::uint32_t vector) const {
    const kvm_interrupt interrupt{vector};
    return ioctl_check("ioctl(KVM_INTERRUPT)", fd(), KVM_INTERRUPT, &interrupt);
  }
  /// Guest-virtual to guest-physical, by the vCPU's present page tables.
  sys::SysError translate(kvm_translation& translation) const {
    return ioctl_check("ioctl(KVM_TRANSLATE)", fd(), KVM_TRANSLATE, &translation);
  }
  sys::SysError set_guest_debug(const kvm_guest_debug& debug) const {
    return ioctl_check("ioctl(KVM_SET_GUEST_DEBUG)", fd(), KVM_SET_GUEST_DEBUG, &debug);
  }

private:
  sys::Fd fd_;
  sys::Mapping run_;
};

} // namespace casemate::kvm
