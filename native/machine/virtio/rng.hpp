// The entropy device: a driver's buffers, filled by the host's generator. VIRTIO 1.2,
// section 5.4
#pragma once

#include "machine/virtio/device.hpp"

namespace casemate::machine::virtio {

class Rng : public DeviceOf<Rng> {
public:
  Rng() : DeviceOf(DeviceType::Rng, 0, 1) {}

  void on_kick(std::uint16_t index);

private:
  Chain chain_;
};

} // namespace casemate::machine::virtio
