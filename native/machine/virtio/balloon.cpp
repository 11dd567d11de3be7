#include "machine/virtio/balloon.hpp"

#include "sys/clock.hpp"
#include "sys/syscall.hpp"

#include <linux/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace casemate::machine::virtio {

namespace {

// Section 5.5.3
constexpr std::uint64_t feature_statistics = 1u << 1;
constexpr std::uint64_t feature_deflate_on_oom = 1u << 2;
constexpr std::uint64_t feature_page_poison = 1u << 4;
constexpr std::uint64_t feature_reporting = 1u << 5;

constexpr std::uint16_t inflate_queue = 0;
constexpr std::uint16_t deflate_queue = 1;
constexpr std::uint16_t statistics_queue = 2; // where the driver has statistics
// Page reports come through the last one. Which that is depends: the standard counts queues
// that are not there, and Linux leaves them out. So it is any behind those.
constexpr std::uint16_t queues = 5;

// Each page number is worth a system call, and a chain has room for a thousand million. So
// there is an end to each, far above what drivers send at once (256 pages in Linux); the rest
// of such a chain is not given back, and there is no more to that.
constexpr unsigned chains_at_once = 16;
constexpr std::uint32_t pages_of_chain = 1024;
constexpr std::uint32_t statistics_of_chain = 64;

constexpr std::uint64_t statistics_patience_ns = 1'000'000'000;

/// Section 5.5.6.3
struct [[gnu::packed]] Statistic {
  std::uint16_t tag;
  std::uint64_t value;
};

std::uint64_t features_of(const Balloon::Settings& settings) {
  return feature_statistics | (settings.deflates_on_oom ? feature_deflate_on_oom : 0) |
         (settings.takes_reports ? feature_reporting | feature_page_poison : 0);
}

} // namespace

Balloon::Balloon(const Settings& settings, const Listener& listener)
    : DeviceOf(DeviceType::Balloon, features_of(settings), queues), listener_(listener) {
  patience_.due = [](void* balloon) { static_cast<Balloon*>(balloon)->answer({}); };
  patience_.context = this;
}

void Balloon::set_target(std::uint32_t pages) {
  config_.target = pages;
  notify_config();
}

void Balloon::ask_statistics() {
  if (std::exchange(is_asked_, true)) {
    return;
  }
  if (!has_statistics_) {
    answer({});
    return;
  }
  loop().set_timer(patience_, sys::monotonic_ns() + statistics_patience_ns);
  // To give the driver its buffer back is to ask it.
  if (std::exchange(holds_buffer_, false)) {
    Queue& queue = this->queue(statistics_queue);
    queue.push(buffer_, 0);
    notify(queue);
  }
}

void Balloon::on_activate(std::uint64_t features) {
  has_statistics_ = (features & feature_statistics) != 0;
  has_reports_ = (features & feature_reporting) != 0;
  if ((features & feature_page_poison) == 0) {
    config_.poison = 0;
  }
  if (has_statistics_) {
    // Linux makes its first statistics available, and kicks, before it says that it is ready.
    kick_again(statistics_queue);
  }
}

void Balloon::on_reset() {
  // What is in the balloon is the next driver's again, as it comes without one.
  config_.actual = 0;
  config_.poison = 0;
  has_statistics_ = false;
  holds_buffer_ = false;
  answer({});
}

void Balloon::on_kick(std::uint16_t index) {
  Queue& queue = this->queue(index);
  queue.disable_kicks();
  for (unsigned count = 0; count < chains_at_once && queue.pop(chain_); ++count) {
    if (index == statistics_queue && has_statistics_) {
      take_statistics();
      continue; // its buffer stays here
    }
    if (index == inflate_queue) {
      inflate();
    } else if (index != deflate_queue) {
      discard_reported();
    }
    // Memory that is taken out of the balloon comes back as it is touched.
    queue.push(chain_.head(), 0);
  }
  if (queue.enable_kicks()) {
    kick_again(index);
  }
  notify(queue);
}

/// Page numbers, of 32 bits, many of them beside each other: one system call for each run.
void Balloon::inflate() {
  std::array<std::uint32_t, pages_of_chain> numbers;
  const std::size_t size =
      std::min<std::size_t>(numbers.size(), chain_.readable_size() / sizeof numbers[0]);
  const auto pages = std::span(numbers).first(size);
  chain_.read(0, std::as_writable_bytes(pages));
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  for (const std::uint64_t page : pages) {
    if (page == first + count) {
      ++count;
    } else if (page + 1 == first) {
      --first;
      ++count;
    } else {
      discard_pages(first, count);
      first = page;
      count = 1;
    }
  }
  discard_pages(first, count);
}

void Balloon::discard_pages(std::uint64_t first, std::uint64_t count) const {
  // Null also where a run goes from RAM into the hole: no driver has pages there.
  if (std::byte* start = memory().at(first * page_size, count * page_size)) {
    discard(start, count * page_size);
  }
}

/// Memory that the guest will write before it reads it.
void Balloon::discard_reported() const {
  // Unless it counts on finding its poison there; zeroes are what it will find.
  if (has_reports_ && config_.poison == 0) {
    for (const Segment& segment : chain_.writable()) {
      discard(segment.data, segment.size);
    }
  }
}

/// The whole pages in there, and not a byte beside them. They read as zeroes from now on. What
/// the kernel will not drop the guest keeps, which is no harm to it.
void Balloon::discard(std::byte* start, std::size_t size) const {
  const auto before = static_cast<std::size_t>(start - memory().base());
  const std::size_t first = (before + page_size - 1) / page_size * page_size;
  const std::size_t end = (before + size) / page_size * page_size;
  if (first < end) {
    sys::call(__NR_madvise, memory().base() + first, end - first, MADV_DONTNEED);
  }
}

void Balloon::take_statistics() {
  // A driver has one buffer for them. What it sends besides is lost to it until its reset.
  buffer_ = chain_.head();
  holds_buffer_ = true;
  MemoryStatistics statistics;
  Statistic statistic;
  for (std::uint32_t i = 0; i < statistics_of_chain; ++i) {
    if (!chain_.read_value(i * sizeof statistic, statistic)) {
      break;
    }
    if (statistic.tag < MemoryStatistics::count) {
      statistics.known |= 1u << statistic.tag;
      statistics.values[statistic.tag] = statistic.value;
    }
  }
  answer(statistics);
}

void Balloon::answer(const MemoryStatistics& statistics) {
  loop().clear_timer(patience_);
  if (std::exchange(is_asked_, false)) {
    listener_.told(listener_.context, statistics);
  }
}

void Balloon::on_read_config(std::uint32_t offset, std::span<std::byte> value) {
  read_from_config(config_, offset, value);
}

/// A driver writes how large the balloon is, and its poison.
void Balloon::on_write_config(std::uint32_t offset, std::span<const std::byte> value) {
  std::uint32_t word;
  if (value.size() != sizeof word) {
    return;
  }
  std::memcpy(&word, value.data(), sizeof word);
  if (offset == offsetof(Config, actual)) {
    config_.actual = word;
  } else if (offset == offsetof(Config, poison)) {
    config_.poison = word;
  }
}

} // namespace casemate::machine::virtio
