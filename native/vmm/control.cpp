#include "vmm/control.hpp"

#include "sys/syscall.hpp"

#include <asm/errno.h>

namespace casemate::vmm {

namespace {

constexpr int msg_trunc = 0x20; // give a message's real size
constexpr int msg_dontwait = 0x40;
constexpr int msg_nosignal = 0x4000;

/// The next command's type, or 0 where there is none and `flags` say not to wait.
std::uint32_t receive_command(int flags) {
  casemate_command command{};
  const long size = sys::call_retry(__NR_recvfrom, CASEMATE_FD_CONTROL, &command, sizeof command,
                                    flags | msg_trunc, nullptr, nullptr);
  if (size == -EAGAIN) {
    return 0;
  }
  if (size != sizeof command || command.size != sizeof command) {
    exit_process(1);
  }
  return command.type;
}

void expect_command(std::uint32_t type) {
  if (receive_command(0) != type) {
    exit_process(1);
  }
}

} // namespace

void send_message(const void* message, std::size_t size) {
  if (sys::call_retry(__NR_sendto, CASEMATE_FD_CONTROL, message, size, msg_nosignal, nullptr, 0) <
      0) {
    exit_process(1);
  }
}

std::uint32_t next_command() { return receive_command(msg_dontwait); }

void await_run() { expect_command(CASEMATE_COMMAND_RUN); }

void obey_commands() {
  while (const std::uint32_t command = next_command()) {
    if (command != CASEMATE_COMMAND_PAUSE) {
      exit_process(1);
    }
    // The one vCPU is stopped: it is here.
    send(CASEMATE_EVENT_PAUSED);
    stay_paused();
  }
}

void stay_paused() {
  expect_command(CASEMATE_COMMAND_RESUME);
  send(CASEMATE_EVENT_RESUMED);
}

void exit_process(int status) {
  // A socket that is closed with unread messages in it breaks the other end off, and
  // with that what was sent last: no more of them, and away with those that are there.
  sys::call(__NR_shutdown, CASEMATE_FD_CONTROL, 0 /* SHUT_RD */);
  for (casemate_command unread; sys::call(__NR_recvfrom, CASEMATE_FD_CONTROL, &unread,
                                          sizeof unread, msg_dontwait, nullptr, nullptr) > 0;) {
  }
  for (;;) {
    sys::call(__NR_exit_group, status);
  }
}

void fail(casemate_setup_step step, sys::SysError error, std::uint32_t detail) {
  casemate_failed failed{};
  failed.step = step;
  failed.error = static_cast<std::uint32_t>(error.number);
  failed.detail = detail;
  if (error.call != nullptr) {
    for (std::size_t i = 0; i + 1 < sizeof failed.call && error.call[i] != 0; ++i) {
      failed.call[i] = error.call[i];
    }
  }
  send(failed, CASEMATE_EVENT_FAILED);
  exit_process(1);
}

} // namespace casemate::vmm
