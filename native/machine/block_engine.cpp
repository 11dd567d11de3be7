#include "machine/block_engine.hpp"

#include "sys/eventfd.hpp"

#include <linux/falloc.h>
#include <linux/fs.h>

#include <algorithm>
#include <asm/errno.h>
#include <utility>

namespace casemate::machine {

namespace {

using Kind = BlockOperation::Kind;

constexpr unsigned ring_entries = 256;
constexpr std::uint8_t ring_operations[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC,
                                            IORING_OP_FALLOCATE};

/// Neither changes how large a file is. Block devices take both, too.
constexpr int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
constexpr int zero = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;

} // namespace

sys::SysError BlockEngine::open(std::span<const int> files, bool may_use_ring) {
  std::ranges::copy(files, files_.begin());
  if (may_use_ring) {
    // Switched off by the host's administrator, not there, forbidden, restricted by a
    // memory limit: whatever it is, there is another way.
    auto ring = sys::IoUring::create(ring_entries, ring_operations, files);
    if (ring) {
      ring_.emplace(std::move(ring).value());
      return {};
    }
  }
  auto told = sys::make_eventfd();
  if (!told) {
    return told.error();
  }
  told_ = std::move(told).value();
  return {};
}

void BlockEngine::replace_descriptor(sys::Fd fd) {
  if (ring_) {
    ring_->replace(std::move(fd));
  } else {
    told_ = std::move(fd);
  }
}

void BlockEngine::start(BlockOperation& operation) {
  operation.next = nullptr;
  if (ring_) {
    queue_in_ring(operation);
    return;
  }
  {
    const sys::Lock lock(lock_);
    *last_ = &operation;
    last_ = &operation.next;
  }
  changed_.notify_all();
}

void BlockEngine::queue_in_ring(BlockOperation& operation) {
  io_uring_sqe* entry = ring_->next();
  if (entry == nullptr) {
    static_cast<void>(submit());
    entry = ring_->next();
    if (entry == nullptr) {
      // The kernel takes nothing: out of memory, for one.
      operation.result = -EIO;
      operation.next = std::exchange(done_, &operation);
      return;
    }
  }
  entry->user_data = reinterpret_cast<std::uintptr_t>(&operation);
  entry->fd = static_cast<int>(operation.file);
  entry->off = operation.offset;
  entry->addr = reinterpret_cast<std::uintptr_t>(operation.segments.data());
  entry->len = static_cast<std::uint32_t>(operation.segments.size());
  switch (operation.kind) {
  case Kind::Read:
    entry->opcode = IORING_OP_READV;
    break;
  case Kind::Write:
  case Kind::DurableWrite:
    entry->opcode = IORING_OP_WRITEV;
    entry->rw_flags = operation.kind == Kind::DurableWrite ? RWF_DSYNC : 0;
    break;
  case Kind::Sync:
    entry->opcode = IORING_OP_FSYNC;
    entry->off = entry->addr = entry->len = 0;
    entry->fsync_flags = IORING_FSYNC_DATASYNC;
    break;
  case Kind::Punch:
  case Kind::Zero:
    entry->opcode = IORING_OP_FALLOCATE;
    entry->addr = operation.length;
    entry->len = static_cast<std::uint32_t>(operation.kind == Kind::Punch ? punch : zero);
    break;
  }
}

bool BlockEngine::submit() { return !ring_ || !ring_->submit(); }

void BlockEngine::finish() {
  BlockOperation* done = nullptr;
  if (ring_) {
    std::uint64_t user_data = 0;
    long result = 0;
    while (ring_->take(user_data, result)) {
      call_back(*reinterpret_cast<BlockOperation*>(user_data), result);
    }
    done = std::exchange(done_, nullptr);
  } else {
    sys::take_eventfd(told_.get());
    const sys::Lock lock(lock_);
    done = std::exchange(done_, nullptr);
  }
  while (done != nullptr) {
    BlockOperation& operation = *std::exchange(done, done->next);
    call_back(operation, operation.result);
  }
}

void BlockEngine::call_back(BlockOperation& operation, long result) {
  operation.result = result;
  operation.done(operation);
}

void BlockEngine::wait() {
  if (ring_) {
    if (done_ == nullptr) {
      static_cast<void>(ring_->submit(1));
    }
  } else {
    lock_.lock();
    while (done_ == nullptr) {
      changed_.wait(lock_);
    }
    lock_.unlock();
  }
}

void BlockEngine::serve() {
  lock_.lock();
  for (;;) {
    while (first_ == nullptr && !is_stopped_) {
      changed_.wait(lock_);
    }
    if (is_stopped_) {
      break;
    }
    BlockOperation& operation = *first_;
    first_ = operation.next;
    if (first_ == nullptr) {
      last_ = &first_;
    }
    lock_.unlock();
    const long result = perform(operation);
    lock_.lock();
    operation.result = result;
    operation.next = std::exchange(done_, &operation);
    sys::tell_eventfd(told_.get());
    changed_.notify_all();
  }
  lock_.unlock();
}

void BlockEngine::stop() {
  {
    const sys::Lock lock(lock_);
    is_stopped_ = true;
  }
  changed_.notify_all();
}

long BlockEngine::perform(const BlockOperation& operation) const {
  const int file = files_[operation.file];
  const auto transfer = [&](long number, int flags) {
    return sys::call_retry(number, file, operation.segments.data(), operation.segments.size(),
                           operation.offset, 0, flags);
  };
  const auto allocate = [&](int mode) {
    return sys::call_retry(__NR_fallocate, file, mode, operation.offset, operation.length);
  };
  switch (operation.kind) {
  case Kind::Read:
    return transfer(__NR_preadv2, 0);
  case Kind::Write:
    return transfer(__NR_pwritev2, 0);
  case Kind::DurableWrite:
    return transfer(__NR_pwritev2, RWF_DSYNC);
  case Kind::Sync:
    return sys::call_retry(__NR_fdatasync, file);
  case Kind::Punch:
    return allocate(punch);
  case Kind::Zero:
    return allocate(zero);
  }
  return -EINVAL;
}

} // namespace casemate::machine
