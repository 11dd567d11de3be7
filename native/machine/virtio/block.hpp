// The block device: a file or a block device of the host as a disk. VIRTIO 1.2, section 5.2
#pragma once

#include "machine/block_engine.hpp"
#include "machine/virtio/device.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace casemate::machine::virtio {

struct BlockOptions {
  std::uint32_t file = 0; // its place among the engine's
  bool is_read_only = false;
  std::uint64_t size = 0;                  // in bytes; what is less than a sector is left out
  std::uint32_t logical_block_size = 512;  // a power of two, from a sector's size to a page's
  std::uint32_t physical_block_size = 512; // likewise, and not less
  std::array<char, 20> serial{};
  RateLimitOptions limit{};

  /// As a driver can take them, whatever they are.
  void set_block_sizes(std::uint32_t logical, std::uint32_t physical);
};

class Block : public DeviceOf<Block> {
public:
  static constexpr std::uint32_t sector_size = 512;
  /// How many requests are with the host at once.
  static constexpr std::size_t max_requests = 64;

  Block(const BlockOptions& options, BlockEngine& engine);

  void on_activate(std::uint64_t features);
  void on_reset();
  void on_kick(std::uint16_t queue);
  void on_read_config(std::uint32_t offset, std::span<std::byte> value);

private:
  /// struct virtio_blk_config up to what zeroes are written with.
  struct [[gnu::packed]] Config {
    std::uint64_t capacity = 0; // sectors
    std::uint32_t max_segment_size = 0;
    std::uint32_t max_segments = max_queue_size - 2; // besides header and status
    std::uint8_t geometry[4] = {};
    std::uint32_t block_size = 0;
    std::uint8_t physical_block_exponent = 0;
    std::uint8_t alignment_offset = 0;
    std::uint16_t min_io_size = 0;
    std::uint32_t optimal_io_size = 0;
    std::uint8_t writeback = 0;
    std::uint8_t unused = 0;
    std::uint16_t queue_count = 0;
    std::uint32_t max_discard_sectors = 0;
    std::uint32_t max_discard_ranges = 1;
    std::uint32_t discard_alignment = 0; // sectors
    std::uint32_t max_zeroes_sectors = 0;
    std::uint32_t max_zeroes_ranges = 1;
    std::uint8_t zeroes_may_unmap = 1;
    std::uint8_t unused_too[3] = {};
  };
  static_assert(sizeof(Config) == 60);

  struct Range {
    std::uint64_t sector = 0;
    std::uint32_t sectors = 0;
    std::uint32_t flags = 0;
  };

  enum class Status : std::uint8_t { Ok = 0, IoError = 1, Unsupported = 2 };

  struct Request {
    Block* block = nullptr;
    Request* next = nullptr; // of the free ones
    Chain chain;
    BlockOperation operation;
    std::uint32_t type = 0;
    std::byte* status = nullptr;
    std::span<Segment> data{};  // not transferred yet
    std::uint64_t left = 0;     // bytes of it
    std::uint32_t readable = 0; // bytes that the guest reads, once all is well
    bool has_fallen_back = false;
  };

  bool begin(Request& request);
  bool parse(Request& request);
  bool transfer(Request& request, std::uint64_t sector, bool is_write);
  bool deallocate(Request& request, const Range& range);
  bool identify(Request& request);
  bool refuse(Request& request, Status status);
  bool is_inside(std::uint64_t sector, std::uint64_t count) const;
  void start(Request& request);
  static void on_done(BlockOperation& operation);
  void proceed(Request& request, long result);
  void finish(Request& request, Status status);
  void fail_request(Request& request, int error);
  void submit();
  static void on_time(void* block);

  BlockEngine& engine_;
  const std::uint32_t file_;
  const bool is_read_only_;
  const std::array<char, 20> serial_;
  Config config_;
  RateLimit limit_;
  sys::EventLoop::Timer timer_;
  Request* free_ = nullptr;
  std::uint32_t under_way_ = 0;
  bool is_durable_ = false; // the driver does not flush: each write has to be safe by itself
  bool is_stalled_ = false; // there may be more in the queue than requests for it
  bool is_resetting_ = false;
  std::array<Request, max_requests> requests_;
};

} // namespace casemate::machine::virtio
