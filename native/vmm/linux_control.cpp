#include "vmm/linux_control.hpp"

#include "sys/message.hpp"
#include "sys/syscall.hpp"
#include "vmm/control.hpp"

#include <asm/errno.h>

namespace casemate::vmm {

namespace {

constexpr int msg_control_truncated = 0x8;
constexpr int msg_truncated = 0x20;
constexpr int msg_dontwait = 0x40;
constexpr int msg_nosignal = 0x4000;
constexpr int msg_close_on_exec = 0x40000000;
constexpr int close_on_exec = 02000000;

/// struct cmsghdr with one descriptor behind it.
struct alignas(8) Rights {
  std::size_t size = 0;
  int level = 0;
  int type = 0;
  int descriptor = -1;
};
constexpr std::size_t rights_size = offsetof(Rights, descriptor) + sizeof(int);
constexpr int level_socket = 1;
constexpr int type_rights = 1;

bool brings_socket(std::uint32_t type) {
  return type == CASEMATE_COMMAND_STREAM_CONNECT || type == CASEMATE_COMMAND_STREAM_ACCEPT;
}

/// struct casemate_balloon_command, whose pages are where a stream's id is.
static_assert(sizeof(casemate_balloon_command) == sizeof(casemate_stream_command));
static_assert(offsetof(casemate_balloon_command, pages) == offsetof(casemate_stream_command, id));

bool is_of_stream(std::uint32_t type) {
  return brings_socket(type) || type == CASEMATE_COMMAND_STREAM_REFUSE;
}

constexpr std::uint32_t first_event = CASEMATE_EVENT_STREAM_REQUESTED;
using machine::virtio::StreamEvent;
static_assert(first_event + static_cast<unsigned>(StreamEvent::Connected) ==
              CASEMATE_EVENT_STREAM_CONNECTED);
static_assert(first_event + static_cast<unsigned>(StreamEvent::Refused) ==
              CASEMATE_EVENT_STREAM_REFUSED);
static_assert(first_event + static_cast<unsigned>(StreamEvent::Ended) ==
              CASEMATE_EVENT_STREAM_ENDED);
static_assert(first_event + static_cast<unsigned>(StreamEvent::Closed) ==
              CASEMATE_EVENT_STREAM_CLOSED);
using machine::virtio::StreamBreak;
static_assert(static_cast<unsigned>(StreamBreak::Guest) == CASEMATE_BREAK_GUEST);
static_assert(static_cast<unsigned>(StreamBreak::Driver) == CASEMATE_BREAK_DRIVER);
static_assert(static_cast<unsigned>(StreamBreak::Violation) == CASEMATE_BREAK_VIOLATION);
static_assert(static_cast<unsigned>(StreamBreak::Host) == CASEMATE_BREAK_HOST);
static_assert(machine::virtio::VsockStreams::max_streams == CASEMATE_MAX_STREAMS);
static_assert(machine::virtio::VsockStreams::ample_streams == CASEMATE_AMPLE_STREAMS);
static_assert(machine::virtio::VsockStreams::guest_id == CASEMATE_FIRST_GUEST_STREAM);

} // namespace

bool is_command(const casemate_stream_command& message, long size, unsigned flags,
                bool has_descriptor) {
  const std::uint32_t type = message.header.type;
  const std::size_t expected = is_of_stream(type) || type == CASEMATE_COMMAND_BALLOON
                                   ? sizeof message
                                   : sizeof(casemate_command);
  // The kernel says where it could not give us all that was sent: where we have too many
  // already, the command comes without.
  const bool is_cut = (flags & msg_control_truncated) != 0;
  const bool is_complete =
      brings_socket(type) ? has_descriptor != is_cut : !has_descriptor && !is_cut;
  return size >= 0 && static_cast<std::size_t>(size) == expected &&
         message.header.size == expected && (flags & msg_truncated) == 0 && is_complete;
}

Command take_command() {
  casemate_stream_command message{};
  Rights rights;
  sys::IoVector vector{&message, sizeof message};
  sys::MessageHeader header;
  header.vectors = &vector;
  header.vector_count = 1;
  header.control = &rights;
  header.control_size = sizeof rights;
  const long size =
      sys::call_retry(__NR_recvmsg, CASEMATE_FD_CONTROL, &header, msg_dontwait | msg_close_on_exec);
  if (size == -EAGAIN) {
    return {};
  }
  const bool has_descriptor = header.control_size >= rights_size && rights.level == level_socket &&
                              rights.type == type_rights;
  Command command{message.header.type, message.id, message.port,
                  sys::Fd(has_descriptor ? rights.descriptor : -1)};
  if (!is_command(message, size, header.flags, has_descriptor)) {
    exit_process(1);
  }
  return command;
}

void make_room_for_sockets() {
  // The others are fewer than that.
  constexpr int last = CASEMATE_MAX_STREAMS + 255;
  if (sys::call(__NR_dup3, CASEMATE_FD_CONTROL, last, close_on_exec) == last) {
    sys::call(__NR_close, last);
  }
}

bool tell_of_stream(void* /* context */, StreamEvent event, std::uint32_t id, std::uint32_t detail,
                    bool may_wait) {
  const casemate_stream_event message{
      {first_event + static_cast<std::uint32_t>(event), sizeof message}, id, detail};
  // Any other error is Node's hanging up, which ends the next receive.
  return sys::call_retry(__NR_sendto, CASEMATE_FD_CONTROL, &message, sizeof message,
                         msg_nosignal | (may_wait ? 0 : msg_dontwait), nullptr, 0) != -EAGAIN;
}

} // namespace casemate::vmm
