#include "machine/msrs.hpp"

#include <algorithm>
#include <array>
#include <span>

namespace casemate::machine {

namespace {

struct Registers {
  std::uint32_t first, last;
};

/// What kernels touch without asking first whether it is there, or find in CPUID: a feature that
/// is added to a guest's CPUID brings its registers here. Names are those of the kernel's
/// asm/msr-index.h. Not here, though KVM has them: performance counters and their relatives,
/// last branches, virtualization, power and frequency, system management, Hyper-V's.
constexpr Registers allowed[] = {
    {0x10, 0x10},             // TSC
    {0x11, 0x12},             // the first kvmclock's
    {0x17, 0x17},             // PLATFORM_ID, for which microcode is looked for
    {0x1b, 0x1b},             // APICBASE
    {0x3b, 0x3b},             // TSC_ADJUST
    {0x48, 0x49},             // SPEC_CTRL, PRED_CMD
    {0x8b, 0x8b},             // UCODE_REV, AMD's PATCH_LEVEL
    {0xe1, 0xe1},             // UMWAIT_CONTROL
    {0xfe, 0xfe},             // MTRRcap
    {0x10a, 0x10b},           // ARCH_CAPABILITIES, FLUSH_CMD
    {0x122, 0x122},           // TSX_CTRL
    {0x174, 0x176},           // SYSENTER_CS, _ESP, _EIP
    {0x179, 0x17b},           // MCG_CAP, _STATUS, _CTL
    {0x1a0, 0x1a0},           // MISC_ENABLE
    {0x1c4, 0x1c5},           // XFD, XFD_ERR
    {0x1cc, 0x1d4},           // FRED
    {0x1d9, 0x1d9},           // DEBUGCTL
    {0x200, 0x20f},           // MTRRs
    {0x250, 0x250},           //
    {0x258, 0x259},           //
    {0x268, 0x26f},           //
    {0x277, 0x277},           // PAT
    {0x2ff, 0x2ff},           // MTRRdefType
    {0x400, 0x47f},           // machine checks
    {0x6a0, 0x6a8},           // shadow stacks
    {0x6e0, 0x6e0},           // TSC_DEADLINE
    {0xda0, 0xda0},           // XSS
    {0x4b564d00, 0x4b564d08}, // KVM's own: kvmclock, stolen time, asynchronous page faults
    {0xc0000080, 0xc0000084}, // EFER, STAR, LSTAR, CSTAR, SYSCALL_MASK
    {0xc0000100, 0xc0000103}, // FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX
    {0xc0010010, 0xc0010010}, // AMD's SYSCFG
    {0xc0010015, 0xc0010015}, // HWCR
    {0xc001001a, 0xc001001a}, // TOP_MEM
    {0xc001001d, 0xc001001d}, // TOP_MEM2
    {0xc001001f, 0xc001001f}, // NB_CFG, for PCI
    {0xc0010058, 0xc0010058}, // FAM10H_MMIO_CONF_BASE
    {0xc001011f, 0xc001011f}, // VIRT_SPEC_CTRL
    {0xc0010140, 0xc0010141}, // OSVW_ID_LENGTH, OSVW_STATUS
    {0xc0011029, 0xc0011029}, // DE_CFG: whether LFENCE serializes
};

/// KVM takes a few bitmaps, of as many registers as there are between the first and the last of
/// each. One that is set is allowed.
constexpr Registers windows[] = {
    {0x000, 0x47f},           {0x6a0, 0x6ef},           {0xda0, 0xda7},
    {0x4b564d00, 0x4b564d0f}, {0xc0000080, 0xc0000107}, {0xc0010000, 0xc0010147},
    {0xc0011028, 0xc001102f},
};
static_assert(std::size(windows) <= KVM_MSR_FILTER_MAX_RANGES);

constexpr std::uint32_t count(Registers window) { return window.last - window.first + 1; }

constexpr bool is_in(Registers some, std::uint32_t msr) {
  return msr >= some.first && msr <= some.last;
}

constexpr bool is_in(std::span<const Registers> all, std::uint32_t msr) {
  return std::ranges::any_of(all, [msr](Registers some) { return is_in(some, msr); });
}

// A byte is of one window, and so is what is allowed in a row.
static_assert(std::ranges::all_of(windows,
                                  [](Registers window) { return count(window) % 8 == 0; }));
static_assert(std::ranges::all_of(allowed, [](Registers some) {
  return std::ranges::any_of(windows, [some](Registers window) {
    return is_in(window, some.first) && is_in(window, some.last);
  });
}));

constexpr std::size_t bitmaps_size = [] {
  std::size_t bits = 0;
  for (const Registers window : windows) {
    bits += count(window);
  }
  return bits / 8;
}();

/// Those of all windows, in turn.
constexpr auto bitmaps = [] {
  std::array<std::uint8_t, bitmaps_size> bytes{};
  std::uint32_t offset = 0; // in bits
  for (const Registers window : windows) {
    for (const Registers some : allowed) {
      for (std::uint32_t msr = some.first; is_in(window, msr) && msr <= some.last; ++msr) {
        const std::uint32_t bit = offset + msr - window.first;
        bytes[bit / 8] |= static_cast<std::uint8_t>(1u << bit % 8);
      }
    }
    offset += count(window);
  }
  return bytes;
}();

} // namespace

bool is_allowed_msr(std::uint32_t msr) { return is_in(allowed, msr); }

kvm_msr_filter msr_filter() {
  kvm_msr_filter filter{};
  filter.flags = KVM_MSR_FILTER_DEFAULT_DENY;
  std::size_t offset = 0;
  for (std::size_t i = 0; i < std::size(windows); ++i) {
    kvm_msr_filter_range& range = filter.ranges[i];
    range.flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
    range.base = windows[i].first;
    range.nmsrs = count(windows[i]);
    // Not const in the kernel's struct, though it only reads them.
    range.bitmap = const_cast<std::uint8_t*>(bitmaps.data()) + offset;
    offset += range.nmsrs / 8;
  }
  return filter;
}

} // namespace casemate::machine
