// What disks ask of the host, carried out while everything else goes on: by an io_uring
// where the host has that, or else by a few threads that may wait for a disk.
#pragma once

#include "machine/virtio/queue.hpp"
#include "sys/futex.hpp"
#include "sys/io_uring.hpp"
#include "sys/result.hpp"

#include <cstdint>
#include <optional>
#include <span>

namespace casemate::machine {

/// One operation on a file, from start() until `done` is called.
struct BlockOperation {
  enum class Kind : std::uint8_t {
    Read,
    Write,
    DurableWrite, // done when it would survive a loss of power
    Sync,         // of all writes that are done
    Punch,        // gives the space back, and reads as zeroes
    Zero          // reads as zeroes
  };

  Kind kind = Kind::Read;
  std::uint32_t file = 0; // its place among the engine's
  std::span<const virtio::Segment> segments{};
  std::uint64_t offset = 0;
  std::uint64_t length = 0; // of Punch and Zero
  void (*done)(BlockOperation& operation) = nullptr;
  void* context = nullptr;
  long result = 0; // bytes, 0, or a negative errno
  BlockOperation* next = nullptr;
};

class BlockEngine {
public:
  static constexpr unsigned max_files = 16;

  /// Tries to have an io_uring for these files; they stay open, and others' own.
  sys::SysError open(std::span<const int> files, bool may_use_ring = true);

  /// Whether serve() is to be called by threads, any number of them.
  bool needs_threads() const { return !ring_.has_value(); }
  /// Carries out operations, and waits for more. Returns after stop().
  void serve();
  void stop();

  /// Readable while there is something for finish() to do.
  int descriptor() const { return ring_ ? ring_->fd() : told_.get(); }
  /// Gives it another number.
  void replace_descriptor(sys::Fd fd);

  /// Begins an operation, at the latest with submit(). That is false where the host has no
  /// memory for it now, and is to be tried again.
  void start(BlockOperation& operation);
  bool submit();
  /// Calls back those that are done.
  void finish();
  /// Waits until there is one for finish(): something has to be under way.
  void wait();

private:
  void queue_in_ring(BlockOperation& operation);
  void call_back(BlockOperation& operation, long result);
  long perform(const BlockOperation& operation) const;

  std::array<int, max_files> files_{};
  std::optional<sys::IoUring> ring_;

  // Without a ring.
  sys::Mutex lock_;
  sys::Changed changed_;
  sys::Fd told_; // an eventfd
  BlockOperation* first_ = nullptr;
  BlockOperation** last_ = &first_;
  BlockOperation* done_ = nullptr;
  bool is_stopped_ = false;
};

} // namespace casemate::machine
