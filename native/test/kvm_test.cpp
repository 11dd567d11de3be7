#include "kvm/dirty_ring.hpp"
#include "kvm/kvm.hpp"
#include "kvm/vm.hpp"
#include "test/unit.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <span>
#include <string_view>
#include <sys/mman.h>

using namespace casemate;
using namespace casemate::kvm;

namespace {

constexpr std::size_t memory_size = 0x10000;
constexpr std::uint64_t entry = 0x1000;

/// A machine with one slot at 0 and a vCPU about to run `code` in real mode.
struct Guest {
  Kvm kvm;
  sys::Mapping memory; // Outlives the descriptors below.
  VirtualMachine vm;
  Vcpu vcpu;

  static sys::Result<Guest> make(std::span<const unsigned char> code, std::uint32_t flags = 0,
                                 std::size_t dirty_ring = 0) {
    auto kvm = Kvm::open();
    if (!kvm) {
      return kvm.error();
    }
    Guest guest;
    guest.kvm = std::move(kvm).value();
    auto memory =
        sys::Mapping::map(memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    auto vm = VirtualMachine::create(guest.kvm);
    if (!memory || !vm) {
      return vm.error();
    }
    guest.memory = std::move(memory).value();
    guest.vm = std::move(vm).value();
    std::ranges::copy(std::as_bytes(code), guest.memory.data() + entry);
    if (dirty_ring != 0) {
      kvm_enable_cap cap{};
      cap.cap = KVM_CAP_DIRTY_LOG_RING;
      cap.args[0] = dirty_ring;
      if (auto error = guest.vm.enable_cap(cap)) {
        return error;
      }
    }
    const kvm_userspace_memory_region region{0, flags, 0, memory_size,
                                             reinterpret_cast<std::uintptr_t>(guest.memory.data())};
    if (auto error = guest.vm.set_user_memory_region(region)) {
      return error;
    }
    auto vcpu =
        guest.vm.create_vcpu(0, static_cast<std::size_t>(guest.kvm.vcpu_mmap_size().value()));
    if (!vcpu) {
      return vcpu.error();
    }
    guest.vcpu = std::move(vcpu).value();
    kvm_sregs sregs{};
    if (auto error = guest.vcpu.get_sregs(sregs)) {
      return error;
    }
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    if (auto error = guest.vcpu.set_sregs(sregs)) {
      return error;
    }
    kvm_regs regs{};
    regs.rip = entry;
    regs.rflags = 2;
    if (auto error = guest.vcpu.set_regs(regs)) {
      return error;
    }
    return guest;
  }
};

bool no_kvm() { return !Kvm::open().ok(); }

/// A Vcpu over memory of ours, to see what it makes of a strange kvm_run.
sys::Result<Vcpu> imagined(std::size_t run_size) {
  const long memfd = sys::call(__NR_memfd_create, "kvm_run", 0);
  sys::call(__NR_ftruncate, memfd, run_size);
  return Vcpu::adopt(sys::Fd(static_cast<int>(memfd)), run_size);
}

} // namespace

TEST("a Kvm that cannot be opened says which call failed") {
  auto kvm = Kvm::open("/nonexistent/kvm");
  CHECK(!kvm);
  CHECK_EQ(std::string_view(kvm.error().call), "open");
  CHECK_EQ(kvm.error().number, ENOENT);
}

TEST("the ioctls whose numbers the C++ header gets wrong work") {
  if (no_kvm()) {
    SKIP("no /dev/kvm");
  }
  auto guest = Guest::make({});
  REQUIRE(guest.ok());
  const Kvm& kvm = guest.value().kvm;
  const Vcpu& vcpu = guest.value().vcpu;
  CHECK_EQ(kvm.get_api_version().value(), api_version);

  static Table<casemate_kvm_cpuid2, kvm_cpuid_entry2, 256> cpuid;
  cpuid->nent = cpuid.capacity;
  CHECK(!kvm.get_supported_cpuid(cpuid.get()));
  CHECK(cpuid->nent > 0 && cpuid->nent <= cpuid.capacity);
  CHECK(!vcpu.set_cpuid2(cpuid.get()));
  cpuid->nent = cpuid.capacity;
  CHECK(!vcpu.get_cpuid2(cpuid.get()));
  cpuid->nent = 1;
  CHECK_EQ(kvm.get_supported_cpuid(cpuid.get()).number, E2BIG);

  static Table<casemate_kvm_msr_list, __u32, 4096> list;
  list->nmsrs = list.capacity;
  CHECK(!kvm.get_msr_index_list(list.get()));
  list->nmsrs = list.capacity;
  CHECK(!kvm.get_msr_feature_index_list(list.get()));

  Table<casemate_kvm_msrs, kvm_msr_entry, 1> msrs;
  msrs->nmsrs = 1;
  msrs->entries[0].index = 0xc0000082; // LSTAR
  msrs->entries[0].data = 0x1234;
  CHECK_EQ(vcpu.set_msrs(msrs.get()).value(), 1);
  msrs->entries[0].data = 0;
  CHECK_EQ(vcpu.get_msrs(msrs.get()).value(), 1);
  CHECK_EQ(msrs->entries[0].data, 0x1234u);

  CHECK(!vcpu.set_signal_mask(0));
  CHECK(!vcpu.clear_signal_mask());
  static casemate_kvm_xsave xsave;
  CHECK(!vcpu.get_xsave(&xsave));
  CHECK(!vcpu.set_xsave(&xsave));

  // In user space there is no irqchip yet, and no table of routes to replace.
  Table<casemate_kvm_irq_routing, kvm_irq_routing_entry, 1> routing;
  CHECK_EQ(guest.value().vm.set_gsi_routing(routing.get()).number, EINVAL);
}

TEST("a guest says a byte, and halts") {
  if (no_kvm()) {
    SKIP("no /dev/kvm");
  }
  const std::array<unsigned char, 5> code{0xb0, 0x41, 0xe6, 0x10, 0xf4}; // out 0x10, 'A'; hlt
  auto made = Guest::make(code);
  REQUIRE(made.ok());
  const Vcpu& vcpu = made.value().vcpu;
  CHECK(!vcpu.run());
  CHECK_EQ(vcpu.state().exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  CHECK_EQ(vcpu.state().io.port, 0x10);
  REQUIRE(vcpu.io_data().size() == 1);
  CHECK(vcpu.io_data()[0] == std::byte{0x41});

  vcpu.set_immediate_exit(true);
  CHECK_EQ(vcpu.run().number, EINTR);
  vcpu.set_immediate_exit(false);
  CHECK(!vcpu.run());
  CHECK_EQ(vcpu.state().exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
}

TEST("the dirty ring gives each page once") {
  if (no_kvm()) {
    SKIP("no /dev/kvm");
  }
  constexpr std::size_t ring_size = 65536;
  // mov byte [0x5000], 1; hlt
  const std::array<unsigned char, 6> code{0xc6, 0x06, 0x00, 0x50, 0x01, 0xf4};
  auto made = Guest::make(code, KVM_MEM_LOG_DIRTY_PAGES, ring_size);
  if (!made && made.error().number == EINVAL) {
    SKIP("this KVM has no dirty ring");
  }
  REQUIRE(made.ok());
  auto ring = DirtyRing::map(made.value().vcpu, ring_size);
  REQUIRE(ring.ok());
  CHECK(!ring.value().next());
  CHECK(!made.value().vcpu.run());
  int pages = 0;
  int written = 0;
  while (const auto page = ring.value().next()) {
    CHECK_EQ(page->slot, 0u);
    // Ordinary KVM notes pages as it makes them writable: also that of the code, at 0x1000.
    CHECK(page->offset == 1 || page->offset == 5);
    written += page->offset == 5 ? 1 : 0;
    pages += 1;
  }
  CHECK_EQ(written, 1);
  CHECK_EQ(made.value().vm.reset_dirty_rings().value(), pages);
}

TEST("I/O data outside the mapping is no data") {
  constexpr std::size_t run_size = 3 * 4096;
  auto made = imagined(run_size);
  REQUIRE(made.ok());
  const Vcpu& vcpu = made.value();
  struct Case {
    unsigned char size;
    std::uint32_t count;
    std::uint64_t offset;
    std::size_t expected;
  };
  constexpr std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();
  for (const auto& [size, count, offset, expected] : {
           Case{1, 1, 4096, 1},
           Case{4, 1024, 2 * 4096, 4096},
           Case{4, 1025, 2 * 4096, 0},
           Case{1, 1, run_size - 1, 1},
           Case{1, 1, run_size, 0},
           Case{1, 1, huge, 0},
           Case{2, 1, huge, 0},
           Case{255, 0xffffffff, 4096, 0},
           Case{255, 0xffffffff, huge - 0xfe00000000, 0},
       }) {
    vcpu.state().io.size = size;
    vcpu.state().io.count = count;
    vcpu.state().io.data_offset = offset;
    CHECK_EQ(vcpu.io_data().size(), expected);
  }
}
