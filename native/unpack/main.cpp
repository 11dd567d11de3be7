// casemate-unpack: takes the kernel out of a bzImage, in a jail like a monitor's. A
// program of its own, so that the monitor holds none of these libraries; and linked with
// libc, which they need.
#include "jail/landlock.hpp"
#include "jail/seccomp.hpp"
#include "sys/syscall.hpp"
#include "unpack/payload.hpp"
#include "vmm/wire.h"

#include <linux/mman.h>
#include <linux/prctl.h>
#include <poll.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <span>
#include <string_view>

namespace casemate::unpack {

namespace {

using jail::seccomp::Rule;

constexpr std::uint32_t control[] = {CASEMATE_FD_CONTROL};
constexpr std::uint32_t image[] = {CASEMATE_UNPACK_FD_IMAGE};
constexpr std::uint32_t output[] = {CASEMATE_UNPACK_FD_OUTPUT};
constexpr std::uint32_t data_pages[] = {PROT_READ | PROT_WRITE};

/// Memory, one file to read, one to write; the control socket is not needed any more once
/// it has been let run.
constexpr auto rules = [] {
  return std::array{Rule{__NR_pread64, 0, image},
                    Rule{__NR_write, 0, output},
                    Rule{__NR_sendto, 0, control},
                    Rule{__NR_recvfrom, 0, control},
                    Rule{__NR_mmap, 2, data_pages},
                    Rule{__NR_mremap},
                    Rule{__NR_munmap},
                    Rule{__NR_brk},
                    Rule{__NR_getrandom}, // of malloc
                    Rule{__NR_exit_group}};
};
constexpr auto filter = jail::seccomp::assemble<rules, SECCOMP_RET_KILL_PROCESS>();

[[noreturn]] void end(Status status) {
  for (;;) {
    sys::call(__NR_exit_group, status);
  }
}

void check(sys::SysError error) {
  if (error) {
    end(CASEMATE_UNPACK_SYSTEM);
  }
}

class ImageFile : public Image {
public:
  explicit ImageFile(std::uint64_t size) : size_(size) {}

  std::uint64_t size() const override { return size_; }

  bool read_at(std::uint64_t offset, std::span<std::byte> to) const override {
    while (!to.empty()) {
      const long got =
          sys::call_retry(__NR_pread64, CASEMATE_UNPACK_FD_IMAGE, to.data(), to.size(), offset);
      if (got <= 0) {
        return false;
      }
      to = to.subspan(static_cast<std::size_t>(got));
      offset += static_cast<std::uint64_t>(got);
    }
    return true;
  }

private:
  std::uint64_t size_;
};

class OutputFile : public Output {
  bool store(std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const long put =
          sys::call_retry(__NR_write, CASEMATE_UNPACK_FD_OUTPUT, bytes.data(), bytes.size());
      if (put <= 0) {
        return false;
      }
      bytes = bytes.subspan(static_cast<std::size_t>(put));
    }
    return true;
  }
};

std::uint64_t size_of_image() {
  struct stat status {};
  check(sys::check("fstat", sys::call(__NR_fstat, CASEMATE_UNPACK_FD_IMAGE, &status)));
  return static_cast<std::uint64_t>(status.st_size);
}

/// Ends with the process that launched it, also where that has gone already.
void end_with_parent() {
  check(sys::check("prctl", sys::call(__NR_prctl, PR_SET_PDEATHSIG, 9 /* SIGKILL */, 0, 0, 0)));
  pollfd socket{CASEMATE_FD_CONTROL, 0, 0};
  if (sys::call(__NR_poll, &socket, 1, 0) == 1 && (socket.revents & POLLHUP) != 0) {
    end(CASEMATE_UNPACK_SYSTEM);
  }
}

void confine(std::span<char* const> layers) {
  const auto has = [&](std::string_view name) {
    return std::ranges::any_of(layers, [&](const char* each) { return name == each; });
  };
  if (has("noNewPrivs")) {
    check(sys::check("prctl", sys::call(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)));
  }
  if (has("landlock")) {
    check(jail::landlock_deny_all());
  }
  if (has("seccomp")) {
    check(jail::seccomp::install(filter));
  }
}

/// As a monitor does: Node looks at the jail from outside before anything hostile is read.
void await_run() {
  constexpr int no_signal = 0x4000; // MSG_NOSIGNAL
  const casemate_event jailed{CASEMATE_EVENT_JAILED, sizeof jailed};
  sys::call_retry(__NR_sendto, CASEMATE_FD_CONTROL, &jailed, sizeof jailed, no_signal, nullptr, 0);
  casemate_command command{};
  const long size = sys::call_retry(__NR_recvfrom, CASEMATE_FD_CONTROL, &command, sizeof command, 0,
                                    nullptr, nullptr);
  if (size != sizeof command || command.type != CASEMATE_COMMAND_RUN) {
    end(CASEMATE_UNPACK_SYSTEM);
  }
}

} // namespace

} // namespace casemate::unpack

int main(int count, char** arguments) {
  using namespace casemate::unpack;
  const ImageFile image(size_of_image());
  end_with_parent();
  confine(std::span(arguments, static_cast<std::size_t>(count)));
  await_run();
  OutputFile output;
  end(unpack_kernel(image, output));
}
