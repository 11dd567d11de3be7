#include "machine/virtio/block.hpp"

#include "sys/clock.hpp"
#include "vmm/wire.h"

#include <asm/errno.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

namespace casemate::machine::virtio {

namespace {

// Section 5.2.3
constexpr std::uint64_t feature_max_segments = 1 << 2;
constexpr std::uint64_t feature_read_only = 1 << 5;
constexpr std::uint64_t feature_block_size = 1 << 6;
constexpr std::uint64_t feature_flush = 1 << 9;
constexpr std::uint64_t feature_topology = 1 << 10;
constexpr std::uint64_t feature_discard = 1 << 13;
constexpr std::uint64_t feature_write_zeroes = 1 << 14;

// Section 5.2.6
enum : std::uint32_t {
  type_in = 0,
  type_out = 1,
  type_flush = 4,
  type_get_id = 8,
  type_discard = 11,
  type_write_zeroes = 13
};

struct Header {
  std::uint32_t type = 0;
  std::uint32_t reserved = 0;
  std::uint64_t sector = 0;
};

constexpr std::uint32_t range_unmap = 1;

/// Of one discard, or of zeroes: a gigabyte.
constexpr std::uint32_t max_range_sectors = 1u << 21;

/// How many requests are taken in one turn.
constexpr unsigned max_turn = 64;

/// When the host is asked again that had no memory for a request.
constexpr std::uint64_t retry_ns = 10'000'000;

std::uint64_t features_of(const BlockOptions& options) {
  constexpr std::uint64_t always =
      feature_max_segments | feature_block_size | feature_flush | feature_topology;
  return always |
         (options.is_read_only ? feature_read_only : feature_discard | feature_write_zeroes);
}

void drop_first(std::span<Segment>& segments, std::size_t size) {
  while (size > 0 && !segments.empty()) {
    Segment& first = segments.front();
    const std::size_t part = std::min(size, first.size);
    first.data += part;
    first.size -= part;
    size -= part;
    if (first.size == 0) {
      segments = segments.subspan(1);
    }
  }
}

/// enum casemate_device_operation
std::uint32_t operation_of(std::uint32_t type) {
  switch (type) {
  case type_in:
    return CASEMATE_OPERATION_READ;
  case type_out:
    return CASEMATE_OPERATION_WRITE;
  case type_flush:
    return CASEMATE_OPERATION_FLUSH;
  case type_discard:
    return CASEMATE_OPERATION_DISCARD;
  default:
    return CASEMATE_OPERATION_WRITE_ZEROES;
  }
}

} // namespace

void BlockOptions::set_block_sizes(std::uint32_t logical, std::uint32_t physical) {
  constexpr std::uint32_t page = 4096;
  logical_block_size = std::bit_floor(std::clamp(logical, Block::sector_size, page));
  physical_block_size = std::bit_floor(std::clamp(physical, logical_block_size, page));
}

Block::Block(const BlockOptions& options, BlockEngine& engine)
    : DeviceOf(DeviceType::Block, features_of(options), 1), engine_(engine), file_(options.file),
      is_read_only_(options.is_read_only), serial_(options.serial), limit_(options.limit) {
  config_.capacity = options.size / sector_size;
  config_.block_size = options.logical_block_size;
  config_.physical_block_exponent = static_cast<std::uint8_t>(
      std::countr_zero(options.physical_block_size / options.logical_block_size));
  config_.min_io_size =
      static_cast<std::uint16_t>(options.physical_block_size / options.logical_block_size);
  config_.discard_alignment = options.physical_block_size / sector_size;
  config_.max_discard_sectors = max_range_sectors;
  config_.max_zeroes_sectors = max_range_sectors;
  timer_ = {on_time, this};
  for (Request& request : requests_) {
    request.block = this;
    request.next = std::exchange(free_, &request);
  }
}

void Block::on_activate(std::uint64_t features) { is_durable_ = (features & feature_flush) == 0; }

/// What is under way reads and writes guest memory: it is waited for.
void Block::on_reset() {
  loop().clear_timer(timer_);
  is_resetting_ = true;
  while (under_way_ > 0) {
    loop().unlocked([this] {
      engine_.wait();
      return true;
    });
    engine_.finish();
  }
  is_resetting_ = false;
  is_stalled_ = false;
}

void Block::on_read_config(std::uint32_t offset, std::span<std::byte> value) {
  read_from_config(config_, offset, value);
}

void Block::on_kick(std::uint16_t index) {
  Queue& requests = queue(index);
  requests.disable_kicks();
  is_stalled_ = false;
  for (unsigned count = 0; count < max_turn; ++count) {
    if (free_ == nullptr || !may_go_on(limit_, timer_)) {
      is_stalled_ = true;
      break;
    }
    if (!requests.pop(free_->chain)) {
      break;
    }
    Request& request = *std::exchange(free_, free_->next);
    ++under_way_;
    if (!begin(request)) {
      break;
    }
  }
  submit();
  // What the host has in memory is done by now.
  engine_.finish();
  // Stalled, there is no need to hear of more.
  if (!is_stalled_ && requests.enable_kicks()) {
    kick_again(index);
  }
}

void Block::on_time(void* context) {
  auto& self = *static_cast<Block*>(context);
  self.submit();
  self.kick_again(0);
}

/// That may take its time: what the host has in memory, it copies at once.
void Block::submit() {
  if (!loop().unlocked([this] { return engine_.submit(); })) {
    loop().set_timer(timer_, sys::monotonic_ns() + retry_ns);
  }
}

/// False where the request has no place for a status: then the driver is not to be talked to.
bool Block::begin(Request& request) {
  if (parse(request)) {
    return true;
  }
  --under_way_;
  request.next = std::exchange(free_, &request);
  fail();
  return false;
}

bool Block::parse(Request& request) {
  Header header;
  Range range; // of those requests that have one
  std::span<Segment> in = request.chain.writable();
  if (!request.chain.read_value(0, header) || in.empty()) {
    return false;
  }
  const bool has_range = request.chain.read_value(sizeof header, range);
  // The status is the last byte, wherever the driver has put it.
  Segment& last = in.back();
  --last.size;
  request.status = last.data + last.size;
  if (last.size == 0) {
    in = in.first(in.size() - 1);
  }
  std::span<Segment> out = request.chain.readable();
  drop_first(out, sizeof header);
  const std::uint32_t in_size = request.chain.writable_size() - 1;
  const std::uint32_t out_size =
      request.chain.readable_size() - static_cast<std::uint32_t>(sizeof header);

  request.type = header.type;
  request.readable = 0;
  request.has_fallen_back = false;
  request.operation.file = file_;
  request.operation.done = on_done;
  request.operation.context = &request;
  charge(limit_, std::uint64_t{in_size} + out_size);
  switch (header.type) {
  case type_in:
    request.data = in;
    request.left = in_size;
    request.readable = in_size;
    return transfer(request, header.sector, false);
  case type_out:
    request.data = out;
    request.left = out_size;
    return transfer(request, header.sector, true);
  case type_flush:
    request.data = {};
    request.left = 0;
    request.operation.kind = BlockOperation::Kind::Sync;
    start(request);
    return true;
  case type_get_id:
    request.data = in;
    request.left = in_size;
    return identify(request);
  case type_discard:
  case type_write_zeroes:
    if (!has_range || out_size != sizeof range) {
      return refuse(request, Status::IoError);
    }
    return deallocate(request, range);
  default:
    return refuse(request, Status::Unsupported);
  }
}

bool Block::transfer(Request& request, std::uint64_t sector, bool is_write) {
  if ((is_write && is_read_only_) || request.left % sector_size != 0 ||
      !is_inside(sector, request.left / sector_size)) {
    return refuse(request, Status::IoError);
  }
  request.operation.offset = sector * sector_size;
  using Kind = BlockOperation::Kind;
  request.operation.kind = !is_write ? Kind::Read : is_durable_ ? Kind::DurableWrite : Kind::Write;
  if (request.left == 0) {
    return refuse(request, Status::Ok);
  }
  start(request);
  return true;
}

bool Block::deallocate(Request& request, const Range& range) {
  if (is_read_only_ || range.sectors > max_range_sectors ||
      !is_inside(range.sector, range.sectors)) {
    return refuse(request, Status::IoError);
  }
  const bool is_discard = request.type == type_discard;
  if ((range.flags & ~range_unmap) != 0 || (is_discard && range.flags != 0)) {
    return refuse(request, Status::Unsupported);
  }
  request.data = {};
  request.left = 0;
  request.operation.kind =
      is_discard || range.flags != 0 ? BlockOperation::Kind::Punch : BlockOperation::Kind::Zero;
  request.operation.offset = range.sector * sector_size;
  request.operation.length = std::uint64_t{range.sectors} * sector_size;
  if (request.operation.length == 0) {
    return refuse(request, Status::Ok);
  }
  start(request);
  return true;
}

bool Block::identify(Request& request) {
  const auto serial = std::as_bytes(std::span(serial_));
  const std::size_t size = std::min<std::size_t>(serial.size(), request.left);
  static_cast<void>(request.chain.write(0, serial.first(size)));
  request.readable = static_cast<std::uint32_t>(size);
  return refuse(request, Status::Ok);
}

/// An answer without the host.
bool Block::refuse(Request& request, Status status) {
  finish(request, status);
  return true;
}

bool Block::is_inside(std::uint64_t sector, std::uint64_t count) const {
  return sector <= config_.capacity && count <= config_.capacity - sector;
}

void Block::start(Request& request) {
  request.operation.segments = request.data;
  engine_.start(request.operation);
}

void Block::on_done(BlockOperation& operation) {
  auto& request = *static_cast<Request*>(operation.context);
  request.block->proceed(request, operation.result);
}

void Block::proceed(Request& request, long result) {
  using Kind = BlockOperation::Kind;
  if (result == -EINTR && !is_resetting_) {
    start(request);
    submit();
    return;
  }
  if (result == -EOPNOTSUPP && request.type == type_discard) {
    result = 0; // no more than advice
  }
  if (result == -EOPNOTSUPP && request.type == type_write_zeroes) {
    // Some know only one of the two.
    if (std::exchange(request.has_fallen_back, true) || is_resetting_) {
      finish(request, Status::Unsupported);
      return;
    }
    request.operation.kind = request.operation.kind == Kind::Zero ? Kind::Punch : Kind::Zero;
    start(request);
    submit();
    return;
  }
  if (result < 0) {
    fail_request(request, static_cast<int>(-result));
    return;
  }
  if (request.left > 0) {
    if (result == 0) {
      fail_request(request, EIO); // the file has become shorter
      return;
    }
    const std::uint64_t done =
        std::min<std::uint64_t>(static_cast<std::uint64_t>(result), request.left);
    request.left -= done;
    if (request.left > 0) {
      if (is_resetting_) {
        finish(request, Status::IoError);
        return;
      }
      drop_first(request.data, done);
      request.operation.offset += done;
      start(request);
      submit();
      return;
    }
  }
  finish(request, Status::Ok);
}

void Block::fail_request(Request& request, int error) {
  report(operation_of(request.type), error);
  finish(request, Status::IoError);
}

void Block::finish(Request& request, Status status) {
  --under_way_;
  request.next = std::exchange(free_, &request);
  if (is_resetting_) {
    return;
  }
  *request.status = static_cast<std::byte>(status);
  // Of a read that failed nobody knows how much has been written: nothing that counts.
  const std::uint32_t written = status == Status::Ok ? request.readable + 1 : 1;
  queue(0).push(request.chain.head(), written);
  notify(queue(0));
  if (std::exchange(is_stalled_, false)) {
    kick_again(0);
  }
}

} // namespace casemate::machine::virtio
