// libFuzzer: any bytes as a monitor's configuration, or as the commands that follow. Either
// refused, or what a monitor then reads lies in the message; ASan and UBSan watch.
#include "vmm/configuration.hpp"
#include "vmm/linux_control.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

using namespace casemate;

namespace {

bool is_in(const void* from, std::size_t size, const vmm::ConfigurationMessage& message,
           std::size_t received) {
  const auto* start = message.rest;
  const auto* end = start + (received - sizeof message.head);
  const auto* at = static_cast<const std::byte*>(from);
  return at >= start && at <= end && size <= static_cast<std::size_t>(end - at);
}

void configure(const std::uint8_t* data, std::size_t size) {
  static const auto message = std::make_unique<vmm::ConfigurationMessage>();
  size = std::min(size, sizeof message->head + sizeof message->rest);
  const std::size_t in_head = std::min(size, sizeof message->head);
  std::memcpy(&message->head, data, in_head);
  std::memcpy(message->rest, data + in_head, size - in_head);
  vmm::Configuration configuration;
  if (vmm::decode_configuration(*message, size, configuration) != 0) {
    return;
  }
  const std::span arguments = configuration.arguments;
  const auto ends = std::ranges::count(arguments, std::byte{0});
  if (!is_in(configuration.devices.data(), configuration.devices.size_bytes(), *message, size) ||
      !is_in(arguments.data(), arguments.size(), *message, size) ||
      !is_in(configuration.cpuid->entries, configuration.cpuid->nent * sizeof(kvm_cpuid_entry2),
             *message, size) ||
      ends != configuration.argument_count || configuration.vcpu_count > CASEMATE_MAX_VCPUS ||
      configuration.input_count > CASEMATE_MAX_INITRDS ||
      (!configuration.is_linux() && !configuration.devices.empty())) {
    std::abort();
  }
}

/// 24 bytes each: what recvmsg() says, and the message.
void command(const std::uint8_t* data, std::size_t size) {
  for (; size >= 24; data += 24, size -= 24) {
    casemate_stream_command message;
    std::uint32_t flags;
    std::memcpy(&flags, data, sizeof flags);
    std::memcpy(&message, data + 8, sizeof message);
    const bool has_descriptor = (data[5] & 1) != 0;
    if (!vmm::is_command(message, static_cast<std::int8_t>(data[4]), flags, has_descriptor)) {
      continue;
    }
    const std::uint32_t type = message.header.type;
    const bool brings =
        type == CASEMATE_COMMAND_STREAM_CONNECT || type == CASEMATE_COMMAND_STREAM_ACCEPT;
    if ((has_descriptor && !brings) || message.header.size != data[4]) {
      std::abort();
    }
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return -1;
  }
  (data[0] % 2 == 0 ? configure : command)(data + 1, size - 1);
  return 0;
}
