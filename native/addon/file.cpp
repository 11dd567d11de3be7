#include "addon/file.hpp"

#include "addon/errors.hpp"
#include "addon/memfd.hpp"

#include <fcntl.h>
#include <linux/fs.h>
#include <string>
#include <string_view>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

namespace casemate::addon {

namespace {

/// Nobody changes, shrinks or grows it any more.
constexpr std::uint32_t all_seals =
    F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | 0x10 /* F_SEAL_FUTURE_WRITE */;

/// fcntl(2). The lock is the open file's, wherever that goes: to the monitor, with which it
/// ends. Where another one has it: EAGAIN.
sys::SysError lock(int fd, bool is_writable) {
  struct flock all {};
  all.l_type = is_writable ? F_WRLCK : F_RDLCK;
  // A monitor's io_uring is taken apart behind its end, and its files with it: that one has
  // gone is no reason to refuse the next one.
  constexpr int tries = 25;
  constexpr struct { long seconds, nanoseconds; } pause{0, 2'000'000};
  long result = 0;
  for (int i = 0; i < tries; ++i) {
    result = sys::call(__NR_fcntl, fd, F_OFD_SETLK, &all);
    if (result != -EAGAIN) {
      break;
    }
    sys::call(__NR_nanosleep, &pause, nullptr);
  }
  return sys::check("fcntl(F_OFD_SETLK)", result);
}

/// Whether it is open for what the guest may do.
sys::SysError check_access(int fd, bool is_writable) {
  const long flags = sys::call(__NR_fcntl, fd, F_GETFL);
  const bool is_enough =
      (flags & O_ACCMODE) == O_RDWR || (!is_writable && (flags & O_ACCMODE) == O_RDONLY);
  return sys::check("fcntl(F_GETFL)", flags < 0 || is_enough ? flags : -EBADF);
}

} // namespace

void set_label(Napi::Env env, int fd, const std::string& label) {
  check(env,
        sys::check("fsetxattr(security.selinux)", sys::call(__NR_fsetxattr, fd, label_attribute,
                                                            label.c_str(), label.size() + 1, 0)));
}

sys::SysError label_sockets(const std::string& label) {
  const long fd = sys::call(__NR_open, "/proc/thread-self/attr/sockcreate", O_WRONLY | O_CLOEXEC);
  const sys::Fd attribute(fd < 0 ? -1 : static_cast<int>(fd));
  // With its NUL: a lone one is no label.
  return attribute ? sys::check("setsockcreatecon", sys::call(__NR_write, attribute.get(),
                                                              label.c_str(), label.size() + 1))
                   : sys::check("open", fd);
}

Napi::Function File::define(Napi::Env env) {
  return DefineClass(
      env, "File",
      {InstanceAccessor<&File::size>("size"), InstanceMethod<&File::seal>("seal"),
       InstanceMethod<&File::lease>("lease"), InstanceMethod<&File::identity>("identity"),
       InstanceMethod<&File::context>("context"), InstanceMethod<&File::set_context>("setContext"),
       InstanceMethod<&File::close>("close")});
}

/// new File(path | bytes), new File(bytes, 'kept'), new File(path | fd, 'disk' |
/// 'writable-disk'), new File(path, 'stream', label?), new File(path, 'leases'), new File(file |
/// fd, 'copy'); new File(0) is empty, and not sealed yet
File::File(const Napi::CallbackInfo& info) : Napi::ObjectWrap<File>(info) {
  Napi::Env env = info.Env();
  const std::string kind = info[1].IsString() ? info[1].As<Napi::String>().Utf8Value() : "";
  if (info[0].IsTypedArray()) {
    fd_ = make_memfd(env, "casemate", info[0], all_seals);
    size_ = static_cast<double>(info[0].As<Napi::Uint8Array>().ByteLength());
    is_kept_ = !kind.empty();
    if (is_kept_) {
      reopen_read_only(env);
    }
  } else if (kind == "copy") {
    copy(env, info[0]);
  } else if (kind == "leases") {
    open(env, info[0].As<Napi::String>(), O_RDWR | O_NOFOLLOW);
  } else if (kind == "stream") {
    connect(env, info[0].As<Napi::String>(), label_of(info[2]));
  } else if (!kind.empty()) {
    open_disk(env, info[0], kind == "writable-disk");
  } else if (info[0].IsString()) {
    open(env, info[0].As<Napi::String>(), O_RDONLY);
  } else {
    fd_ = make_memfd(env, "casemate", info[0], 0);
    is_kept_ = true;
  }
}

/// Of another one, or of a descriptor: the same open file, and its locks.
void File::copy(Napi::Env env, const Napi::Value& source) {
  const int fd = source.IsObject() ? File::Unwrap(source.As<Napi::Object>())->fd_.get()
                                   : source.As<Napi::Number>().Int32Value();
  const long copied = sys::call(__NR_fcntl, fd, F_DUPFD_CLOEXEC, 3);
  check(env, sys::check("fcntl(F_DUPFD_CLOEXEC)", copied));
  fd_.reset(static_cast<int>(copied));
}

/// open(2)
void File::open(Napi::Env env, const std::string& path, int flags) {
  // Without O_NONBLOCK the open of a FIFO would wait for its writer.
  long opened = sys::call(__NR_open, path.c_str(), flags | O_NONBLOCK | O_CLOEXEC);
  check(env, sys::check("open", opened), path.c_str());
  fd_.reset(static_cast<int>(opened));
  note_size(env, path.c_str());
}

void File::open_disk(Napi::Env env, const Napi::Value& source, bool is_writable) {
  if (source.IsString()) {
    // O_EXCL is for block devices: nobody writes to one that is mounted.
    open(env, source.As<Napi::String>(), is_writable ? O_RDWR | O_EXCL : O_RDONLY);
  } else {
    const long copied =
        sys::call(__NR_fcntl, source.As<Napi::Number>().Int32Value(), F_DUPFD_CLOEXEC, 0);
    check(env, sys::check("fcntl(F_DUPFD_CLOEXEC)", copied));
    fd_.reset(static_cast<int>(copied));
    check(env, check_access(fd_.get(), is_writable));
    note_size(env, nullptr);
  }
  struct stat status {};
  check(env, sys::check("fstat", sys::call(__NR_fstat, fd_.get(), &status)));
  if (S_ISBLK(status.st_mode)) {
    std::uint64_t size = 0;
    check(env,
          sys::check("ioctl(BLKGETSIZE64)", sys::call(__NR_ioctl, fd_.get(), BLKGETSIZE64, &size)));
    size_ = static_cast<double>(size);
  }
  if (size_ >= 0) {
    check(env, lock(fd_.get(), is_writable));
  }
}

/// unix(7), SOCK_STREAM. The path is short enough for it.
void File::connect(Napi::Env env, const std::string& path, const std::string& label) {
  check(env, labelled(label, [this] {
          const long made =
              sys::call(__NR_socket, AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
          fd_.reset(made < 0 ? -1 : static_cast<int>(made));
          return sys::check("socket", made);
        }));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  // At once, or EAGAIN: whoever listens there has too many others to see to.
  check(env,
        sys::check("connect", sys::call_retry(__NR_connect, fd_.get(), &address, sizeof address)),
        path.c_str());
}

/// fstat(2)
void File::note_size(Napi::Env env, const char* path) {
  struct stat status {};
  check(env, sys::check("fstat", sys::call(__NR_fstat, fd_.get(), &status)), path);
  if (S_ISREG(status.st_mode)) {
    size_ = static_cast<double>(status.st_size);
  }
}

/// What many launches share is read by all of them, and the right to write would be asked for
/// with its descriptor, seals or not: under an SELinux label it would not arrive. open(2)
void File::reopen_read_only(Napi::Env env) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd_.get());
  const long opened = sys::call(__NR_open, path.c_str(), O_RDONLY | O_CLOEXEC);
  check(env, sys::check("open", opened), path.c_str());
  fd_.reset(static_cast<int>(opened));
}

/// seal(): what is in it by now, nobody changes any more; fcntl(2), F_ADD_SEALS
void File::seal(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  check(env,
        sys::check("fcntl(F_ADD_SEALS)", sys::call(__NR_fcntl, fd_.get(), F_ADD_SEALS, all_seals)));
  note_size(env, nullptr);
  reopen_read_only(env);
}

/// lease(byte, shared): whether this open file has a lock on that byte now, until it ends
/// wherever it was taken to. fcntl(2), F_OFD_SETLK
Napi::Value File::lease(const Napi::CallbackInfo& info) {
  struct flock byte {};
  byte.l_type = info[1].As<Napi::Boolean>() ? F_RDLCK : F_WRLCK;
  byte.l_start = info[0].As<Napi::Number>().Int64Value();
  byte.l_len = 1;
  const long result = sys::call(__NR_fcntl, fd_.get(), F_OFD_SETLK, &byte);
  if (result != -EAGAIN && result != -EACCES) {
    check(info.Env(), sys::check("fcntl(F_OFD_SETLK)", result));
  }
  return Napi::Boolean::New(info.Env(), result == 0);
}

/// identity(): numbers of its device and inode, as text; fstat(2)
Napi::Value File::identity(const Napi::CallbackInfo& info) {
  struct stat status {};
  check(info.Env(), sys::check("fstat", sys::call(__NR_fstat, fd_.get(), &status)));
  auto numbers = Napi::Array::New(info.Env(), 2);
  numbers.Set(0U, Napi::String::New(info.Env(), std::to_string(status.st_dev)));
  numbers.Set(1U, Napi::String::New(info.Env(), std::to_string(status.st_ino)));
  return numbers;
}

/// context(): its SELinux label; fgetxattr(2)
Napi::Value File::context(const Napi::CallbackInfo& info) {
  char text[4096]; // the kernel has none longer than a page
  const long size = sys::call(__NR_fgetxattr, fd_.get(), label_attribute, text, sizeof text);
  check(info.Env(), sys::check("fgetxattr(security.selinux)", size));
  const std::string_view label(text, static_cast<std::size_t>(size));
  return Napi::String::New(info.Env(), std::string(label.substr(0, label.find('\0'))));
}

/// setContext(context)
void File::set_context(const Napi::CallbackInfo& info) {
  set_label(info.Env(), fd_.get(), info[0].As<Napi::String>());
}

sys::Fd File::take() {
  return is_kept_ ? sys::Fd(static_cast<int>(sys::call(__NR_fcntl, fd_.get(), F_DUPFD_CLOEXEC, 3)))
                  : std::move(fd_);
}

/// In bytes; -1 where it is no regular file, nor a disk.
Napi::Value File::size(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), size_);
}

void File::close(const Napi::CallbackInfo&) { fd_.reset(); }

} // namespace casemate::addon
