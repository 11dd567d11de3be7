#include "guest/agent/command.hpp"

#include "guest/agent/text.hpp"
#include "guest/agent/user.hpp"
#include "sys/fd.hpp"
#include "sys/syscall.hpp"

#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

namespace casemate::agent {

namespace {

constexpr std::string_view default_path =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command, taken out of its request.
struct Command {
  casemate_agent_exec options{};
  const char* directory = nullptr;
  User user;
  Text<5 + 256> user_variable;
  Text<5 + 4096> home_variable;
  Text<5 + 64> path_variable;
  /// Both end in a null.
  std::array<const char*, CASEMATE_AGENT_MAX_STRINGS + 1> arguments{};
  std::array<const char*, CASEMATE_AGENT_MAX_STRINGS + 4> variables{};

  bool has_tty() const { return (options.flags & CASEMATE_AGENT_EXEC_TTY) != 0; }
};

/// One request in each process, and too big for the stack.
constinit Command command;

bool read_strings(Reader& reader, std::uint32_t count, const char** strings) {
  for (std::uint32_t i = 0; i < count; ++i) {
    strings[i] = reader.string();
    if (strings[i] == nullptr) {
      return false;
    }
  }
  strings[count] = nullptr;
  return true;
}

/// The value of a variable that is set, else null.
const char* value_of(std::string_view name) {
  for (const char* const* at = command.variables.data(); *at != nullptr; ++at) {
    std::string_view value = view(*at);
    if (next(value, '=') == name && value.data() != *at + name.size()) {
      return value.data();
    }
  }
  return nullptr;
}

/// What every program expects to be set, where the request does not set it.
void complete_environment() {
  const char** end = command.variables.data() + command.options.variable_count;
  const auto add = [&](std::string_view name, auto& variable, std::string_view value) {
    if (value_of(name) == nullptr && !value.empty()) {
      variable << name << "=" << value;
      *end++ = variable.c_str();
      *end = nullptr;
    }
  };
  add("PATH", command.path_variable, default_path);
  add("HOME", command.home_variable,
      command.user.home.length() > 0 ? view(command.user.home.c_str()) : "/");
  add("USER", command.user_variable, view(command.user.name.c_str()));
}

/// False: Node does not keep to the protocol. A user that there is not has been told of.
bool read_request(Stream& stream, std::span<const std::byte> request, bool& found) {
  Reader reader(request);
  auto& options = command.options;
  if (!reader.get(options) || options.argument_count == 0 ||
      options.argument_count > CASEMATE_AGENT_MAX_STRINGS ||
      options.variable_count > CASEMATE_AGENT_MAX_STRINGS) {
    return false;
  }
  command.directory = reader.string();
  const char* name = reader.string();
  if (name == nullptr || !read_strings(reader, options.argument_count, command.arguments.data()) ||
      !read_strings(reader, options.variable_count, command.variables.data()) || !reader.at_end()) {
    return false;
  }
  found = true;
  if ((options.flags & CASEMATE_AGENT_EXEC_USER_NAME) != 0) {
    found = find_user(view(name), command.user);
    if (!found) {
      stream.fail("user", ENOENT);
    }
  } else {
    command.user.uid = options.uid;
    command.user.gid = options.gid;
    describe_user(command.user);
  }
  complete_environment();
  return true;
}

// ---- In the child ------------------------------------------------------------

/// What the child could not do. It fits into a pipe's buffer, so it arrives whole.
struct Failure {
  char call[28];
  int error;
};

[[noreturn]] void give_up(int report, const char* call, long error) {
  Failure failure{{}, static_cast<int>(-error)};
  for (std::size_t i = 0; i + 1 < sizeof failure.call && call[i] != 0; ++i) {
    failure.call[i] = call[i];
  }
  sys::call(__NR_write, report, &failure, sizeof failure);
  for (;;) {
    sys::call(__NR_exit_group, 127);
  }
}

/// Signals as every program expects them. SIGPIPE is the one that the agent ignores.
void reset_signals() {
  const struct {
    void* handler;
    unsigned long flags;
    void* restorer;
    std::uint64_t mask;
  } by_default{};
  sys::call(__NR_rt_sigaction, SIGPIPE, &by_default, nullptr, sizeof by_default.mask);
  constexpr std::uint64_t none = 0;
  sys::call(__NR_rt_sigprocmask, SIG_SETMASK, &none, nullptr, sizeof none);
}

/// As execvp(3): a name without a slash is looked for in PATH.
long execute() {
  const char* name = command.arguments[0];
  const auto execve = [](const char* path) {
    return sys::call(__NR_execve, path, command.arguments.data(), command.variables.data());
  };
  for (std::size_t i = 0; name[i] != 0; ++i) {
    if (name[i] == '/') {
      return execve(name);
    }
  }
  const char* path = value_of("PATH");
  std::string_view rest = path != nullptr ? view(path) : default_path;
  long result = -ENOENT;
  while (!rest.empty()) {
    const auto folder = next(rest, ':');
    Text<4096> candidate;
    candidate << (folder.empty() ? "." : folder) << "/" << name;
    const long error = candidate.fits() ? execve(candidate.c_str()) : -ENAMETOOLONG;
    if (error != -ENOENT && error != -ENOTDIR && error != -EACCES && error != -ENAMETOOLONG) {
      return error;
    }
    // One that may not be run matters more than that there is none elsewhere.
    result = error == -EACCES ? error : result;
  }
  return result;
}

/// `streams` become 0, 1 and 2. All other descriptors close themselves.
[[noreturn]] void become_command(const int (&streams)[3], int report) {
  const auto expect = [report](const char* call, long result) {
    if (result < 0) {
      give_up(report, call, result);
    }
  };
  // A process group of its own, for signals; a session, for a terminal.
  expect("setsid", sys::call(__NR_setsid));
  if (command.has_tty()) {
    expect("ioctl(TIOCSCTTY)", sys::call(__NR_ioctl, streams[0], TIOCSCTTY, 0));
  }
  for (int number = 0; number < 3; ++number) {
    expect("dup2", sys::call(__NR_dup2, streams[number], number));
  }
  reset_signals();
  const auto& user = command.user;
  expect("setgroups", sys::call(__NR_setgroups, user.group_count, user.groups.data()));
  expect("setresgid", sys::call(__NR_setresgid, user.gid, user.gid, user.gid));
  expect("setresuid", sys::call(__NR_setresuid, user.uid, user.uid, user.uid));
  // As that user, who may not go everywhere.
  expect("chdir", sys::call(__NR_chdir, command.directory));
  give_up(report, "execve", execute());
}

// ---- In its parent -------------------------------------------------------------

/// A pipe or a terminal's end that bytes come out of.
struct Output {
  std::uint16_t stream = 0;
  sys::Fd fd;
  std::size_t credit = CASEMATE_AGENT_WINDOW;
};

class Process {
public:
  explicit Process(Stream& stream) : stream_(stream) {}
  ~Process();

  bool start();
  /// Until it has ended and all that it wrote has been sent, or nobody listens any more.
  void attend();

private:
  bool open_terminal(sys::Fd (&theirs)[3]);
  bool open_pipes(sys::Fd (&theirs)[3]);
  bool failed(const char* call, long error) {
    stream_.fail(call, error);
    return false;
  }

  bool obey();
  bool take_input(std::span<const std::byte> bytes);
  bool close(std::uint16_t stream);
  bool write_input();
  bool close_input();
  bool read_output(Output& output);
  bool reap();

  Stream& stream_;
  long pid_ = 0;
  bool exited_ = false;
  sys::Fd signals_;
  sys::Fd input_;
  bool input_ends_ = false; // once all that has come is written
  Output outputs_[2]{{CASEMATE_AGENT_STDOUT, {}}, {CASEMATE_AGENT_STDERR, {}}};

  /// What has come of stdin and is not written yet: [first_, last_). Credit keeps it so small.
  std::size_t first_ = 0;
  std::size_t last_ = 0;
  static constinit std::array<std::byte, CASEMATE_AGENT_WINDOW> pending_;
};

constinit std::array<std::byte, CASEMATE_AGENT_WINDOW> Process::pending_{};

/// A process whose Node is gone, or has given it up, has nothing more to do.
Process::~Process() {
  if (pid_ > 0 && !exited_) {
    sys::call(__NR_kill, -pid_, SIGKILL);
  }
}

bool Process::open_terminal(sys::Fd (&theirs)[3]) {
  input_.reset(static_cast<int>(sys::call(__NR_open, "/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)));
  if (!input_) {
    return failed("open(/dev/ptmx)", input_.get());
  }
  const int unlocked = 0;
  if (const long error = sys::call(__NR_ioctl, input_.get(), TIOCSPTLCK, &unlocked); error < 0) {
    return failed("ioctl(TIOCSPTLCK)", error);
  }
  const auto& size = command.options.size;
  const winsize window{size.rows, size.columns, 0, 0};
  sys::call(__NR_ioctl, input_.get(), TIOCSWINSZ, &window);
  outputs_[0].fd.reset(static_cast<int>(sys::call(__NR_fcntl, input_.get(), F_DUPFD_CLOEXEC, 0)));
  outputs_[1].fd.reset();
  // By the descriptor of its other end: there may be no /dev/pts here.
  for (sys::Fd& fd : theirs) {
    fd.reset(static_cast<int>(
        sys::call(__NR_ioctl, input_.get(), TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)));
    if (!fd) {
      return failed("ioctl(TIOCGPTPEER)", fd.get());
    }
  }
  sys::call(__NR_fchown, theirs[0].get(), command.user.uid, -1);
  sys::call(__NR_fcntl, input_.get(), F_SETFL, O_RDWR | O_NONBLOCK);
  return true;
}

bool Process::open_pipes(sys::Fd (&theirs)[3]) {
  sys::Fd* const ours[3] = {&input_, &outputs_[0].fd, &outputs_[1].fd};
  for (int i = 0; i < 3; ++i) {
    int ends[2];
    if (const long error = sys::call(__NR_pipe2, ends, O_CLOEXEC); error < 0) {
      return failed("pipe2", error);
    }
    theirs[i].reset(ends[i == 0 ? 0 : 1]);
    ours[i]->reset(ends[i == 0 ? 1 : 0]);
  }
  sys::call(__NR_fcntl, input_.get(), F_SETFL, O_WRONLY | O_NONBLOCK);
  return true;
}

bool Process::start() {
  constexpr std::uint64_t child = 1ull << (SIGCHLD - 1);
  sys::call(__NR_rt_sigprocmask, SIG_BLOCK, &child, nullptr, sizeof child);
  signals_.reset(
      static_cast<int>(sys::call(__NR_signalfd4, -1, &child, sizeof child, SFD_CLOEXEC)));
  sys::Fd theirs[3];
  if (!(command.has_tty() ? open_terminal(theirs) : open_pipes(theirs))) {
    return false;
  }
  int report[2];
  if (const long error = sys::call(__NR_pipe2, report, O_CLOEXEC); error < 0) {
    return failed("pipe2", error);
  }
  const sys::Fd told(report[0]);
  sys::Fd telling(report[1]);
  pid_ = sys::call(__NR_fork);
  if (pid_ == 0) {
    become_command({theirs[0].get(), theirs[1].get(), theirs[2].get()}, telling.get());
  }
  if (pid_ < 0) {
    return failed("fork", pid_);
  }
  telling.reset();
  Failure failure;
  if (sys::call_retry(__NR_read, told.get(), &failure, sizeof failure) == sizeof failure) {
    return failed(failure.call, failure.error);
  }
  return stream_.send(CASEMATE_AGENT_STARTED, 0,
                      casemate_agent_started{static_cast<std::uint32_t>(pid_)});
}

void Process::attend() {
  while (!exited_ || outputs_[0].fd || outputs_[1].fd) {
    const auto wants = [](const Output& output) {
      return output.credit > 0 ? output.fd.get() : -1;
    };
    // A descriptor that nothing is wanted of is left out: a hang-up is told of, wanted or not.
    pollfd waited[] = {
        {stream_.fd(), POLLIN, 0},
        {signals_.get(), POLLIN, 0},
        {first_ < last_ ? input_.get() : -1, POLLOUT, 0},
        {wants(outputs_[0]), POLLIN, 0},
        {wants(outputs_[1]), POLLIN, 0},
    };
    if (sys::call_retry(__NR_poll, waited, std::size(waited), -1) < 0) {
      return;
    }
    // Output before the end, so that what a process wrote is not later than that it is gone.
    const bool goes_on = (waited[3].revents == 0 || read_output(outputs_[0])) &&
                         (waited[4].revents == 0 || read_output(outputs_[1])) &&
                         (waited[2].revents == 0 || write_input()) &&
                         (waited[1].revents == 0 || reap()) && (waited[0].revents == 0 || obey());
    if (!goes_on) {
      return;
    }
  }
}

bool Process::obey() {
  Frame frame;
  if (!stream_.receive(frame)) {
    return false;
  }
  switch (frame.type) {
  case CASEMATE_AGENT_DATA:
    return take_input(frame.payload);
  case CASEMATE_AGENT_CLOSE:
    return close(frame.stream);
  case CASEMATE_AGENT_CREDIT: {
    casemate_agent_credit credit;
    if (!frame.get(credit)) {
      return false;
    }
    for (Output& output : outputs_) {
      output.credit += output.stream == frame.stream ? credit.bytes : 0;
    }
    return true;
  }
  case CASEMATE_AGENT_SIGNAL: {
    casemate_agent_signal signal;
    if (!frame.get(signal)) {
      return false;
    }
    if (!exited_) {
      sys::call(__NR_kill, -pid_, signal.number);
    }
    return true;
  }
  case CASEMATE_AGENT_RESIZE: {
    casemate_agent_size size;
    if (!frame.get(size)) {
      return false;
    }
    const winsize window{size.rows, size.columns, 0, 0};
    sys::call(__NR_ioctl, input_.get(), TIOCSWINSZ, &window); // tells the foreground by SIGWINCH
    return true;
  }
  default:
    return false;
  }
}

bool Process::take_input(std::span<const std::byte> bytes) {
  if (!input_) { // it reads no more; what was under way is let go
    return stream_.send_credit(CASEMATE_AGENT_STDIN, bytes.size());
  }
  if (first_ > 0) {
    std::memmove(pending_.data(), pending_.data() + first_, last_ - first_);
    last_ -= first_;
    first_ = 0;
  }
  if (bytes.size() > pending_.size() - last_) {
    return false; // more than there is credit for
  }
  std::memcpy(pending_.data() + last_, bytes.data(), bytes.size());
  last_ += bytes.size();
  return write_input();
}

/// As much as it takes now.
bool Process::write_input() {
  while (first_ < last_) {
    const long size =
        sys::call_retry(__NR_write, input_.get(), pending_.data() + first_, last_ - first_);
    if (size == -EAGAIN) {
      return true;
    }
    if (size < 0) { // nobody reads it any more
      const std::size_t dropped = last_ - first_;
      first_ = last_ = 0;
      return stream_.send_credit(CASEMATE_AGENT_STDIN, dropped) && close_input() &&
             stream_.send(CASEMATE_AGENT_CLOSE, CASEMATE_AGENT_STDIN);
    }
    first_ += static_cast<std::size_t>(size);
    if (!stream_.send_credit(CASEMATE_AGENT_STDIN, static_cast<std::size_t>(size))) {
      return false;
    }
  }
  return !input_ends_ || close_input();
}

bool Process::close_input() {
  // A terminal stays open: its end of input is a character.
  if (command.has_tty() && input_ends_ && !exited_) {
    input_ends_ = false;
    constexpr char end_of_transmission = 4;
    sys::call(__NR_write, input_.get(), &end_of_transmission, 1);
    return true;
  }
  input_.reset();
  return true;
}

bool Process::close(std::uint16_t stream) {
  if (stream == CASEMATE_AGENT_STDIN) {
    input_ends_ = true;
    return first_ < last_ || close_input();
  }
  for (Output& output : outputs_) {
    if (output.stream == stream) {
      output.fd.reset();
      if (command.has_tty()) {
        input_.reset(); // a terminal whose screen is gone hangs up
      }
    }
  }
  return true;
}

bool Process::read_output(Output& output) {
  const long size = stream_.pass_on(output.stream, output.fd.get(), output.credit);
  if (size > 0) {
    output.credit -= static_cast<std::size_t>(size);
    return true;
  }
  if (size == -EPIPE) {
    return false;
  }
  if (size == -EAGAIN) {
    return true;
  }
  output.fd.reset(); // 0, or EIO of a terminal that nobody has open any more
  return stream_.send(CASEMATE_AGENT_CLOSE, output.stream);
}

bool Process::reap() {
  signalfd_siginfo info;
  sys::call(__NR_read, signals_.get(), &info, sizeof info);
  int status = 0;
  if (exited_ || sys::call(__NR_wait4, pid_, &status, WNOHANG, nullptr) != pid_) {
    return true;
  }
  exited_ = true;
  casemate_agent_exited exited{};
  if (WIFSIGNALED(status)) {
    exited.signal = static_cast<std::uint32_t>(WTERMSIG(status));
  } else {
    exited.code = static_cast<std::uint32_t>(WEXITSTATUS(status));
  }
  return stream_.send(CASEMATE_AGENT_EXITED, 0, exited);
}

} // namespace

void run_command(Stream& stream, std::span<const std::byte> request) {
  bool found = false;
  if (!read_request(stream, request, found) || !found) {
    return;
  }
  Process process(stream);
  if (process.start()) {
    process.attend();
  }
}

} // namespace casemate::agent
