// The monitor, from exec to the guest, in the order in which things happen.
//
// Of a bare-metal guest one thread does it all, the one vCPU included. A second one (an
// event loop, or a thread for the vCPU) was tried: it can install its filter and load the
// guest while this one creates the VM, and yet the doorbell came 50 to 120 us later.
// Starting it, waking it and its first touch of everything on another processor cost more
// than it takes over, most of all where no processor is idle. What Node commands comes by
// signal, which costs nothing while there is none. Linux guests have devices that work
// while the guest runs, and more than one vCPU: see vmm/linux.hpp.
#include "kvm/kvm.hpp"
#include "kvm/vm.hpp"
#include "machine/boot.hpp"
#include "machine/cpuid.hpp"
#include "machine/extents.hpp"
#include "machine/layout.hpp"
#include "machine/msrs.hpp"
#include "sys/clock.hpp"
#include "sys/start.hpp"
#include "vmm/configuration.hpp"
#include "vmm/confinement.hpp"
#include "vmm/control.hpp"
#include "vmm/linux.hpp"
#include "vmm/linux_control.hpp"
#include "vmm/memory_slots.hpp"
#include "vmm/runner.hpp"
#include "vmm/signals.hpp"
#include "vmm/timeline.hpp"

#include <linux/mman.h>

namespace casemate::vmm {

namespace {

/// Three pages and one above that Intel hosts without unrestricted guests need; in the
/// hole of the guest's RAM.
constexpr std::uint32_t tss_address = 0xfffbd000;
constexpr unsigned ioapic_pins = 24;

ConfigurationMessage message; // 128 KiB, of which as many pages are touched as arrive

template <typename T> T take(casemate_setup_step step, sys::Result<T> result) {
  check(step, result.error());
  return std::move(result).value();
}

/// Until the process ends.
std::byte* map(std::uint64_t size, int flags) {
  return take(CASEMATE_SETUP_MEMORY,
              sys::Mapping::map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags))
      .release();
}

machine::GuestMemory map_memory(const Configuration& configuration) {
  const std::uint64_t size = configuration.memory_size;
  if (configuration.page_shift != 0) {
    // Reserved here and now, or refused: no guest runs into pages that are not there. Mapped by
    // the monitor, and not a file of Node's: there is no descriptor that could get elsewhere.
    return {map(size, MAP_HUGETLB | static_cast<int>(configuration.page_shift << MAP_HUGE_SHIFT)),
            size};
  }
  if (!configuration.is_linux()) {
    return {map(size, MAP_NORESERVE), size};
  }
  // Where a large page of the guest's lies across two of the host's, KVM maps it by small ones.
  const auto address =
      reinterpret_cast<std::uintptr_t>(map(size + machine::large_page_size, MAP_NORESERVE));
  return {reinterpret_cast<std::byte*>(machine::round_up(address, machine::large_page_size)), size};
}

machine::Entry load(const Configuration& configuration, const machine::GuestMemory& memory) {
  machine::BootSource source;
  source.image = CASEMATE_FD_GUEST;
  source.image_size = configuration.image_size;
  source.format = configuration.format;
  source.input = CASEMATE_FD_INPUT;
  source.input_size = configuration.input_sizes[0];
  source.argument_count = configuration.argument_count;
  source.arguments = configuration.arguments;
  source.cpl = configuration.cpl;
  source.has_huge_pages = machine::has_huge_pages(*configuration.cpuid);
  source.has_memory_on_demand = configuration.has_memory_on_demand();
  machine::Entry entry;
  if (const auto error = machine::load_guest(source, memory, entry)) {
    fail(CASEMATE_SETUP_GUEST, error.system, error.reason);
  }
  return entry;
}

[[noreturn]] void run(std::uint64_t started_at) {
  Timeline timeline;
  timeline.stamps[CASEMATE_STAMP_MAIN] = started_at;
  Configuration configuration = receive_configuration(message);
  check_descriptors(configuration);
  timeline.stamp(CASEMATE_STAMP_CONFIGURED);

  // Before the filter, which then need not allow what this takes.
  if (const auto error = prepare_control_signal()) {
    fail(CASEMATE_SETUP_DESCRIPTORS, error, CASEMATE_FD_CONTROL);
  }
  if (configuration.has_device(CASEMATE_DEVICE_VSOCK)) {
    make_room_for_sockets();
  }
  check(CASEMATE_SETUP_JAIL, confine_process(configuration));
  check(CASEMATE_SETUP_JAIL, confine_setup(configuration));
  timeline.stamp(CASEMATE_STAMP_JAILED);
  // Node looks at the jail from outside while the VM comes to be.
  send(CASEMATE_EVENT_JAILED);

  const kvm::Kvm kvm{sys::Fd(CASEMATE_FD_KVM)};
  const auto vm = take(CASEMATE_SETUP_VM, kvm::VirtualMachine::create(kvm));
  timeline.stamp(CASEMATE_STAMP_VM);

  // In the order that costs least: memory while nothing has to wait for it, then the
  // irqchip, without which creating a vCPU toggles a static key of the host's kernel.
  const machine::GuestMemory memory = map_memory(configuration);
  MemorySlots slots(vm, memory);
  check(CASEMATE_SETUP_MEMORY, configuration.has_memory_on_demand()
                                   ? slots.add_below(machine::first_extent_size)
                                   : slots.add_all());
  timeline.stamp(CASEMATE_STAMP_MEMORY);

  check(CASEMATE_SETUP_IRQCHIP, vm.set_tss_addr(tss_address));
  check(CASEMATE_SETUP_IRQCHIP, vm.enable_split_irqchip(ioapic_pins));
  timeline.stamp(CASEMATE_STAMP_IRQCHIP);

  // At CPL 3 the processor itself refuses them all. So launches of such guests do not wait the
  // 45 to 150 us that this takes. Before there is a vCPU, which would have to be told.
  if (configuration.cpl == 0) {
    check(CASEMATE_SETUP_VCPU, vm.set_msr_filter(machine::msr_filter()));
  }
  if (configuration.is_linux()) {
    run_linux(configuration, vm, memory, timeline);
  }
  const auto vcpu = take(CASEMATE_SETUP_VCPU, vm.create_vcpu(0, configuration.run_size));
  interrupt_on_control(vcpu);
  check(CASEMATE_SETUP_VCPU, vcpu.set_cpuid2(configuration.cpuid));
  vcpu.stage_sregs(
      machine::entry_system_registers(configuration.cpl, machine::is_amd(*configuration.cpuid)));
  timeline.stamp(CASEMATE_STAMP_VCPU);

  // The last filter: from here on everything comes from the guest. Its image is read
  // under it, too.
  check(CASEMATE_SETUP_JAIL, confine_guest(configuration));
  timeline.stamp(CASEMATE_STAMP_CONFINED);
  const machine::Entry entry = load(configuration, memory);
  if (configuration.has_memory_on_demand()) {
    check(CASEMATE_SETUP_MEMORY, slots.add_below(entry.mapped_end));
  }
  vcpu.stage_regs(machine::entry_registers(entry));
  timeline.stamp(CASEMATE_STAMP_LOADED);

  await_run();
  timeline.stamp(CASEMATE_STAMP_RUN);
  check(CASEMATE_SETUP_DESCRIPTORS, start_control_signal());
  const bool has_console = configuration.has(CASEMATE_CONFIGURE_CONSOLE);
  const machine::Console console(has_console ? CASEMATE_FD_CONSOLE_OUT : -1,
                                 has_console ? CASEMATE_FD_CONSOLE_IN : -1, CASEMATE_FD_CONTROL);
  Runner(configuration, vcpu, memory, slots, console, timeline).run();
}

} // namespace

} // namespace casemate::vmm

void casemate_main(const unsigned long* /* stack */, const casemate::sys::Instant* started) {
  casemate::vmm::run(started->ns());
}
