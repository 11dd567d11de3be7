// Memory that a guest gives back to its host: what its driver puts into the balloon on
// request, and what its kernel reports as free by itself. VIRTIO 1.2, section 5.5
#pragma once

#include "machine/virtio/device.hpp"
#include "sys/event_loop.hpp"

#include <array>
#include <cstdint>

namespace casemate::machine::virtio {

/// What a guest says of its memory. Anything may stand here.
struct MemoryStatistics {
  /// Tags below this have a place in `values`; section 5.5.6.4 and those that Linux has since
  /// added.
  static constexpr std::uint16_t count = 16;

  std::uint32_t known = 0; // bits, by tag
  std::array<std::uint64_t, count> values{};
};

class Balloon : public DeviceOf<Balloon> {
public:
  static constexpr std::uint64_t page_size = 4096; // of its driver's numbers, whatever a guest's

  struct Settings {
    bool deflates_on_oom = false;
    bool takes_reports = false;
  };

  /// Is told the answer to ask_statistics().
  struct Listener {
    void (*told)(void* context, const MemoryStatistics& statistics) = nullptr;
    void* context = nullptr;
  };

  Balloon(const Settings& settings, const Listener& listener);

  /// How large the driver is to make it, in pages. It does so when it can, and as far.
  void set_target(std::uint32_t pages);
  std::uint32_t target() const { return config_.target; }
  /// How large it is, by what the driver says.
  std::uint32_t actual() const { return config_.actual; }

  /// Asks the driver. The answer comes soon, one for all who have asked meanwhile: with
  /// nothing in it where there is no driver, or it does not answer in time.
  void ask_statistics();

  void on_activate(std::uint64_t features);
  void on_reset();
  void on_kick(std::uint16_t index);
  void on_read_config(std::uint32_t offset, std::span<std::byte> value);
  void on_write_config(std::uint32_t offset, std::span<const std::byte> value);

private:
  struct Config {
    std::uint32_t target = 0;
    std::uint32_t actual = 0;
    std::uint32_t free_page_hint_id = 0; // of a feature that is not offered
    std::uint32_t poison = 0;
  };

  void inflate();
  void discard_pages(std::uint64_t first, std::uint64_t count) const;
  void discard_reported() const;
  void discard(std::byte* start, std::size_t size) const;
  void take_statistics();
  void answer(const MemoryStatistics& statistics);

  Listener listener_;
  Config config_;
  // What the driver has accepted.
  bool has_statistics_ = false;
  bool has_reports_ = false;
  bool holds_buffer_ = false; // the one that it sent its last statistics in
  bool is_asked_ = false;
  std::uint16_t buffer_ = 0;
  sys::EventLoop::Timer patience_;
  Chain chain_;
};

} // namespace casemate::machine::virtio
