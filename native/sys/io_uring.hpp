// A ring of operations on files that the kernel carries out meanwhile. io_uring_setup(2)
//
// Restricted for good before it takes its first operation: to the kinds and the files that
// it was made for. So whoever takes over this process has no other way around its filter of
// system calls than reading and writing what it may read and write anyway.
#pragma once

#include "sys/fd.hpp"
#include "sys/mapping.hpp"
#include "sys/result.hpp"

#include <linux/io_uring.h>

#include <array>
#include <cstdint>
#include <span>
#include <utility>

namespace casemate::sys {

class IoUring {
public:
  /// For `entries` submissions at once and four times as many under way; the only operations
  /// are `operations` (IORING_OP_*), on `files`, by their places there.
  static Result<IoUring> create(unsigned entries, std::span<const std::uint8_t> operations,
                                std::span<const int> files) {
    io_uring_params parameters{};
    parameters.flags = IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE;
    parameters.cq_entries = 4 * entries;
    const long fd = call(__NR_io_uring_setup, entries, &parameters);
    if (fd < 0) {
      return check("io_uring_setup", fd);
    }
    IoUring ring;
    ring.fd_.reset(static_cast<int>(fd));
    // What it does on older kernels is not what is relied on here: no completion is lost, and
    // what a submission points to need not last longer than its system call.
    constexpr std::uint32_t needed =
        IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE;
    if ((parameters.features & needed) != needed) {
      return SysError{"io_uring_setup", 38 /* ENOSYS */};
    }
    if (auto error = ring.map(parameters)) {
      return error;
    }
    if (auto error = ring.restrict(operations, files)) {
      return error;
    }
    return ring;
  }

  int fd() const { return fd_.get(); }
  /// To another number.
  void replace(Fd fd) { fd_ = std::move(fd); }

  /// A submission to be filled in, all zeroes; null where submit() must come first.
  io_uring_sqe* next() {
    const unsigned head = __atomic_load_n(submission_head_, __ATOMIC_ACQUIRE);
    if (submission_ - head == entries_) {
      return nullptr;
    }
    io_uring_sqe& entry = submissions_[submission_ & mask_];
    indices_[submission_ & mask_] = submission_ & mask_;
    ++submission_;
    entry = {};
    entry.flags = IOSQE_FIXED_FILE;
    return &entry;
  }

  /// Hands on what has been filled in; waits until `wanted` operations are done.
  SysError submit(unsigned wanted = 0) {
    __atomic_store_n(submission_tail_, submission_, __ATOMIC_RELEASE);
    for (;;) {
      const unsigned count = submission_ - __atomic_load_n(submission_head_, __ATOMIC_ACQUIRE);
      if (count == 0 && wanted == 0) {
        return {};
      }
      const long done = call(__NR_io_uring_enter, fd_.get(), count, wanted,
                             wanted > 0 ? IORING_ENTER_GETEVENTS : 0, nullptr, 0);
      if (done < 0 && done != -4 /* EINTR */) {
        return check("io_uring_enter", done);
      }
      if (done == 0 && wanted == 0) {
        return {"io_uring_enter", 16 /* EBUSY */};
      }
      wanted = done < 0 ? wanted : 0;
    }
  }

  /// What is done: its user_data and its result. False where there is nothing.
  bool take(std::uint64_t& user_data, long& result) {
    const unsigned tail = __atomic_load_n(completion_tail_, __ATOMIC_ACQUIRE);
    if (completion_ == tail) {
      return false;
    }
    const io_uring_cqe& entry = completions_[completion_ & completion_mask_];
    user_data = entry.user_data;
    result = entry.res;
    __atomic_store_n(completion_head_, ++completion_, __ATOMIC_RELEASE);
    return true;
  }

private:
  SysError map(const io_uring_params& parameters) {
    const std::size_t submission_size =
        parameters.sq_off.array + parameters.sq_entries * sizeof(unsigned);
    const std::size_t completion_size =
        parameters.cq_off.cqes + parameters.cq_entries * sizeof(io_uring_cqe);
    auto rings = Mapping::map(submission_size > completion_size ? submission_size : completion_size,
                              PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), IORING_OFF_SQ_RING);
    if (!rings) {
      return rings.error();
    }
    auto entries = Mapping::map(parameters.sq_entries * sizeof(io_uring_sqe),
                                PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), IORING_OFF_SQES);
    if (!entries) {
      return entries.error();
    }
    rings_ = std::move(rings).value();
    entry_memory_ = std::move(entries).value();
    const auto word = [this](std::uint32_t offset) {
      return reinterpret_cast<unsigned*>(rings_.data() + offset);
    };
    submission_head_ = word(parameters.sq_off.head);
    submission_tail_ = word(parameters.sq_off.tail);
    indices_ = word(parameters.sq_off.array);
    submissions_ = reinterpret_cast<io_uring_sqe*>(entry_memory_.data());
    completion_head_ = word(parameters.cq_off.head);
    completion_tail_ = word(parameters.cq_off.tail);
    completions_ = reinterpret_cast<io_uring_cqe*>(rings_.data() + parameters.cq_off.cqes);
    entries_ = parameters.sq_entries;
    mask_ = parameters.sq_entries - 1;
    completion_mask_ = parameters.cq_entries - 1;
    return {};
  }

  SysError restrict(std::span<const std::uint8_t> operations, std::span<const int> files) {
    if (auto error = enroll(IORING_REGISTER_FILES, files.data(), files.size())) {
      return error;
    }
    std::array<io_uring_restriction, 16> restrictions{};
    std::size_t count = 0;
    for (const std::uint8_t operation : operations) {
      restrictions[count].opcode = IORING_RESTRICTION_SQE_OP;
      restrictions[count++].sqe_op = operation;
    }
    restrictions[count].opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
    restrictions[count++].sqe_flags = IOSQE_FIXED_FILE;
    // Of further registrations only this one, which can be made once.
    restrictions[count].opcode = IORING_RESTRICTION_REGISTER_OP;
    restrictions[count++].register_op = IORING_REGISTER_ENABLE_RINGS;
    if (auto error = enroll(IORING_REGISTER_RESTRICTIONS, restrictions.data(), count)) {
      return error;
    }
    return enroll(IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
  }

  SysError enroll(unsigned operation, const void* argument, std::size_t count) {
    return check("io_uring_register",
                 call(__NR_io_uring_register, fd_.get(), operation, argument, count));
  }

  Fd fd_;
  Mapping rings_;
  Mapping entry_memory_;
  unsigned* submission_head_ = nullptr; // the kernel's; the tail is ours
  unsigned* submission_tail_ = nullptr;
  unsigned* indices_ = nullptr;
  io_uring_sqe* submissions_ = nullptr;
  unsigned* completion_head_ = nullptr; // ours; the tail is the kernel's
  unsigned* completion_tail_ = nullptr;
  const io_uring_cqe* completions_ = nullptr;
  unsigned entries_ = 0;
  unsigned mask_ = 0;
  unsigned completion_mask_ = 0;
  unsigned submission_ = 0;
  unsigned completion_ = 0;
};

} // namespace casemate::sys
