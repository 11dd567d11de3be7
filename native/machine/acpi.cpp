#include "machine/acpi.hpp"

#include "machine/ioapic.hpp"
#include "machine/power.hpp"
#include "machine/serial.hpp"
#include "machine/virtio/transport.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>

namespace casemate::machine {

namespace {

constexpr std::uint64_t local_apic_address = 0xfee00000;

// ---- Tables of a fixed shape ----

struct [[gnu::packed]] RootPointer {
  char signature[8] = {'R', 'S', 'D', ' ', 'P', 'T', 'R', ' '};
  std::uint8_t checksum = 0; // of the first 20 bytes
  char oem[6] = {'C', 'A', 'S', 'E', 'M', 'T'};
  std::uint8_t revision = 2;
  std::uint32_t rsdt = 0;
  std::uint32_t length = 36;
  std::uint64_t xsdt = 0;
  std::uint8_t extended_checksum = 0;
  std::uint8_t reserved[3] = {};
};
static_assert(sizeof(RootPointer) == 36);

struct [[gnu::packed]] Header {
  char signature[4];
  std::uint32_t length = 0;
  std::uint8_t revision;
  std::uint8_t checksum = 0;
  char oem[6] = {'C', 'A', 'S', 'E', 'M', 'T'};
  char oem_table[8] = {'C', 'A', 'S', 'E', 'M', 'A', 'T', 'E'};
  std::uint32_t oem_revision = 1;
  char creator[4] = {'C', 'S', 'M', 'T'};
  std::uint32_t creator_revision = 1;
};
static_assert(sizeof(Header) == 36);

/// A register of one byte behind a port.
struct [[gnu::packed]] Address {
  std::uint8_t space = 1; // ports
  std::uint8_t bits = 8;
  std::uint8_t offset = 0;
  std::uint8_t access = 1; // by bytes
  std::uint64_t port = 0;
};
static_assert(sizeof(Address) == 12);

/// The fixed table, behind its header. What is zero is of hardware that is not there.
struct [[gnu::packed]] Fixed {
  std::uint32_t facs = 0;
  std::uint32_t dsdt = 0;
  std::uint8_t legacy_power[65] = {};
  std::uint16_t boot_flags = 1u << 2 | 1u << 5; // no VGA, no real-time clock; no 8042 either
  std::uint8_t reserved = 0;
  // A reset register; power and sleep buttons are none of the fixed ones; hardware-reduced.
  std::uint32_t flags = 1u << 4 | 1u << 5 | 1u << 10 | 1u << 20;
  Address reset{.port = reset_port};
  std::uint8_t reset_value = machine::reset_value;
  std::uint16_t arm_flags = 0;
  std::uint8_t minor_version = 4;
  std::uint64_t extended_facs = 0;
  std::uint64_t extended_dsdt = 0;
  std::uint8_t extended_power[96] = {};
  Address sleep_control{.port = sleep_control_port};
  Address sleep_status{.port = sleep_status_port};
  char hypervisor[8] = {};
};
static_assert(sizeof(Header) + offsetof(Fixed, boot_flags) == 109);
static_assert(sizeof(Header) + offsetof(Fixed, reset) == 116);
static_assert(sizeof(Header) + offsetof(Fixed, sleep_control) == 244);
static_assert(sizeof(Header) + sizeof(Fixed) == 276);

struct [[gnu::packed]] Interrupts {
  std::uint32_t local_apic = local_apic_address;
  std::uint32_t flags = 0; // no PICs
};

struct [[gnu::packed]] LocalApic {
  std::uint8_t type = 0;
  std::uint8_t length = 8;
  std::uint8_t processor = 0;
  std::uint8_t apic_id = 0;
  std::uint32_t flags = 1; // enabled
};
static_assert(sizeof(LocalApic) == 8);

struct [[gnu::packed]] IoApic {
  std::uint8_t type = 1;
  std::uint8_t length = 12;
  std::uint8_t id = 0;
  std::uint8_t reserved = 0;
  std::uint32_t address = Ioapic::address;
  std::uint32_t first_pin = 0;
};
static_assert(sizeof(IoApic) == 12);

// ---- How they are put together ----

std::uint8_t checksum(std::span<const std::byte> bytes) {
  std::uint8_t sum = 0;
  for (const std::byte byte : bytes) {
    sum = static_cast<std::uint8_t>(sum + static_cast<std::uint8_t>(byte));
  }
  return static_cast<std::uint8_t>(-sum);
}

/// Appends to guest memory that has never been written to.
class Writer {
public:
  explicit Writer(std::span<std::byte> out) : out_(out) {}

  std::uint64_t address() const { return acpi_address + size_; }

  template <typename T> void put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (sizeof value <= out_.size() - size_) {
      std::memcpy(out_.data() + size_, &value, sizeof value);
      size_ += sizeof value;
    }
  }

  template <typename... Bytes> void bytes(Bytes... values) {
    (put(static_cast<std::uint8_t>(values)), ...);
  }

  /// Without its NUL.
  template <std::size_t Size> void text(const char (&characters)[Size]) {
    for (const char character : std::span(characters).first(Size - 1)) {
      put(character);
    }
  }

  void align() { size_ = (size_ + 15) / 16 * 16; }

  /// A table: what `content` appends, with length and checksum in the header before it.
  /// Returns its address.
  template <typename Content>
  std::uint64_t table(const char (&signature)[5], std::uint8_t revision, Content content) {
    align();
    const std::size_t start = size_;
    Header header{.signature = {signature[0], signature[1], signature[2], signature[3]},
                  .revision = revision};
    put(header);
    content();
    header.length = static_cast<std::uint32_t>(size_ - start);
    std::memcpy(out_.data() + start, &header, sizeof header);
    header.checksum = checksum(out_.subspan(start, size_ - start));
    std::memcpy(out_.data() + start, &header, sizeof header);
    return acpi_address + start;
  }

  /// A package of AML: its length, of itself too, in two bytes, then what `content`
  /// appends. Section 20.2.4
  template <typename Content> void package(Content content) {
    const std::size_t start = size_;
    bytes(0, 0);
    content();
    const std::size_t length = size_ - start;
    out_[start] = static_cast<std::byte>(0x40 | (length & 0xf));
    out_[start + 1] = static_cast<std::byte>(length >> 4);
  }

private:
  std::span<std::byte> out_;
  std::size_t size_ = 0;
};

// ---- The devices, in AML. Section 20.2 ----

constexpr std::uint8_t zero_op = 0x00;
constexpr std::uint8_t name_op = 0x08;
constexpr std::uint8_t byte_prefix = 0x0a;
constexpr std::uint8_t dword_prefix = 0x0c;
constexpr std::uint8_t string_prefix = 0x0d;
constexpr std::uint8_t scope_op = 0x10;
constexpr std::uint8_t buffer_op = 0x11;
constexpr std::uint8_t package_op = 0x12;
constexpr std::uint8_t extended_prefix = 0x5b;
constexpr std::uint8_t device_op = 0x82;

constexpr std::size_t ports_size = 8;
constexpr std::size_t window_size = 12;
constexpr std::size_t interrupt_size = 9;
constexpr std::size_t end_size = 2;

/// Ports that a device has. Section 6.4.2.5
void ports(Writer& out, std::uint16_t first, std::uint8_t count) {
  constexpr std::uint8_t decodes_16_bits = 1;
  out.bytes(0x47, decodes_16_bits);
  out.put(first);
  out.put(first);
  out.bytes(1, count);
}

/// Memory that a device's registers are in. Section 6.4.3.4
void window(Writer& out, std::uint32_t first, std::uint32_t size) {
  constexpr std::uint8_t is_writable = 1;
  out.bytes(0x86, window_size - 3, 0, is_writable);
  out.put(first);
  out.put(size);
}

/// A pin of the I/O APIC: edges, high. Section 6.4.3.6
void interrupt(Writer& out, std::uint32_t pin) {
  constexpr std::uint8_t consumer = 1 << 0;
  constexpr std::uint8_t edge = 1 << 1;
  out.bytes(0x89, interrupt_size - 3, 0, consumer | edge, 1);
  out.put(pin);
}

void end_of_resources(Writer& out) { out.bytes(0x79, 0); }

/// _CRS: what a device uses, `size` bytes that `content` appends, and their end.
template <typename Content> void resources(Writer& out, std::size_t size, Content content) {
  out.bytes(name_op);
  out.text("_CRS");
  out.bytes(buffer_op);
  out.package([&] {
    out.bytes(byte_prefix, size + end_size);
    content();
    end_of_resources(out);
  });
}

template <typename Content> void device(Writer& out, const char (&name)[5], Content content) {
  out.bytes(extended_prefix, device_op);
  out.package([&] {
    out.text(name);
    content();
  });
}

void sleep_states(Writer& out) {
  out.bytes(name_op);
  out.text("_S5_");
  out.bytes(package_op);
  out.package([&] { out.bytes(4, byte_prefix, sleep_type_off, zero_op, zero_op, zero_op); });
}

void serial_device(Writer& out) {
  device(out, "COM1", [&] {
    out.bytes(name_op);
    out.text("_HID");
    out.bytes(dword_prefix, 0x41, 0xd0, 0x05, 0x01); // PNP0501, compressed
    out.bytes(name_op);
    out.text("_UID");
    out.bytes(zero_op);
    resources(out, ports_size + interrupt_size, [&] {
      ports(out, Serial::port, Serial::ports);
      interrupt(out, Serial::pin);
    });
  });
}

void panic_device(Writer& out) {
  device(out, "PVPN", [&] {
    out.bytes(name_op);
    out.text("_HID");
    out.bytes(string_prefix);
    out.text("QEMU0001"); // what drivers know it by
    out.bytes(0);
    resources(out, ports_size, [&] { ports(out, panic_port, 1); });
  });
}

void virtio_device(Writer& out, std::uint32_t index) {
  static_assert(virtio::max_devices <= 26);
  const char name[5] = {'V', 'I', 'O', static_cast<char>('A' + index), 0};
  device(out, name, [&] {
    out.bytes(name_op);
    out.text("_HID");
    out.bytes(string_prefix);
    out.text("LNRO0005"); // what drivers know virtio's registers in memory by
    out.bytes(0);
    out.bytes(name_op);
    out.text("_UID");
    out.bytes(byte_prefix, index);
    resources(out, window_size + interrupt_size, [&] {
      window(out,
             static_cast<std::uint32_t>(virtio::first_window + index * virtio::Transport::size),
             virtio::Transport::size);
      interrupt(out, virtio::first_pin + index);
    });
  });
}

} // namespace

void write_acpi_tables(const GuestMemory& memory, std::uint32_t vcpu_count,
                       std::uint32_t device_count) {
  std::byte* at = memory.at(acpi_address, acpi_size);
  Writer out({at, acpi_size});
  out.put(RootPointer{}); // its place; what it points to is to be made first

  const std::uint64_t dsdt = out.table("DSDT", 2, [&] {
    sleep_states(out);
    out.bytes(scope_op);
    out.package([&] {
      out.text("_SB_");
      serial_device(out);
      panic_device(out);
      for (std::uint32_t i = 0; i < device_count; ++i) {
        virtio_device(out, i);
      }
    });
  });
  const std::uint64_t fixed = out.table("FACP", 6, [&] { out.put(Fixed{.extended_dsdt = dsdt}); });
  const std::uint64_t interrupts = out.table("APIC", 4, [&] {
    out.put(Interrupts{});
    for (std::uint32_t i = 0; i < vcpu_count; ++i) {
      const auto id = static_cast<std::uint8_t>(i);
      out.put(LocalApic{.processor = id, .apic_id = id});
    }
    out.put(IoApic{});
  });
  RootPointer root;
  root.xsdt = out.table("XSDT", 1, [&] {
    out.put(fixed);
    out.put(interrupts);
  });

  const auto bytes = std::as_bytes(std::span(&root, 1));
  root.checksum = checksum(bytes.first(20));
  root.extended_checksum = checksum(bytes);
  memory.write(acpi_address, root);
}

} // namespace casemate::machine
