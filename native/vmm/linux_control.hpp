// The control socket, as the event loop of a Linux guest uses it: commands may bring a
// descriptor, and news of streams must not make it wait.
#pragma once

#include "machine/virtio/vsock_streams.hpp"
#include "sys/fd.hpp"
#include "vmm/wire.h"

#include <cstdint>

namespace casemate::vmm {

struct Command {
  std::uint32_t type = 0; // 0: there is none
  std::uint32_t id = 0;   // of a stream, or pages of a balloon; and of a stream:
  std::uint32_t port = 0;
  sys::Fd socket;
};

/// Whether what recvmsg() gave is whole: of the size of its type, and with a descriptor where its
/// type brings one. `flags` are MSG_* as the kernel returned them.
bool is_command(const casemate_stream_command& message, long size, unsigned flags,
                bool has_descriptor);

/// The next one, without waiting. Where Node says what it never would, or has hung up, the
/// process ends.
Command take_command();

/// Has the kernel make the table of descriptors as large as streams may want it, while there is
/// one thread: with several, a table that grows waits for every processor of the host.
void make_room_for_sockets();

/// VsockStreams::Listener's.
bool tell_of_stream(void* context, machine::virtio::StreamEvent event, std::uint32_t id,
                    std::uint32_t detail, bool may_wait);

} // namespace casemate::vmm
