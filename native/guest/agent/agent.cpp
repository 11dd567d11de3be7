// The agent of casemate in a Linux guest. It runs in one of two ways:
//
//   as process 1, by rdinit=: where the initial root has an /init, that one becomes process
//   1, and the agent its child; else the agent sets the guest up and is its init;
//
//   casemate-agent --listen <path>: at a Unix socket, in any system. That is how it is tested
//   where there is no guest, and it needs no rights for that.
//
// Each request is served by a process of its own, forked for it: so code that serves one may
// wait, and what one request breaks no other one sees.
#include "guest/agent/command.hpp"
#include "guest/agent/file.hpp"
#include "guest/agent/guest.hpp"
#include "guest/agent/stream.hpp"
#include "guest/agent/text.hpp"
#include "sys/fd.hpp"
#include "sys/start.hpp"
#include "sys/syscall.hpp"

#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

namespace casemate::agent {

namespace {

[[noreturn]] void end_process(int status) {
  for (;;) {
    sys::call(__NR_exit_group, status);
  }
}

constexpr std::uint64_t signal_set(std::initializer_list<int> signals) {
  std::uint64_t set = 0;
  for (const int signal : signals) {
    set |= 1ull << (signal - 1);
  }
  return set;
}

/// 0: at a Unix socket.
using Role = std::uint32_t;

/// Requests that wait to be accepted.
constexpr int backlog = 128;

class Agent {
public:
  explicit Agent(Role role) : role_(role) {}

  /// In this mount namespace requests are served: in its root as it is by then.
  void stay_in(sys::Fd mounts) { mounts_ = std::move(mounts); }
  long listen_at(std::string_view path);

  [[noreturn]] void serve();

private:
  bool announce();
  void accept_request();
  [[noreturn]] void serve_request(int connection);
  void power_off(Stream& stream) const;
  void hear_signal();

  Role role_;
  sys::Fd mounts_;
  sys::Fd listening_;
  sys::Fd signals_;
  /// To the host, which knows by it that the agent lives.
  sys::Fd hello_;
};

/// One in each process that serves a request, and too big for the stack.
constinit Stream request_stream;

[[noreturn]] void Agent::serve() {
  // Those that an init gets from `poweroff` and `reboot`; no other agent is to be ended so.
  const std::uint64_t heard = role_ == CASEMATE_AGENT_INIT
                                  ? signal_set({SIGCHLD, SIGTERM, SIGINT, SIGUSR1, SIGUSR2})
                                  : signal_set({SIGCHLD});
  sys::call(__NR_rt_sigprocmask, SIG_BLOCK, &heard, nullptr, sizeof heard);
  signals_.reset(
      static_cast<int>(sys::call(__NR_signalfd4, -1, &heard, sizeof heard, SFD_CLOEXEC)));
  const struct { std::uint64_t handler, flags, restorer, mask; } ignore{1 /* SIG_IGN */, 0, 0, 0};
  sys::call(__NR_rt_sigaction, SIGPIPE, &ignore, nullptr, sizeof ignore.mask);

  int patience = 200; // attempts in quick succession
  for (;;) {
    const bool announced = role_ == 0 || hello_ || announce();
    pollfd waited[] = {{listening_.get(), POLLIN, 0}, {signals_.get(), POLLIN, 0}};
    // The guest's own init may be about to load the driver.
    const int pause_ms = announced ? -1 : patience > 0 ? 10 : 500;
    patience -= patience > 0 ? 1 : 0;
    if (sys::call(__NR_poll, waited, std::size(waited), pause_ms) <= 0) {
      continue;
    }
    if (waited[1].revents != 0) {
      hear_signal();
    }
    if (waited[0].revents != 0) {
      accept_request();
    }
  }
}

long Agent::listen_at(std::string_view path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return -ENAMETOOLONG;
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  listening_.reset(
      static_cast<int>(sys::call(__NR_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)));
  const long error = sys::call(__NR_bind, listening_.get(), &address, sizeof address);
  return error < 0 ? error : sys::call(__NR_listen, listening_.get(), backlog);
}

/// Listens, then says so: the host connects only when it has heard.
bool Agent::announce() {
  if (!listening_) {
    sys::Fd socket{
        static_cast<int>(sys::call(__NR_socket, AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0))};
    sockaddr_vm address{};
    address.svm_family = AF_VSOCK;
    address.svm_cid = VMADDR_CID_ANY;
    address.svm_port = CASEMATE_AGENT_PORT;
    if (!socket || sys::call(__NR_bind, socket.get(), &address, sizeof address) < 0 ||
        sys::call(__NR_listen, socket.get(), backlog) < 0) {
      return false;
    }
    listening_ = std::move(socket);
  }
  sys::Fd socket{static_cast<int>(sys::call(__NR_socket, AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0))};
  sockaddr_vm host{};
  host.svm_family = AF_VSOCK;
  host.svm_cid = VMADDR_CID_HOST;
  host.svm_port = CASEMATE_AGENT_PORT;
  if (!socket || sys::call(__NR_connect, socket.get(), &host, sizeof host) < 0) {
    return false;
  }
  request_stream.open(socket.get());
  const casemate_agent_hello hello{CASEMATE_AGENT_MAGIC, CASEMATE_AGENT_VERSION, role_};
  if (!request_stream.send(CASEMATE_AGENT_HELLO, 0, hello)) {
    return false;
  }
  hello_ = std::move(socket);
  return true;
}

void Agent::accept_request() {
  const sys::Fd connection{
      static_cast<int>(sys::call(__NR_accept4, listening_.get(), nullptr, nullptr, SOCK_CLOEXEC))};
  if (!connection) {
    return;
  }
  const long pid = sys::call(__NR_fork);
  if (pid == 0) {
    serve_request(connection.get());
  }
  if (pid < 0) {
    request_stream.open(connection.get());
    request_stream.fail("fork", pid);
  }
}

void Agent::serve_request(int connection) {
  listening_.reset();
  signals_.reset();
  hello_.reset();
  // The guest's own init goes on to another root, and covers the one that this process was
  // born in. To enter a mount namespace, be it one's own, is to go to its uppermost root.
  if (mounts_) {
    sys::call(__NR_setns, mounts_.get(), CLONE_NEWNS);
    mounts_.reset();
  }
  request_stream.open(connection);
  Frame request;
  if (request_stream.receive(request)) {
    switch (request.type) {
    case CASEMATE_AGENT_EXEC:
      run_command(request_stream, request.payload);
      break;
    case CASEMATE_AGENT_READ:
      read_file(request_stream, request.payload);
      break;
    case CASEMATE_AGENT_WRITE:
      write_file(request_stream, request.payload);
      break;
    case CASEMATE_AGENT_POWER_OFF:
      power_off(request_stream);
      break;
    default:
      break;
    }
    request_stream.finish();
  }
  end_process(0);
}

void Agent::power_off(Stream& stream) const {
  if (role_ != CASEMATE_AGENT_INIT) {
    stream.fail("reboot", EPERM); // the guest's own init has to know
    return;
  }
  stream.send(CASEMATE_AGENT_EXITED, 0, casemate_agent_exited{});
  sys::call(__NR_kill, 1, SIGUSR2);
}

void Agent::hear_signal() {
  signalfd_siginfo info{};
  sys::call(__NR_read, signals_.get(), &info, sizeof info);
  switch (info.ssi_signo) {
  case SIGUSR1:
  case SIGUSR2:
    end_guest(Ending::PowerOff);
  case SIGTERM:
  case SIGINT:
    end_guest(Ending::Restart);
  default:
    // One signal may stand for many ends; as init, also of processes that others left behind.
    while (sys::call(__NR_wait4, -1, nullptr, WNOHANG, nullptr) > 0) {
    }
  }
}

/// This mount namespace, by a procfs that is there for a moment only: the guest's init will
/// want to mount its own.
sys::Fd mount_namespace() {
  constexpr const char* where = "/casemate/proc";
  sys::call(__NR_mkdir, where, 0700);
  sys::call(__NR_mount, "proc", where, "proc", 0, nullptr);
  sys::Fd mounts{
      static_cast<int>(sys::call(__NR_open, "/casemate/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC))};
  sys::call(__NR_umount2, where, MNT_DETACH);
  sys::call(__NR_rmdir, where);
  return mounts;
}

/// Leaves process 1 to `init`, and goes on as a child of it.
void make_way_for(const char* init, char** arguments, char** variables) {
  const long pid = sys::call(__NR_fork);
  if (pid != 0) {
    arguments[0] = const_cast<char*>(init);
    const long error = sys::call(__NR_execve, init, arguments, variables);
    complain(view(init), error);
    end_process(1);
  }
  sys::call(__NR_setsid);
  // systemd ends all processes when it leaves an initial root, but for those so marked.
  arguments[0][0] = '@';
}

[[noreturn]] void start_as_first(char** arguments, char** variables) {
  load_modules();
  if (sys::call(__NR_access, "/init", 1 /* X_OK */) < 0) {
    static BootWords words = set_up_guest();
    if (words.init.length() == 0) {
      Agent(CASEMATE_AGENT_INIT).serve();
    }
    make_way_for(words.init.c_str(), arguments, variables);
    Agent(CASEMATE_AGENT_BESIDE).serve();
  }
  sys::Fd mounts = mount_namespace();
  make_way_for("/init", arguments, variables);
  Agent agent(CASEMATE_AGENT_BESIDE);
  agent.stay_in(std::move(mounts));
  agent.serve();
}

} // namespace

} // namespace casemate::agent

void casemate_main(const unsigned long* stack, const casemate::sys::Instant* /* started */) {
  using namespace casemate;
  const auto count = static_cast<int>(stack[0]);
  auto** arguments = reinterpret_cast<char**>(const_cast<unsigned long*>(stack + 1));
  if (count == 3 && agent::view(arguments[1]) == "--listen") {
    agent::Agent agent(0);
    const auto path = agent::view(arguments[2]);
    if (const long error = agent.listen_at(path); error < 0) {
      agent::complain(path, error);
      agent::end_process(1);
    }
    agent.serve();
  }
  if (sys::call(__NR_getpid) == 1) {
    agent::start_as_first(arguments, arguments + count + 1);
  }
  constexpr std::string_view usage =
      "casemate-agent is process 1 of a guest, or takes --listen <path>\n";
  sys::call(__NR_write, 2, usage.data(), usage.size());
  agent::end_process(2);
}
