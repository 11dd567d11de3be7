/*
 * The floor's monitor: confines itself, makes a virtual machine, enters its guest, tells the
 * launcher of the doorbell. The system calls of native/vmm/monitor.cpp without which there
 * would be no jail or no guest, and nothing else.
 *
 * No libc, no relocations, no data: one page of code from the page cache and two of stack are
 * all that it touches of itself, for every page touched costs a fault of 1 to 8 us.
 */
#include "floor.h"

#include <linux/mman.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>

static _Noreturn void end(int status) {
  for (;;) {
    CALL(__NR_exit_group, status);
  }
}

/* The launcher sees the control socket hang up; strace tells the rest. */
static inline long must(long result) {
  if (result < 0) {
    end(1);
  }
  return result;
}

static inline void install(const struct sock_filter* program, uint64_t length) {
  struct sock_fprog filter = {(unsigned short)length, (struct sock_filter*)program};
  must(CALL(__NR_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter));
}

/* The guest, in one page that is its page tables of all four levels and its code. Entry 0 of
 * the page is the page itself, whichever level the processor takes it for; so linear address 0
 * is the page, and at the last level its entry 0 is a page for CPL 3. Accessed and dirty are
 * set, or KVM would have to write to it. */
enum { CODE = 0x800 };

static inline void write_guest(char* page) {
  enum { PRESENT = 1, WRITABLE = 2, USER = 4, ACCESSED = 32, DIRTY = 64 };
  *(uint64_t*)page = PRESENT | WRITABLE | USER | ACCESSED | DIRTY;
  *(uint32_t*)(page + CODE) = 0xe7 | DOORBELL_PORT << 8 | 0xfeebu << 16; /* out %eax, port; jmp . */
}

/* Registers go in with KVM_RUN (KVM_CAP_SYNC_REGS): each ioctl of a vCPU loads it and puts it
 * away again, which costs 10 us. */
static inline void set_registers(struct kvm_run* state) {
  struct kvm_segment code = {.limit = 0xffffffff,
                             .selector = 0x23,
                             .type = 11,
                             .present = 1,
                             .dpl = 3,
                             .s = 1,
                             .l = 1,
                             .g = 1};
  struct kvm_segment data = {.limit = 0xffffffff,
                             .selector = 0x1b,
                             .type = 3,
                             .present = 1,
                             .dpl = 3,
                             .db = 1,
                             .s = 1,
                             .g = 1};
  state->s.regs.sregs = (struct kvm_sregs){
      .cs = code,
      .ds = data,
      .es = data,
      .fs = data,
      .gs = data,
      .ss = data,
      .tr = {.limit = 0x67, .selector = 0x28, .type = 11, .present = 1},
      .ldt = {.type = 2, .unusable = 1},
      .cr0 = 0x80010033,
      .cr3 = 0,
      .cr4 = 0x620,
      .efer = 0x500,
      /* As after reset: switching a local APIC off toggles a static key of the host. */
      .apic_base = 0xfee00900};
  /* IOPL 3: no task state segment with a bitmap is needed for the `out`. */
  state->s.regs.regs = (struct kvm_regs){.rip = CODE, .rflags = 0x3002};
  state->kvm_dirty_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
}

static _Noreturn __attribute__((noinline)) void run(struct doorbell* doorbell) {
  uint64_t* stamps = doorbell->stamps;
  struct configuration configuration;
  must(CALL(__NR_recvfrom, CONTROL, &configuration, sizeof configuration));
  const struct sock_filter* filters = (const struct sock_filter*)configuration.rest;
  const uint64_t jailed = configuration.jailed;
  stamps[CONFIGURED] = stamp();

  if (jailed) {
    must(CALL(__NR_prctl, PR_SET_PDEATHSIG, 9));
    must(CALL(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1));
    /* Its descriptor stays open: it grants nothing, and goes with the process. */
    long ruleset = must(
        CALL(__NR_landlock_create_ruleset, configuration.landlock, configuration.landlock_size));
    must(CALL(__NR_landlock_restrict_self, ruleset));
    install(filters, configuration.filter_length[0]);
    stamps[JAILED] = stamp();
    const uint32_t announcement = 1;
    must(CALL(__NR_sendto, CONTROL, &announcement, sizeof announcement));
  }

  /* Memory slots before the irqchip: see the order in native/vmm/monitor.cpp. */
  long vm = must(CALL(__NR_ioctl, KVM, KVM_CREATE_VM, 0));
  stamps[VM] = stamp();
  long memory = must(CALL(__NR_mmap, 0, configuration.memory_size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1));
  struct kvm_userspace_memory_region slot = {.memory_size = configuration.memory_size,
                                             .userspace_addr = (uint64_t)memory};
  must(CALL(__NR_ioctl, vm, KVM_SET_USER_MEMORY_REGION, &slot));
  stamps[MEMORY] = stamp();
  must(CALL(__NR_ioctl, vm, KVM_SET_TSS_ADDR, 0xfffbd000));
  struct kvm_enable_cap irqchip = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
  must(CALL(__NR_ioctl, vm, KVM_ENABLE_CAP, &irqchip));
  stamps[IRQCHIP] = stamp();

  long vcpu = must(CALL(__NR_ioctl, vm, KVM_CREATE_VCPU, 0));
  /* The first page of the mapping, all that is looked at. */
  struct kvm_run* state =
      (struct kvm_run*)must(CALL(__NR_mmap, 0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0));
  must(CALL(__NR_ioctl, vcpu, KVM_SET_CPUID2, (char*)&configuration + configuration.cpuid_offset));
  stamps[VCPU] = stamp();
  if (jailed) {
    install(filters + configuration.filter_length[0], configuration.filter_length[1]);
  }
  stamps[CONFINED] = stamp();

  write_guest((char*)memory);
  set_registers(state);
  stamps[LOADED] = stamp();
  if (jailed) {
    uint32_t release;
    must(CALL(__NR_recvfrom, CONTROL, &release, sizeof release) - (long)sizeof release);
  }
  stamps[RELEASED] = stamp();

  must(CALL(__NR_ioctl, vcpu, KVM_RUN, 0));
  if (state->exit_reason != KVM_EXIT_IO || state->io.port != DOORBELL_PORT) {
    end(2);
  }
  stamps[RUN] = stamp();
  struct {
    int64_t seconds, nanoseconds;
  } now;
  must(CALL(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, &now));
  doorbell->t1 = (uint64_t)(now.seconds * 1000000000 + now.nanoseconds);
  must(CALL(__NR_sendto, CONTROL, doorbell, sizeof *doorbell));
  end(0);
}

__attribute__((force_align_arg_pointer)) _Noreturn void _start(void) {
  struct doorbell doorbell;
  doorbell.stamps[MAIN] = stamp();
  run(&doorbell);
}
