/*
 * Holds the definitions of kvm/abi.h against the kernel's header, in C, where that
 * header is right. Compiles to nothing.
 */
#include "kvm/abi.h"

#include <stddef.h>

#define SAME_NUMBER(name) _Static_assert(CASEMATE_##name == name, #name)

SAME_NUMBER(KVM_GET_MSR_INDEX_LIST);
SAME_NUMBER(KVM_GET_SUPPORTED_CPUID);
SAME_NUMBER(KVM_GET_EMULATED_CPUID);
SAME_NUMBER(KVM_GET_MSR_FEATURE_INDEX_LIST);
SAME_NUMBER(KVM_SET_GSI_ROUTING);
SAME_NUMBER(KVM_GET_MSRS);
SAME_NUMBER(KVM_SET_MSRS);
SAME_NUMBER(KVM_SET_SIGNAL_MASK);
SAME_NUMBER(KVM_SET_CPUID2);
SAME_NUMBER(KVM_GET_CPUID2);
SAME_NUMBER(KVM_GET_XSAVE);
SAME_NUMBER(KVM_SET_XSAVE);
SAME_NUMBER(KVM_GET_XSAVE2);

#define SAME_FIELD(type, field)                                                                    \
  _Static_assert(offsetof(struct casemate_##type, field) == offsetof(struct type, field),          \
                 #type "." #field)
#define SAME_SIZE(type)                                                                            \
  _Static_assert(sizeof(struct casemate_##type) == sizeof(struct type), "sizeof " #type)

SAME_SIZE(kvm_msr_list);
SAME_FIELD(kvm_msr_list, nmsrs);
SAME_FIELD(kvm_msr_list, indices);
SAME_SIZE(kvm_cpuid2);
SAME_FIELD(kvm_cpuid2, nent);
SAME_FIELD(kvm_cpuid2, entries);
SAME_SIZE(kvm_msrs);
SAME_FIELD(kvm_msrs, nmsrs);
SAME_FIELD(kvm_msrs, entries);
SAME_SIZE(kvm_irq_routing);
SAME_FIELD(kvm_irq_routing, nr);
SAME_FIELD(kvm_irq_routing, flags);
SAME_FIELD(kvm_irq_routing, entries);
SAME_SIZE(kvm_signal_mask);
SAME_FIELD(kvm_signal_mask, len);
SAME_FIELD(kvm_signal_mask, sigset);
SAME_SIZE(kvm_xsave);
SAME_FIELD(kvm_xsave, region);
SAME_FIELD(kvm_xsave, extra);
