#pragma once

#include "kvm/kvm.hpp"
#include "kvm/vcpu.hpp"

#include <cstdint>
#include <utility>

namespace casemate::kvm {

/// A virtual machine: guest memory, interrupt controllers, clock. Bound to the
/// memory map of the process that creates it: from another process every ioctl on it
/// or on its vCPUs gives EIO.
///
/// The order of set-up decides how long it takes (each memory slot set after an
/// in-kernel irqchip waits for an RCU grace period): slots first, then the irqchip,
/// then vCPUs. The TSS and identity map addresses come before the first vCPU.
class VirtualMachine {
public:
  VirtualMachine() = default;

  static sys::Result<VirtualMachine> create(const Kvm& kvm, unsigned long type = 0) {
    // A pending signal can interrupt the creation any number of times: it waits for a
    // kernel thread of its own (nx huge page recovery) to start.
    const long fd = sys::call_retry(__NR_ioctl, kvm.fd(), KVM_CREATE_VM, type);
    if (fd < 0) {
      return sys::check("ioctl(KVM_CREATE_VM)", fd);
    }
    VirtualMachine vm;
    vm.fd_.reset(static_cast<int>(fd));
    return vm;
  }

  int fd() const { return fd_.get(); }

  /// Where an answer can depend on the VM, this is the one to ask.
  sys::Result<int> check_extension(unsigned capability) const {
    return ioctl_number("ioctl(KVM_CHECK_EXTENSION)", fd(), KVM_CHECK_EXTENSION, capability);
  }
  sys::SysError enable_cap(const kvm_enable_cap& cap) const {
    return ioctl_check("ioctl(KVM_ENABLE_CAP)", fd(), KVM_ENABLE_CAP, &cap);
  }

  /// `run_size` is Kvm::vcpu_mmap_size(): asked once, not for every vCPU.
  sys::Result<Vcpu> create_vcpu(unsigned id, std::size_t run_size) const {
    const long vcpu = ioctl(fd(), KVM_CREATE_VCPU, id);
    if (vcpu < 0) {
      return sys::check("ioctl(KVM_CREATE_VCPU)", vcpu);
    }
    return Vcpu::adopt(sys::Fd(static_cast<int>(vcpu)), run_size);
  }

  /// What guest code may read and write of its processor's registers. Waits for a grace period.
  sys::SysError set_msr_filter(const kvm_msr_filter& filter) const {
    return ioctl_check("ioctl(KVM_X86_SET_MSR_FILTER)", fd(), KVM_X86_SET_MSR_FILTER, &filter);
  }

  // ---- Memory ----

  /// Sets, moves or (memory_size 0) deletes a slot. The memory must stay mapped until
  /// the slot is deleted or every descriptor of the VM is closed.
  sys::SysError set_user_memory_region(const kvm_userspace_memory_region& region) const {
    return ioctl_check("ioctl(KVM_SET_USER_MEMORY_REGION)", fd(), KVM_SET_USER_MEMORY_REGION,
                       &region);
  }
  /// `bitmap`: one bit per page of the slot, rounded up to 64 bits.
  sys::SysError get_dirty_log(std::uint32_t slot, void* bitmap) const {
    kvm_dirty_log log{};
    log.slot = slot;
    log.dirty_bitmap = bitmap;
    return ioctl_check("ioctl(KVM_GET_DIRTY_LOG)", fd(), KVM_GET_DIRTY_LOG, &log);
  }
  /// With KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: `first_page` is a multiple of 64.
  sys::SysError clear_dirty_log(std::uint32_t slot, std::uint64_t first_page,
                                std::uint32_t num_pages, const void* bitmap) const {
    kvm_clear_dirty_log log{};
    log.slot = slot;
    log.first_page = first_page;
    log.num_pages = num_pages;
    log.dirty_bitmap = const_cast<void*>(bitmap);
    return ioctl_check("ioctl(KVM_CLEAR_DIRTY_LOG)", fd(), KVM_CLEAR_DIRTY_LOG, &log);
  }
  /// Write-protects again what was harvested from the rings; how many entries.
  sys::Result<int> reset_dirty_rings() const {
    return ioctl_number("ioctl(KVM_RESET_DIRTY_RINGS)", fd(), KVM_RESET_DIRTY_RINGS);
  }
  /// Three pages that Intel hosts need for real mode, below 4 GiB.
  sys::SysError set_tss_addr(std::uint32_t address) const {
    return ioctl_check("ioctl(KVM_SET_TSS_ADDR)", fd(), KVM_SET_TSS_ADDR,
                       static_cast<unsigned long>(address));
  }
  /// One page likewise.
  sys::SysError set_identity_map_addr(std::uint64_t address) const {
    return ioctl_check("ioctl(KVM_SET_IDENTITY_MAP_ADDR)", fd(), KVM_SET_IDENTITY_MAP_ADDR,
                       &address);
  }

  // ---- Interrupts ----

  /// LAPICs in the kernel, IOAPIC and PIC in user space; `pins` of the IOAPIC are
  /// reserved in the GSI routing table.
  sys::SysError enable_split_irqchip(unsigned pins) const {
    kvm_enable_cap cap{};
    cap.cap = KVM_CAP_SPLIT_IRQCHIP;
    cap.args[0] = pins;
    return enable_cap(cap);
  }
  /// PIC, IOAPIC and LAPICs in the kernel.
  sys::SysError create_irqchip() const {
    return ioctl_check("ioctl(KVM_CREATE_IRQCHIP)", fd(), KVM_CREATE_IRQCHIP);
  }
  /// `chip.chip_id` says which: KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC.
  sys::SysError get_irqchip(kvm_irqchip& chip) const {
    return ioctl_check("ioctl(KVM_GET_IRQCHIP)", fd(), KVM_GET_IRQCHIP, &chip);
  }
  sys::SysError set_irqchip(const kvm_irqchip& chip) const {
    return ioctl_check("ioctl(KVM_SET_IRQCHIP)", fd(), KVM_SET_IRQCHIP, &chip);
  }
  sys::SysError create_pit2(const kvm_pit_config& config) const {
    return ioctl_check("ioctl(KVM_CREATE_PIT2)", fd(), KVM_CREATE_PIT2, &config);
  }
  sys::SysError get_pit2(kvm_pit_state2& state) const {
    return ioctl_check("ioctl(KVM_GET_PIT2)", fd(), KVM_GET_PIT2, &state);
  }
  sys::SysError set_pit2(const kvm_pit_state2& state) const {
    return ioctl_check("ioctl(KVM_SET_PIT2)", fd(), KVM_SET_PIT2, &state);
  }
  /// Replaces the whole table: set it once for all devices, each time costs a grace period.
  sys::SysError set_gsi_routing(const casemate_kvm_irq_routing* routing) const {
    return ioctl_check("ioctl(KVM_SET_GSI_ROUTING)", fd(), CASEMATE_KVM_SET_GSI_ROUTING, routing);
  }
  sys::SysError irqfd(const kvm_irqfd& irqfd) const {
    return ioctl_check("ioctl(KVM_IRQFD)", fd(), KVM_IRQFD, &irqfd);
  }
  sys::SysError ioeventfd(const kvm_ioeventfd& ioeventfd) const {
    return ioctl_check("ioctl(KVM_IOEVENTFD)", fd(), KVM_IOEVENTFD, &ioeventfd);
  }
  /// 0 where the guest blocked the interrupt, more than 0 where it was delivered.
  sys::Result<int> signal_msi(const kvm_msi& msi) const {
    return ioctl_number("ioctl(KVM_SIGNAL_MSI)", fd(), KVM_SIGNAL_MSI, &msi);
  }
  sys::SysError irq_line(std::uint32_t gsi, bool level) const {
    kvm_irq_level line{};
    line.irq = gsi;
    line.level = level ? 1 : 0;
    return ioctl_check("ioctl(KVM_IRQ_LINE)", fd(), KVM_IRQ_LINE, &line);
  }
  /// Which vCPU is the bootstrap processor; before the first vCPU.
  sys::SysError set_boot_cpu_id(unsigned id) const {
    return ioctl_check("ioctl(KVM_SET_BOOT_CPU_ID)", fd(), KVM_SET_BOOT_CPU_ID, id);
  }

  // ---- Time ----

  sys::SysError get_clock(kvm_clock_data& clock) const {
    return ioctl_check("ioctl(KVM_GET_CLOCK)", fd(), KVM_GET_CLOCK, &clock);
  }
  sys::SysError set_clock(const kvm_clock_data& clock) const {
    return ioctl_check("ioctl(KVM_SET_CLOCK)", fd(), KVM_SET_CLOCK, &clock);
  }
  /// For all vCPUs to come (KVM_CAP_VM_TSC_CONTROL).
  sys::SysError set_tsc_khz(unsigned khz) const {
    return ioctl_check("ioctl(KVM_SET_TSC_KHZ)", fd(), KVM_SET_TSC_KHZ, khz);
  }
  sys::Result<int> get_tsc_khz() const {
    return ioctl_number("ioctl(KVM_GET_TSC_KHZ)", fd(), KVM_GET_TSC_KHZ);
  }

private:
  sys::Fd fd_;
};

} // namespace casemate::kvm
