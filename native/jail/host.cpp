#include "jail/host.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>

namespace casemate::jail {

sys::SysError Host::open_proc() {
  long fd = sys::call(__NR_open, "/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) {
    return sys::check("open(/proc)", fd);
  }
  proc.reset(static_cast<int>(fd));
  struct statfs filesystem {};
  if (long result = sys::call(__NR_fstatfs, proc.get(), &filesystem); result < 0) {
    return sys::check("fstatfs(/proc)", result);
  }
  if (filesystem.f_type != PROC_SUPER_MAGIC) {
    return {"fstatfs(/proc)", 95 /* EOPNOTSUPP: not a procfs */};
  }
  return {};
}

sys::SysError Host::open_dev() {
  long fd = sys::call(__NR_open, "/dev", O_PATH | O_DIRECTORY | O_CLOEXEC);
  dev.reset(fd < 0 ? -1 : static_cast<int>(fd));
  return sys::check("open(/dev)", fd);
}

ProcPath::ProcPath(long pid, const char* name) {
  char digits[20];
  int count = 0;
  do {
    digits[count++] = static_cast<char>('0' + pid % 10);
    pid /= 10;
  } while (pid > 0);
  char* to = text;
  while (count > 0) {
    *to++ = digits[--count];
  }
  *to++ = '/';
  while (*name != '\0' && to < text + sizeof text - 1) {
    *to++ = *name++;
  }
  *to = '\0';
}

} // namespace casemate::jail
