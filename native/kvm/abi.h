/*
 * The kernel's KVM interface where its own header cannot be used as it is.
 *
 * In Debian 12's <linux/kvm.h> the structs that end in a flexible array are one
 * byte too long in C++ (its macro puts an empty struct in front of the array, and
 * C++ gives that a byte). The size of a struct is a part of its ioctl's number, so
 * these ioctls would fail with EINVAL. Here stand our own definitions of exactly
 * those structs and numbers; kvm/abi_check.c, which is C, holds them against the
 * kernel's. All else comes from <linux/kvm.h>.
 */
#ifndef CASEMATE_KVM_ABI_H
#define CASEMATE_KVM_ABI_H

#include <linux/ioctl.h>
#include <linux/kvm.h>
#include <linux/types.h>

struct casemate_kvm_msr_list {
  __u32 nmsrs;
  __u32 indices[];
};

struct casemate_kvm_cpuid2 {
  __u32 nent;
  __u32 padding;
  struct kvm_cpuid_entry2 entries[];
};

struct casemate_kvm_msrs {
  __u32 nmsrs;
  __u32 pad;
  struct kvm_msr_entry entries[];
};

struct casemate_kvm_irq_routing {
  __u32 nr;
  __u32 flags;
  struct kvm_irq_routing_entry entries[];
};

struct casemate_kvm_signal_mask {
  __u32 len;
  __u8 sigset[];
};

struct casemate_kvm_xsave {
  __u32 region[1024];
  __u32 extra[];
};

#define CASEMATE_KVM_GET_MSR_INDEX_LIST _IOWR(KVMIO, 0x02, struct casemate_kvm_msr_list)
#define CASEMATE_KVM_GET_SUPPORTED_CPUID _IOWR(KVMIO, 0x05, struct casemate_kvm_cpuid2)
#define CASEMATE_KVM_GET_EMULATED_CPUID _IOWR(KVMIO, 0x09, struct casemate_kvm_cpuid2)
#define CASEMATE_KVM_GET_MSR_FEATURE_INDEX_LIST _IOWR(KVMIO, 0x0a, struct casemate_kvm_msr_list)
#define CASEMATE_KVM_SET_GSI_ROUTING _IOW(KVMIO, 0x6a, struct casemate_kvm_irq_routing)
#define CASEMATE_KVM_GET_MSRS _IOWR(KVMIO, 0x88, struct casemate_kvm_msrs)
#define CASEMATE_KVM_SET_MSRS _IOW(KVMIO, 0x89, struct casemate_kvm_msrs)
#define CASEMATE_KVM_SET_SIGNAL_MASK _IOW(KVMIO, 0x8b, struct casemate_kvm_signal_mask)
#define CASEMATE_KVM_SET_CPUID2 _IOW(KVMIO, 0x90, struct casemate_kvm_cpuid2)
#define CASEMATE_KVM_GET_CPUID2 _IOWR(KVMIO, 0x91, struct casemate_kvm_cpuid2)
#define CASEMATE_KVM_GET_XSAVE _IOR(KVMIO, 0xa4, struct casemate_kvm_xsave)
#define CASEMATE_KVM_SET_XSAVE _IOW(KVMIO, 0xa5, struct casemate_kvm_xsave)
#define CASEMATE_KVM_GET_XSAVE2 _IOR(KVMIO, 0xcf, struct casemate_kvm_xsave)

/* The kernel accepts no other size of signal set (_NSIG / 8). */
#define CASEMATE_KVM_SIGSET_SIZE 8u

#ifdef __cplusplus
#define CASEMATE_KVM_ASSERT(condition) static_assert(condition, #condition)
#else
#define CASEMATE_KVM_ASSERT(condition) _Static_assert(condition, #condition)
#endif

CASEMATE_KVM_ASSERT(sizeof(struct casemate_kvm_msr_list) == 4);
CASEMATE_KVM_ASSERT(sizeof(struct casemate_kvm_cpuid2) == 8);
CASEMATE_KVM_ASSERT(sizeof(struct casemate_kvm_msrs) == 8);
CASEMATE_KVM_ASSERT(sizeof(struct casemate_kvm_irq_routing) == 8);
CASEMATE_KVM_ASSERT(sizeof(struct casemate_kvm_signal_mask) == 4);
CASEMATE_KVM_ASSERT(sizeof(struct casemate_kvm_xsave) == 4096);
/* The fixed-size ones, whose layouts TypeScript knows too (src/kvm/state.ts). */
CASEMATE_KVM_ASSERT(sizeof(struct kvm_cpuid_entry2) == 40);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_msr_entry) == 16);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_irq_routing_entry) == 48);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_regs) == 144);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_segment) == 24);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_dtable) == 16);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_sregs) == 312);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_sregs2) == 320);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_fpu) == 416);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_xcrs) == 392);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_debugregs) == 128);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_vcpu_events) == 64);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_lapic_state) == 1024);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_guest_debug) == 72);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_irqchip) == 520);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_pit_state2) == 112);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_clock_data) == 48);
CASEMATE_KVM_ASSERT(sizeof(struct kvm_dirty_gfn) == 16);

#undef CASEMATE_KVM_ASSERT

#endif
