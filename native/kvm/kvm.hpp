#pragma once

#include "kvm/ioctl.hpp"
#include "sys/fd.hpp"
#include "sys/result.hpp"

#include <cstddef>
#include <utility>

namespace casemate::kvm {

/// The one answer that KVM_GET_API_VERSION has had since 2007.
inline constexpr int api_version = KVM_API_VERSION;

/// The KVM subsystem: an open /dev/kvm. Needs no particular process, so that it can
/// be opened outside and handed to a jailed one.
class Kvm {
public:
  Kvm() = default;
  explicit Kvm(sys::Fd fd) : fd_(std::move(fd)) {}

  static sys::Result<Kvm> open(const char* path = "/dev/kvm") {
    constexpr int read_write_cloexec = 02 | 02000000;
    constexpr int at_fdcwd = -100;
    const long fd = sys::call_retry(__NR_openat, at_fdcwd, path, read_write_cloexec);
    if (fd < 0) {
      return sys::check("open", fd);
    }
    return Kvm(sys::Fd(static_cast<int>(fd)));
  }

  int fd() const { return fd_.get(); }
  /// Gives the descriptor up without closing it.
  int release() { return fd_.release(); }

  sys::Result<int> get_api_version() const {
    return ioctl_number("ioctl(KVM_GET_API_VERSION)", fd(), KVM_GET_API_VERSION);
  }
  /// 0: not there; else 1 or a number that belongs to the capability.
  sys::Result<int> check_extension(unsigned capability) const {
    return ioctl_number("ioctl(KVM_CHECK_EXTENSION)", fd(), KVM_CHECK_EXTENSION, capability);
  }
  /// Size in bytes of the kvm_run mapping of each vCPU.
  sys::Result<int> vcpu_mmap_size() const {
    return ioctl_number("ioctl(KVM_GET_VCPU_MMAP_SIZE)", fd(), KVM_GET_VCPU_MMAP_SIZE);
  }

  /// `nent` says how many entries fit; afterwards, how many there are. E2BIG: too few fit.
  sys::SysError get_supported_cpuid(casemate_kvm_cpuid2* cpuid) const {
    return ioctl_check("ioctl(KVM_GET_SUPPORTED_CPUID)", fd(), CASEMATE_KVM_GET_SUPPORTED_CPUID,
                       cpuid);
  }
  sys::SysError get_emulated_cpuid(casemate_kvm_cpuid2* cpuid) const {
    return ioctl_check("ioctl(KVM_GET_EMULATED_CPUID)", fd(), CASEMATE_KVM_GET_EMULATED_CPUID,
                       cpuid);
  }
  /// `nmsrs` as `nent` above; with E2BIG the kernel leaves the number that it needs there.
  sys::SysError get_msr_index_list(casemate_kvm_msr_list* list) const {
    return ioctl_check("ioctl(KVM_GET_MSR_INDEX_LIST)", fd(), CASEMATE_KVM_GET_MSR_INDEX_LIST,
                       list);
  }
  sys::SysError get_msr_feature_index_list(casemate_kvm_msr_list* list) const {
    return ioctl_check("ioctl(KVM_GET_MSR_FEATURE_INDEX_LIST)", fd(),
                       CASEMATE_KVM_GET_MSR_FEATURE_INDEX_LIST, list);
  }
  /// Values of MSR-based features of the host; how many entries were read.
  sys::Result<int> get_msrs(casemate_kvm_msrs* msrs) const {
    return ioctl_number("ioctl(KVM_GET_MSRS)", fd(), CASEMATE_KVM_GET_MSRS, msrs);
  }

private:
  sys::Fd fd_;
};

} // namespace casemate::kvm
