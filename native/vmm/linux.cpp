#include "vmm/linux.hpp"

#include "machine/board.hpp"
#include "machine/linux.hpp"
#include "sys/clock.hpp"
#include "sys/event_loop.hpp"
#include "sys/eventfd.hpp"
#include "vmm/confinement.hpp"
#include "vmm/control.hpp"
#include "vmm/devices.hpp"
#include "vmm/linux_control.hpp"
#include "vmm/report.hpp"
#include "vmm/vcpu_threads.hpp"

#include <asm/errno.h>
#include <linux/eventpoll.h>
#include <linux/fcntl.h>
#include <linux/poll.h>

#include <algorithm>
#include <array>
#include <utility>

namespace casemate::vmm {

namespace {

using machine::Power;
using sys::EventLoop;

constexpr int msg_dontwait = 0x40;
constexpr int msg_nosignal = 0x4000;

/// How long output gathers: a system call for each byte would be most of what a byte costs.
constexpr std::uint64_t show_delay_ns = 1'000'000;

machine::BootProtocol protocol_of(const Configuration& configuration) {
  return configuration.format == CASEMATE_IMAGE_PVH ? machine::BootProtocol::Pvh
                                                    : machine::BootProtocol::Linux;
}

std::uint64_t load(const Configuration& configuration, const machine::GuestMemory& memory) {
  machine::LinuxSource source;
  source.protocol = protocol_of(configuration);
  source.kernel = CASEMATE_FD_GUEST;
  source.kernel_size = configuration.image_size;
  std::array<machine::File, CASEMATE_MAX_INITRDS> initrds;
  for (std::uint32_t i = 0; i < configuration.input_count; ++i) {
    initrds[i] = {input_descriptor(i), configuration.input_sizes[i]};
  }
  source.initrds = std::span(initrds).first(configuration.input_count);
  source.command_line = configuration.arguments;
  source.vcpu_count = configuration.vcpu_count;
  source.device_count = static_cast<std::uint32_t>(configuration.devices.size());
  std::uint64_t entry = 0;
  if (const auto error = machine::load_linux(source, memory, entry)) {
    fail(CASEMATE_SETUP_GUEST, error.system, error.reason);
  }
  return entry;
}

/// Board, event loop and vCPUs of a Linux guest. All of it is done with the lock held: by the
/// loop, which lets go of it while it waits, and by the vCPUs' threads, which do while they are
/// in the guest.
class Machine {
public:
  Machine(const Configuration& configuration, const kvm::VirtualMachine& vm, Timeline& timeline)
      : vm_(vm), timeline_(timeline),
        has_console_(configuration.has(CASEMATE_CONFIGURE_CONSOLE) &&
                     !configuration.has_device(CASEMATE_DEVICE_CONSOLE)),
        starts_paused_(configuration.has(CASEMATE_CONFIGURE_PAUSED)) {
    lock_.lock();
  }

  void create(const Configuration& configuration, const machine::GuestMemory& memory) {
    check(CASEMATE_SETUP_VCPU, vcpus_.create(vm_, configuration));
    vcpus_.bootstrap().stage_sregs(machine::linux_system_registers(protocol_of(configuration)));
    check(CASEMATE_SETUP_VCPU, vcpus_.start(configuration, {on_exit, on_failure, this}));
    check(CASEMATE_SETUP_DESCRIPTORS, loop_.open());
    check(CASEMATE_SETUP_DESCRIPTORS, open_wake());
    check(CASEMATE_SETUP_DESCRIPTORS, loop_.add(wake_, wake_descriptor, EPOLLIN));
    check(CASEMATE_SETUP_DESCRIPTORS, loop_.add(control_, CASEMATE_FD_CONTROL, EPOLLIN));
    if (has_console_) {
      check(CASEMATE_SETUP_DESCRIPTORS, loop_.add(input_, CASEMATE_FD_CONSOLE_IN, EPOLLIN));
    }
    check(CASEMATE_SETUP_DEVICES, devices_.create(configuration, vm_, memory, loop_, board_));
  }

  [[noreturn]] void run(machine::BootProtocol protocol, std::uint64_t entry) {
    vcpus_.bootstrap().stage_regs(machine::linux_registers(protocol, entry));
    vcpus_.resume();
    for (;;) {
      if (is_paused_) {
        // Devices and times stand still as the vCPUs do: only Node is listened to.
        await_command();
      } else {
        loop_.turn(board_.has_work() ? 0 : -1, deliver, this);
      }
      attend();
    }
  }

private:
  // ---- By the event loop ----

  static sys::SysError open_wake() {
    auto eventfd = sys::make_eventfd();
    return eventfd ? sys::check("dup3", sys::call(__NR_dup3, eventfd.value().get(), wake_descriptor,
                                                  O_CLOEXEC))
                   : eventfd.error();
  }

  static void on_wake(void* /* machine */, std::uint32_t /* events */) {
    sys::take_eventfd(wake_descriptor); // attend() sees what there is to do
  }

  static void on_command(void* machine, std::uint32_t /* events */) {
    // Behind what else has happened: a machine that is paused stands still.
    static_cast<Machine*>(machine)->has_command_ = true;
  }

  static void on_input(void* machine, std::uint32_t /* events */) {
    static_cast<Machine*>(machine)->receive_input();
  }

  static void on_output_room(void* machine, std::uint32_t /* events */) {
    static_cast<Machine*>(machine)->show_output();
  }

  static void on_show_time(void* machine) { static_cast<Machine*>(machine)->show_output(); }

  void add(EventLoop::Source& source, int fd, std::uint32_t events) {
    if (loop_.add(source, fd, events)) {
      exit_process(1); // the host is out of memory
    }
  }

  void await_command() {
    pollfd control{CASEMATE_FD_CONTROL, POLLIN, 0};
    lock_.unlock();
    sys::call(__NR_ppoll, &control, 1, nullptr, nullptr, 8);
    lock_.lock();
    has_command_ = true;
  }

  /// What Node and the vCPUs have left to do.
  void attend() {
    if (std::exchange(has_command_, false)) {
      obey();
    }
    if (std::exchange(is_doorbell_due_, false)) {
      send_doorbell(timeline_);
      if (starts_paused_) {
        vcpus_.stop();
        is_paused_ = true;
      }
    }
    if (is_paused_) {
      return;
    }
    if (board_.has_work()) {
      board_.work();
      deliver(this);
      vcpus_.notify(); // one may wait for that
    }
    if (std::exchange(has_output_begun_, false)) {
      loop_.set_timer(show_timer_, sys::monotonic_ns() + show_delay_ns);
    }
    if (has_ended_) {
      vcpus_.stop(); // at once, though there may be much to be shown yet
    }
    if (has_ended_ || (!board_.serial().has_output_room() && output_.fd < 0)) {
      show_output();
    }
    if (has_ended_) {
      finish();
    }
    if (std::exchange(has_input_room_, false)) {
      add(input_, CASEMATE_FD_CONSOLE_IN, EPOLLIN);
    }
  }

  void obey() {
    for (;;) {
      Command command = take_command();
      if (command.type == 0) {
        return;
      }
      if (command.type == CASEMATE_COMMAND_PAUSE && !is_paused_) {
        vcpus_.stop();
        show_output();
        is_paused_ = true;
        send(CASEMATE_EVENT_PAUSED);
      } else if (command.type == CASEMATE_COMMAND_RESUME && is_paused_) {
        is_paused_ = false;
        send(CASEMATE_EVENT_RESUMED);
        if (!has_ended_) {
          vcpus_.resume();
        }
      } else if (!obey_for_streams(command) && !obey_for_balloon(command)) {
        exit_process(1);
      }
    }
  }

  bool obey_for_streams(Command& command) {
    machine::virtio::Vsock* vsock = devices_.vsock();
    if (vsock == nullptr) {
      return false;
    }
    switch (command.type) {
    case CASEMATE_COMMAND_STREAM_CONNECT:
      vsock->connect(command.id, command.port, std::move(command.socket));
      return true;
    case CASEMATE_COMMAND_STREAM_ACCEPT:
      return vsock->accept(command.id, std::move(command.socket));
    case CASEMATE_COMMAND_STREAM_REFUSE:
      return vsock->refuse(command.id);
    default:
      return false;
    }
  }

  bool obey_for_balloon(const Command& command) {
    machine::virtio::Balloon* balloon = devices_.balloon();
    if (balloon == nullptr) {
      return false;
    }
    switch (command.type) {
    case CASEMATE_COMMAND_BALLOON:
      balloon->set_target(command.id);
      board_.update_interrupts();
      deliver(this);
      return true;
    case CASEMATE_COMMAND_MEMORY:
      if (is_paused_) {
        devices_.tell_memory({}); // its driver stands still
      } else {
        balloon->ask_statistics();
        board_.update_interrupts();
        deliver(this);
      }
      return true;
    default:
      return false;
    }
  }

  /// Once all that the guest has written is read.
  void finish() {
    if (board_.serial().output().empty()) {
      send(exited_, CASEMATE_EVENT_EXITED);
      exit_process(0);
    }
  }

  /// As much as Node takes now. What is left waits until it reads on.
  void show_output() {
    auto& serial = board_.serial();
    while (!serial.output().empty()) {
      const auto bytes = serial.output();
      const long sent = has_console_
                            ? sys::call_retry(__NR_sendto, CASEMATE_FD_CONSOLE_OUT, bytes.data(),
                                              bytes.size(), msg_dontwait | msg_nosignal, nullptr, 0)
                            : -EPIPE;
      if (sent == -EAGAIN) {
        if (output_.fd < 0) {
          add(output_, CASEMATE_FD_CONSOLE_OUT, EPOLLOUT);
        }
        break;
      }
      // Where nobody can read any more, all of it is done with.
      serial.take_output(sent < 0 ? bytes.size() : static_cast<std::size_t>(sent));
    }
    if (serial.output().empty()) {
      loop_.remove(output_);
      loop_.clear_timer(show_timer_);
      is_output_planned_ = false;
      has_output_begun_ = false;
    }
    vcpus_.notify(); // there may be room
  }

  /// Hands on as much as there is room for. What is left stays in the socket.
  void receive_input() {
    auto& serial = board_.serial();
    std::byte bytes[64];
    const long size = sys::call_retry(__NR_recvfrom, CASEMATE_FD_CONSOLE_IN, bytes,
                                      std::min(serial.input_room(), sizeof bytes), msg_dontwait,
                                      nullptr, nullptr);
    if (size > 0) {
      serial.receive(std::span(bytes).first(static_cast<std::size_t>(size)));
      waits_for_input_room_ = serial.input_room() == 0;
    }
    // At the end of input there is nothing to be told: a line has none.
    if (waits_for_input_room_ || (size <= 0 && size != -EAGAIN)) {
      loop_.remove(input_);
    }
  }

  // ---- By a vCPU's thread ----

  static void on_exit(void* machine, const kvm::Vcpu& vcpu) {
    static_cast<Machine*>(machine)->handle_exit(vcpu);
  }

  static void on_failure(void* machine, const kvm::Vcpu& vcpu, int error) {
    static_cast<Machine*>(machine)->end(
        crash_of(vcpu, CASEMATE_EXIT_HOST, static_cast<std::uint32_t>(error)));
  }

  void handle_exit(const kvm::Vcpu& vcpu) {
    switch (vcpu.state().exit_reason) {
    case KVM_EXIT_IO:
      ring_doorbell();
      handle_io(vcpu);
      break;
    case KVM_EXIT_MMIO:
      ring_doorbell();
      handle_memory(vcpu);
      break;
    case KVM_EXIT_INTR:
      break;
    default:
      end(stop_of(vcpu));
    }
    deliver(this);
  }

  void ring_doorbell() {
    if (doorbell_rung_) {
      return;
    }
    doorbell_rung_ = true;
    timeline_.stamp(CASEMATE_STAMP_DOORBELL);
    is_doorbell_due_ = true;
    wake_loop();
    if (starts_paused_) {
      vcpus_.ask_to_stop();
    }
  }

  /// One access, or those of a string instruction.
  void handle_io(const kvm::Vcpu& vcpu) {
    const auto& io = vcpu.state().io;
    const std::size_t size = io.size;
    for (auto rest = vcpu.io_data(); size > 0 && rest.size() >= size; rest = rest.subspan(size)) {
      const auto value = rest.first(size);
      if (io.direction == KVM_EXIT_IO_OUT) {
        write_port(vcpu, io.port, value);
      } else {
        board_.read_port(io.port, value);
      }
      board_.update_interrupts();
    }
    watch_console();
  }

  void write_port(const kvm::Vcpu& vcpu, std::uint16_t port, std::span<const std::byte> value) {
    // Output that nobody reads stops who writes it, and nobody else.
    while (!board_.can_write_port(port)) {
      watch_console();
      wake_loop();
      vcpus_.wait();
    }
    casemate_exited exited{};
    switch (board_.write_port(port, value)) {
    case Power::On:
      break;
    case Power::Off:
      exited.reason = CASEMATE_EXIT_POWEROFF;
      end(exited);
      break;
    case Power::Reset:
      exited.reason = CASEMATE_EXIT_REBOOT;
      end(exited);
      break;
    case Power::Panic:
      end(crash_of(vcpu, CASEMATE_EXIT_PANIC, 0));
    }
  }

  void watch_console() {
    auto& serial = board_.serial();
    if (!serial.output().empty() && !is_output_planned_) {
      is_output_planned_ = true;
      has_output_begun_ = true;
      wake_loop();
    }
    if (waits_for_input_room_ && serial.input_room() > 0) {
      waits_for_input_room_ = false;
      has_input_room_ = true;
      wake_loop();
    }
  }

  void handle_memory(const kvm::Vcpu& vcpu) {
    auto& access = vcpu.state().mmio;
    const std::span<std::uint8_t> data(access.data,
                                       std::min<std::size_t>(access.len, sizeof access.data));
    const auto value = std::as_writable_bytes(data);
    if (access.is_write != 0) {
      board_.write_memory(access.phys_addr, value);
      if (board_.has_work()) {
        wake_loop();
      }
      while (board_.is_settling()) {
        vcpus_.wait();
      }
    } else {
      board_.read_memory(access.phys_addr, value);
    }
  }

  /// No vCPU goes on after it; the first one says how it ended.
  void end(const casemate_exited& exited) {
    vcpus_.ask_to_stop();
    if (!has_ended_) {
      has_ended_ = true;
      exited_ = exited;
      exited_.at = sys::monotonic_ns();
      wake_loop();
    }
  }

  static void wake_loop() { sys::tell_eventfd(wake_descriptor); }

  // ---- By both ----

  static void deliver(void* machine) {
    auto& self = *static_cast<Machine*>(machine);
    self.board_.update_interrupts();
    while (const auto message = self.board_.take_message()) {
      kvm_msi msi{};
      msi.address_lo = static_cast<std::uint32_t>(message->address);
      msi.data = message->data;
      // What the guest has set may be for a vCPU that is not, or no interrupt: its loss.
      static_cast<void>(self.vm_.signal_msi(msi));
    }
  }

  sys::Mutex lock_;
  const kvm::VirtualMachine& vm_;
  Timeline& timeline_;
  EventLoop loop_{lock_};
  VcpuThreads vcpus_{lock_};
  machine::Board board_;
  Devices devices_;
  const bool has_console_;
  const bool starts_paused_;

  EventLoop::Source wake_{on_wake, this};
  EventLoop::Source control_{on_command, this};
  EventLoop::Source input_{on_input, this};        // added while there is room for it
  EventLoop::Source output_{on_output_room, this}; // added while Node does not keep pace
  EventLoop::Timer show_timer_{on_show_time, this};

  bool has_command_ = false;
  bool is_paused_ = false;
  bool doorbell_rung_ = false;
  bool is_doorbell_due_ = false;
  bool is_output_planned_ = false; // what there is will be shown, by the timer or by output_
  bool has_output_begun_ = false;
  bool waits_for_input_room_ = false;
  bool has_input_room_ = false;
  bool has_ended_ = false;
  casemate_exited exited_{};
};

} // namespace

void run_linux(const Configuration& configuration, const kvm::VirtualMachine& vm,
               const machine::GuestMemory& memory, Timeline& timeline) {
  Machine machine(configuration, vm, timeline);
  machine.create(configuration, memory);
  timeline.stamp(CASEMATE_STAMP_VCPU);

  // The last filter, as the vCPUs' threads have theirs: from here on everything comes from
  // the guest. Its kernel is read under it, too.
  check(CASEMATE_SETUP_JAIL, confine_guest(configuration));
  timeline.stamp(CASEMATE_STAMP_CONFINED);
  const std::uint64_t entry = load(configuration, memory);
  timeline.stamp(CASEMATE_STAMP_LOADED);

  await_run();
  timeline.stamp(CASEMATE_STAMP_RUN);
  machine.run(protocol_of(configuration), entry);
}

} // namespace casemate::vmm
