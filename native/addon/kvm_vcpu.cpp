#include "addon/kvm.hpp"

#include "addon/kvm_arguments.hpp"
#include "addon/poll.hpp"
#include "addon/vcpu_thread.hpp"
#include "kvm/dirty_ring.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace casemate::addon {

namespace {

/// The exchange buffer, through which exits and the answers to them cross: kvm_run up to
/// the end of the union that describes the exit, then the bytes of an I/O exit. It is
/// JavaScript's, which reads an exit there and writes its answer into the same place.
constexpr std::size_t exchange_io = offsetof(kvm_run, kvm_valid_regs);
constexpr std::size_t exchange_io_size = 4096; // The kernel gives I/O data one page.
constexpr std::size_t exchange_size = exchange_io + exchange_io_size;
static_assert(exchange_io == 288);

constexpr std::size_t max_cpuid_entries = 256;
constexpr std::size_t min_xsave_size = sizeof(casemate_kvm_xsave);

class VcpuHandle : public Napi::ObjectWrap<VcpuHandle> {
public:
  static void define(Napi::Env env, Napi::Object exports);

  /// machine, id, exchange buffer.
  explicit VcpuHandle(const Napi::CallbackInfo& info);

private:
  /// What ends with close(). Destroyed from the bottom up: nothing of the thread is
  /// watched any more, the thread is joined, the vCPU closed, the machine let go.
  struct Open {
    explicit Open(Napi::Env the_env) : env(the_env) {}
    ~Open() {
      if (hooked) {
        napi_remove_env_cleanup_hook(env, stop, this);
      }
    }
    Open(const Open&) = delete;
    Open& operator=(const Open&) = delete;

    /// At the end of the environment: its thread may not outlive it.
    static void stop(void* data) {
      auto* self = static_cast<Open*>(data);
      self->hooked = false;
      self->poll.reset();
      self->thread.reset();
    }

    napi_env env;
    bool hooked = false;
    Shared<Machine> machine;
    kvm::Vcpu vcpu;
    kvm::DirtyRing dirty_ring;
    std::size_t xsave_size = min_xsave_size;
    bool exited = false; // The last run ended with an exit, which may want an answer.
    std::unique_ptr<VcpuThread> thread; // From the first run on.
    std::unique_ptr<Poll> poll;
    std::optional<Napi::Promise::Deferred> running;
  };

  Open& open() const {
    if (open_ == nullptr) {
      throw_system_error(Env(), {"ioctl", EBADF});
    }
    return *open_;
  }

  /// The vCPU for any other ioctl than KVM_RUN: while it runs, those would wait.
  Open& idle() const {
    Open& open = this->open();
    if (open.running) {
      throw_system_error(Env(), {"ioctl", EBUSY});
    }
    return open;
  }
  const kvm::Vcpu& vcpu() const { return idle().vcpu; }

  std::span<std::uint8_t> exchange() const { return bytes(exchange_.Value()); }
  void start_thread(Open& open);
  void copy_exit(const kvm::Vcpu& vcpu);
  void copy_answer(const kvm::Vcpu& vcpu);
  void on_completion();

  Napi::Value run(const Napi::CallbackInfo& info);
  void interrupt(const Napi::CallbackInfo& info);
  void close(const Napi::CallbackInfo& info);

  /// For all ioctls on one fixed structure, read or written in place.
  template <auto Method> void with(const Napi::CallbackInfo& info) {
    using Struct = std::remove_const_t<decltype(argument_of(Method))>;
    check(info.Env(), (vcpu().*Method)(structure<Struct>(info[0])));
  }
  template <auto Method> void call(const Napi::CallbackInfo& info) {
    check(info.Env(), (vcpu().*Method)());
  }
  template <auto Method> Napi::Value get_number(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), take(info.Env(), (vcpu().*Method)()));
  }
  template <auto Method> void set_number(const Napi::CallbackInfo& info) {
    check(info.Env(), (vcpu().*Method)(u32(info[0])));
  }

  void set_cpuid2(const Napi::CallbackInfo& info);
  Napi::Value get_cpuid2(const Napi::CallbackInfo& info);
  Napi::Value get_msrs(const Napi::CallbackInfo& info);
  Napi::Value set_msrs(const Napi::CallbackInfo& info);
  Napi::Value xsave_size(const Napi::CallbackInfo& info);
  Napi::Value get_xsave(const Napi::CallbackInfo& info);
  void set_xsave(const Napi::CallbackInfo& info);
  Napi::Value harvest_dirty_ring(const Napi::CallbackInfo& info);

  std::unique_ptr<Open> open_;
  Napi::Reference<Napi::Uint8Array> exchange_;
};

void VcpuHandle::define(Napi::Env env, Napi::Object exports) {
  using kvm::Vcpu;
  exports.Set(
      "VcpuHandle",
      DefineClass(env, "VcpuHandle",
                  {
                      InstanceMethod<&VcpuHandle::run>("run"),
                      InstanceMethod<&VcpuHandle::interrupt>("interrupt"),
                      InstanceMethod<&VcpuHandle::close>("close"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::enable_cap>>("enableCap"),
                      InstanceMethod<&VcpuHandle::set_cpuid2>("setCpuid2"),
                      InstanceMethod<&VcpuHandle::get_cpuid2>("getCpuid2"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::get_regs>>("getRegs"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::set_regs>>("setRegs"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::get_sregs>>("getSregs"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::set_sregs>>("setSregs"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::get_sregs2>>("getSregs2"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::set_sregs2>>("setSregs2"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::get_fpu>>("getFpu"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::set_fpu>>("setFpu"),
                      InstanceAccessor<&VcpuHandle::xsave_size>("xsaveSize"),
                      InstanceMethod<&VcpuHandle::get_xsave>("getXsave"),
                      InstanceMethod<&VcpuHandle::set_xsave>("setXsave"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::get_xcrs>>("getXcrs"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::set_xcrs>>("setXcrs"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::get_debugregs>>("getDebugregs"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::set_debugregs>>("setDebugregs"),
                      InstanceMethod<&VcpuHandle::get_msrs>("getMsrs"),
                      InstanceMethod<&VcpuHandle::set_msrs>("setMsrs"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::get_lapic>>("getLapic"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::set_lapic>>("setLapic"),
                      InstanceMethod<&VcpuHandle::get_number<&Vcpu::get_mp_state>>("getMpState"),
                      InstanceMethod<&VcpuHandle::set_number<&Vcpu::set_mp_state>>("setMpState"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::get_vcpu_events>>("getVcpuEvents"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::set_vcpu_events>>("setVcpuEvents"),
                      InstanceMethod<&VcpuHandle::get_number<&Vcpu::get_tsc_khz>>("getTscKhz"),
                      InstanceMethod<&VcpuHandle::set_number<&Vcpu::set_tsc_khz>>("setTscKhz"),
                      InstanceMethod<&VcpuHandle::call<&Vcpu::kvmclock_ctrl>>("kvmclockCtrl"),
                      InstanceMethod<&VcpuHandle::call<&Vcpu::nmi>>("nmi"),
                      InstanceMethod<&VcpuHandle::set_number<&Vcpu::interrupt>>("injectInterrupt"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::translate>>("translate"),
                      InstanceMethod<&VcpuHandle::with<&Vcpu::set_guest_debug>>("setGuestDebug"),
                      InstanceMethod<&VcpuHandle::harvest_dirty_ring>("harvestDirtyRing"),
                  }));
}

VcpuHandle::VcpuHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<VcpuHandle>(info) {
  Napi::Env env = info.Env();
  if (bytes(info[2]).size() != exchange_size) {
    throw_wrong_size(env);
  }
  auto open = std::make_unique<Open>(env);
  open->machine = machine_of(info[0]);
  const Machine& machine = *open->machine;
  open->vcpu = take(env, machine.vm.create_vcpu(u32(info[1]), machine.run_size));
  if (machine.dirty_ring_size != 0) {
    open->dirty_ring = take(env, kvm::DirtyRing::map(open->vcpu, machine.dirty_ring_size));
  }
  // Older kernels have no KVM_GET_XSAVE2 and answer 0: 4096 bytes are all there is.
  const int xsave_size = take(env, machine.vm.check_extension(KVM_CAP_XSAVE2));
  open->xsave_size = std::max(min_xsave_size, static_cast<std::size_t>(xsave_size));
  exchange_ = Napi::Persistent(info[2].As<Napi::Uint8Array>());
  open_ = std::move(open);
}

// ---- Running ----

void VcpuHandle::start_thread(Open& open) {
  auto thread = take(Env(), VcpuThread::create(open.vcpu));
  auto poll = std::make_unique<Poll>(Env(), "casemate.Vcpu", thread->completion(),
                                     [this](int, int) { on_completion(); });
  poll->start(UV_READABLE);
  poll->keep_alive(false);
  open.thread = std::move(thread);
  open.poll = std::move(poll);
  open.hooked = napi_add_env_cleanup_hook(open.env, Open::stop, &open) == napi_ok;
}

/// immediate, request_interrupt_window. The promise: true for an exit, which is in the
/// exchange buffer; false for an interrupted run.
Napi::Value VcpuHandle::run(const Napi::CallbackInfo& info) {
  Open& open = idle();
  if (open.thread == nullptr) {
    start_thread(open);
  }
  if (open.exited) {
    copy_answer(open.vcpu);
  }
  open.vcpu.state().request_interrupt_window = info[1].As<Napi::Boolean>() ? 1 : 0;
  open.running.emplace(info.Env());
  // As long as the guest runs, the event loop goes on, and so does this object even if
  // JavaScript forgets it.
  open.poll->keep_alive(true);
  Ref();
  open.thread->run(info[0].As<Napi::Boolean>());
  return open.running->Promise();
}

void VcpuHandle::on_completion() {
  Open& open = *open_; // A closed one has no Poll that could call this.
  const auto error = open.thread->take();
  if (!error || !open.running) {
    return;
  }
  const auto deferred = *std::exchange(open.running, std::nullopt);
  open.poll->keep_alive(false);
  open.exited = !*error;
  if (open.exited) {
    copy_exit(open.vcpu);
  }
  if (open.exited || error->number == EINTR) {
    deferred.Resolve(Napi::Boolean::New(Env(), open.exited));
  } else {
    deferred.Reject(system_error(Env(), *error).Value());
  }
  Unref();
}

void VcpuHandle::copy_exit(const kvm::Vcpu& vcpu) {
  const auto to = exchange();
  std::memcpy(to.data(), &vcpu.state(), exchange_io);
  if (vcpu.state().exit_reason == KVM_EXIT_IO) {
    const auto data = vcpu.io_data();
    std::copy_n(data.data(), std::min(data.size(), exchange_io_size),
                reinterpret_cast<std::byte*>(to.data()) + exchange_io);
  }
}

/// Only what KVM reads of an answer is copied, and only for the exit that there was.
void VcpuHandle::copy_answer(const kvm::Vcpu& vcpu) {
  kvm_run& run = vcpu.state();
  const auto from = exchange();
  const auto copy = [&](auto& field) {
    const auto offset = reinterpret_cast<const std::byte*>(&field) - vcpu.mapping().data();
    std::memcpy(&field, from.data() + offset, sizeof field);
  };
  switch (run.exit_reason) {
  case KVM_EXIT_IO:
    if (run.io.direction == KVM_EXIT_IO_IN) {
      const auto data = vcpu.io_data();
      std::copy_n(reinterpret_cast<const std::byte*>(from.data()) + exchange_io,
                  std::min(data.size(), exchange_io_size), data.data());
    }
    break;
  case KVM_EXIT_MMIO:
    if (!run.mmio.is_write) {
      copy(run.mmio.data);
    }
    break;
  case KVM_EXIT_X86_RDMSR:
    copy(run.msr.data);
    copy(run.msr.error);
    break;
  case KVM_EXIT_X86_WRMSR:
    copy(run.msr.error);
    break;
  case KVM_EXIT_HYPERCALL:
    copy(run.hypercall.ret);
    break;
  default:
    break;
  }
}

void VcpuHandle::interrupt(const Napi::CallbackInfo&) {
  if (open_ != nullptr && open_->running) {
    open_->thread->interrupt();
  }
}

void VcpuHandle::close(const Napi::CallbackInfo& info) {
  if (open_ == nullptr) {
    return;
  }
  const auto running = std::exchange(open_->running, std::nullopt);
  open_.reset();
  if (running) {
    running->Reject(system_error(info.Env(), {"ioctl(KVM_RUN)", ECANCELED}).Value());
    Unref();
  }
}

// ---- State of no fixed size ----

void VcpuHandle::set_cpuid2(const Napi::CallbackInfo& info) {
  check(info.Env(), vcpu().set_cpuid2(counted<casemate_kvm_cpuid2, kvm_cpuid_entry2>(
                        info[0], &casemate_kvm_cpuid2::nent)));
}

Napi::Value VcpuHandle::get_cpuid2(const Napi::CallbackInfo& info) {
  kvm::Table<casemate_kvm_cpuid2, kvm_cpuid_entry2, max_cpuid_entries> table;
  table->nent = max_cpuid_entries;
  check(info.Env(), vcpu().get_cpuid2(table.get()));
  return copy_of(info.Env(), table->entries, table->nent * sizeof(kvm_cpuid_entry2));
}

Napi::Value VcpuHandle::get_msrs(const Napi::CallbackInfo& info) {
  return number(info.Env(), vcpu().get_msrs(msrs(info[0])));
}

Napi::Value VcpuHandle::set_msrs(const Napi::CallbackInfo& info) {
  return number(info.Env(), vcpu().set_msrs(msrs(info[0])));
}

Napi::Value VcpuHandle::xsave_size(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(open().xsave_size));
}

Napi::Value VcpuHandle::get_xsave(const Napi::CallbackInfo& info) {
  Open& open = idle();
  std::vector<std::uint64_t> area((open.xsave_size + 7) / 8);
  auto* xsave = reinterpret_cast<casemate_kvm_xsave*>(area.data());
  check(info.Env(), open.xsave_size > min_xsave_size ? open.vcpu.get_xsave2(xsave)
                                                     : open.vcpu.get_xsave(xsave));
  return copy_of(info.Env(), area.data(), open.xsave_size);
}

void VcpuHandle::set_xsave(const Napi::CallbackInfo& info) {
  Open& open = idle();
  const auto area = bytes(info[0]);
  if (area.size() != open.xsave_size) {
    throw_wrong_size(info.Env());
  }
  check(info.Env(), open.vcpu.set_xsave(reinterpret_cast<const casemate_kvm_xsave*>(area.data())));
}

/// Fills the buffer with slots and page numbers, in the form of kvm_dirty_gfn; how many.
/// The one thing that may be asked of a running vCPU: the ring is made for that.
Napi::Value VcpuHandle::harvest_dirty_ring(const Napi::CallbackInfo& info) {
  Open& open = this->open();
  const auto to = bytes(info[0]);
  const std::size_t capacity = to.size() / sizeof(kvm_dirty_gfn);
  std::size_t count = 0;
  while (count < capacity) {
    const auto page = open.dirty_ring.next();
    if (!page) {
      break;
    }
    std::memcpy(to.data() + count++ * sizeof *page, &*page, sizeof *page);
  }
  return Napi::Number::New(info.Env(), static_cast<double>(count));
}

} // namespace

void init_kvm_vcpu(Napi::Env env, Napi::Object exports) { VcpuHandle::define(env, exports); }

} // namespace casemate::addon
