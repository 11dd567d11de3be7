#include "vmm/configuration.hpp"

#include "machine/layout.hpp"
#include "sys/message.hpp"
#include "sys/syscall.hpp"
#include "vmm/control.hpp"

#include <asm/errno.h>
#include <asm/stat.h>

#include <algorithm>
#include <limits>
#include <utility>

namespace casemate::vmm {

namespace {

constexpr int msg_trunc = 0x20;
/// Of a vCPU's mapping, which is a few pages.
constexpr std::uint32_t max_run_size = 1024 * 1024;

/// Kinds of file, in st_mode: <linux/stat.h> leaves them to libc.
constexpr unsigned kind_mask = 0170000;
constexpr unsigned character_device = 0020000;
constexpr unsigned block_device = 0060000;
constexpr unsigned regular_file = 0100000;
constexpr unsigned socket = 0140000;

[[noreturn]] void refuse(int error) { fail(CASEMATE_SETUP_CONFIGURE, {"recvmsg", error}); }

std::size_t receive(ConfigurationMessage& message) {
  sys::IoVector vectors[] = {{&message.head, sizeof message.head},
                             {message.rest, sizeof message.rest}};
  sys::MessageHeader header{};
  header.vectors = vectors;
  header.vector_count = 2;
  const long size = sys::call_retry(__NR_recvmsg, CASEMATE_FD_CONTROL, &header, 0);
  if (size <= 0) {
    exit_process(1); // nobody is there to be told
  }
  if ((header.flags & msg_trunc) != 0) {
    refuse(EMSGSIZE);
  }
  return static_cast<std::size_t>(size);
}

bool is_valid(const casemate_configure& head) {
  constexpr std::uint32_t known_flags = (CASEMATE_CONFIGURE_CATEGORIES << 1) - 1;
  return head.memory_size >= machine::min_memory_size &&
         head.memory_size <= machine::max_memory_size &&
         head.memory_size % machine::large_page_size == 0 && (head.flags & ~known_flags) == 0 &&
         head.format <= CASEMATE_IMAGE_PVH && (head.cpl == 0 || head.cpl == 3) &&
         head.cpuid_count <= CASEMATE_MAX_CPUID &&
         head.arguments_size <= CASEMATE_MAX_ARGUMENTS_SIZE &&
         head.device_count <= CASEMATE_MAX_DEVICES && head.run_size >= sizeof(kvm_run) &&
         head.run_size <= max_run_size;
}

/// Whether `bytes` are exactly `count` strings, each with its NUL.
bool are_strings(std::span<const std::byte> bytes, std::uint32_t count) {
  std::uint32_t ends = 0;
  for (const std::byte byte : bytes) {
    ends += byte == std::byte{0} ? 1 : 0;
  }
  return ends == count && (bytes.empty() || bytes.back() == std::byte{0});
}

/// One command line, at CPL 0.
bool is_valid_linux(const casemate_configure& head) {
  const bool has_pages =
      head.page_shift == 0 || ((head.page_shift == 21 || head.page_shift == 30) &&
                               head.memory_size % (std::uint64_t{1} << head.page_shift) == 0);
  return head.cpl == 0 && head.argument_count == 1 &&
         head.arguments_size <= CASEMATE_MAX_COMMAND_LINE && head.vcpu_count > 0 &&
         head.vcpu_count <= CASEMATE_MAX_VCPUS && head.input_count <= CASEMATE_MAX_INITRDS &&
         has_pages;
}

bool is_valid_bare_metal(const casemate_configure& head) {
  return head.vcpu_count == 1 && head.input_count <= 1 && head.page_shift == 0 &&
         head.device_count == 0;
}

/// Whether each has what its type wants.
bool are_devices(const Configuration& configuration) {
  bool has_vsock = false;
  return std::ranges::all_of(configuration.devices, [&](const casemate_device& device) {
    switch (device.type) {
    case CASEMATE_DEVICE_RNG:
      return device.descriptors == 0 && device.flags == 0;
    case CASEMATE_DEVICE_BLOCK:
      return device.descriptors == 1 &&
             (device.flags & ~std::uint32_t{CASEMATE_BLOCK_READ_ONLY}) == 0;
    case CASEMATE_DEVICE_NET:
      return device.descriptors == 1 && (device.flags & ~std::uint32_t{CASEMATE_NET_STREAM}) == 0 &&
             device.parameters[CASEMATE_NET_MTU] <= std::numeric_limits<std::uint16_t>::max();
    case CASEMATE_DEVICE_VSOCK: // one: commands about streams do not say of which
      return device.descriptors == 0 && device.flags == 0 && !std::exchange(has_vsock, true);
    case CASEMATE_DEVICE_CONSOLE:
      return device.descriptors == 0 && device.flags == 0 &&
             configuration.has(CASEMATE_CONFIGURE_CONSOLE);
    case CASEMATE_DEVICE_BALLOON:
      return device.descriptors == 0 && configuration.page_shift == 0 &&
             (device.flags &
              ~std::uint32_t{CASEMATE_BALLOON_DEFLATE_ON_OOM | CASEMATE_BALLOON_REPORTING}) == 0;
    default:
      return false;
    }
  });
}

/// Of the descriptor; ends the process where it is not of this kind.
struct stat expect(int fd, unsigned kind, unsigned or_kind = 0) {
  struct stat status {};
  const long result = sys::call(__NR_fstat, fd, &status);
  const unsigned found = status.st_mode & kind_mask;
  if (result < 0 || (found != kind && (or_kind == 0 || found != or_kind))) {
    fail(CASEMATE_SETUP_DESCRIPTORS, {"fstat", result < 0 ? static_cast<int>(-result) : EBADF},
         static_cast<std::uint32_t>(fd));
  }
  return status;
}

} // namespace

int decode_configuration(ConfigurationMessage& message, std::size_t size,
                         Configuration& configuration) {
  const casemate_configure& head = message.head;
  if (size < sizeof head || head.header.type != CASEMATE_COMMAND_CONFIGURE ||
      head.header.size != size || head.magic != CASEMATE_WIRE_MAGIC ||
      head.version != CASEMATE_WIRE_VERSION) {
    return EPROTO;
  }
  const std::size_t cpuid_size = std::size_t{head.cpuid_count} * sizeof(kvm_cpuid_entry2);
  const std::size_t devices_size = std::size_t{head.device_count} * sizeof(casemate_device);
  if (!is_valid(head) || size != sizeof head + cpuid_size + devices_size + head.arguments_size) {
    return EINVAL;
  }
  auto* cpuid = reinterpret_cast<casemate_kvm_cpuid2*>(message.cpuid);
  cpuid->nent = head.cpuid_count;

  configuration.memory_size = head.memory_size;
  configuration.flags = head.flags;
  configuration.format = head.format;
  configuration.cpl = head.cpl;
  configuration.input_count = head.input_count;
  configuration.page_shift = head.page_shift;
  configuration.vcpu_count = head.vcpu_count;
  configuration.run_size = head.run_size;
  configuration.cpuid = cpuid;
  configuration.argument_count = head.argument_count;
  configuration.devices = {reinterpret_cast<const casemate_device*>(message.rest + cpuid_size),
                           head.device_count};
  configuration.arguments = {message.rest + cpuid_size + devices_size, head.arguments_size};
  const bool is_valid_guest = configuration.is_linux()
                                  ? is_valid_linux(head) && are_devices(configuration)
                                  : is_valid_bare_metal(head);
  return is_valid_guest && are_strings(configuration.arguments, head.argument_count) ? 0 : EINVAL;
}

Configuration receive_configuration(ConfigurationMessage& message) {
  Configuration configuration;
  if (const int error = decode_configuration(message, receive(message), configuration)) {
    refuse(error);
  }
  return configuration;
}

void check_descriptors(Configuration& configuration) {
  constexpr unsigned long kvm_device = 10 << 8 | 232; // misc, kvm
  constexpr unsigned long tun_device = 10 << 8 | 200; // misc, tun
  if (expect(CASEMATE_FD_KVM, character_device).st_rdev != kvm_device) {
    fail(CASEMATE_SETUP_DESCRIPTORS, {"fstat", ENODEV}, CASEMATE_FD_KVM);
  }
  configuration.image_size =
      static_cast<std::uint64_t>(expect(CASEMATE_FD_GUEST, regular_file).st_size);
  if (configuration.has(CASEMATE_CONFIGURE_CONSOLE)) {
    expect(CASEMATE_FD_CONSOLE_OUT, socket);
    expect(CASEMATE_FD_CONSOLE_IN, socket);
  }
  for (std::uint32_t i = 0; i < configuration.input_count; ++i) {
    configuration.input_sizes[i] =
        static_cast<std::uint64_t>(expect(input_descriptor(i), regular_file).st_size);
  }
  if (configuration.has(CASEMATE_CONFIGURE_LEASE)) {
    expect(CASEMATE_FD_LEASE, regular_file);
  }
  if (configuration.has(CASEMATE_CONFIGURE_CATEGORIES)) {
    expect(CASEMATE_FD_CATEGORIES, regular_file);
  }
  int descriptor = CASEMATE_FD_DEVICES;
  for (const casemate_device& device : configuration.devices) {
    if (device.type == CASEMATE_DEVICE_BLOCK) {
      expect(descriptor, regular_file, block_device);
    }
    if (device.type == CASEMATE_DEVICE_NET) {
      const bool is_stream = (device.flags & CASEMATE_NET_STREAM) != 0;
      const std::uint64_t found = expect(descriptor, is_stream ? socket : character_device).st_rdev;
      if (descriptor != CASEMATE_FD_DEVICES || (!is_stream && found != tun_device)) {
        fail(CASEMATE_SETUP_DESCRIPTORS, {"fstat", ENODEV}, static_cast<std::uint32_t>(descriptor));
      }
    }
    descriptor += static_cast<int>(device.descriptors);
  }
}

} // namespace casemate::vmm
