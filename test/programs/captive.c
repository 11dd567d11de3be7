/*
 * Stands in for a monitor that its guest has taken over, in whatever jail a test leaves it.
 *
 *   captive victim <name>                         listens as <name> in the abstract namespace
 *   captive attack <pid> <image> <name> <secret>  tries everything on that process: a line for each
 *                                                 try, with its name, and its errno or 0
 *
 * Both speak on descriptor 1, say first that they have begun, and end when that hangs up.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile char secret[64] = "in the memory of one VM";

static void say(const char* what, long result) {
  char line[128];
  int size = snprintf(line, sizeof line, "%s %d\n", what, result < 0 ? errno : 0);
  if (write(1, line, (size_t)size) != size) {
    exit(1);
  }
}

static int abstract(struct sockaddr_un* address, const char* name) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  strncpy(address->sun_path + 1, name, sizeof address->sun_path - 2);
  return (int)(sizeof(sa_family_t) + 1 + strlen(name));
}

static int wait_for_the_end(void) {
  char byte;
  while (read(1, &byte, 1) > 0) {
  }
  return 0;
}

static int victim(const char* name) {
  struct sockaddr_un address;
  int length = abstract(&address, name);
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  say("socket", fd);
  say("bind", bind(fd, (struct sockaddr*)&address, (socklen_t)length));
  say("listen", listen(fd, 8));
  char line[64];
  int size = snprintf(line, sizeof line, "secret %lu\n", (unsigned long)&secret);
  if (write(1, line, (size_t)size) != size) {
    return 1;
  }
  return wait_for_the_end();
}

static void attack(pid_t pid, const char* image, const char* name, unsigned long at) {
  char path[64];
  char bytes[16];
  say("signal", kill(pid, SIGCONT));
  say("exists", kill(pid, 0));
  say("trace", ptrace(PTRACE_SEIZE, pid, 0, 0));
  struct iovec here = {bytes, sizeof bytes};
  struct iovec there = {(void*)at, sizeof bytes};
  say("readMemory", process_vm_readv(pid, &here, 1, &there, 1, 0));
  say("writeMemory", process_vm_writev(pid, &here, 1, &there, 1, 0));
  snprintf(path, sizeof path, "/proc/%d/mem", (int)pid);
  say("openMemory", open(path, O_RDWR | O_CLOEXEC));
  snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
  say("listDescriptors", open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  long pidfd = syscall(SYS_pidfd_open, pid, 0);
  say("takeDescriptor", pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd, pidfd, 1, 0));
  say("readImage", open(image, O_RDONLY | O_CLOEXEC));
  say("writeImage", open(image, O_WRONLY | O_CLOEXEC));
  struct sockaddr_un address;
  int length = abstract(&address, name);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  say("connect", connect(fd, (struct sockaddr*)&address, (socklen_t)length));
}

int main(int count, char** arguments) {
  say("begun", 0);
  if (count == 3 && strcmp(arguments[1], "victim") == 0) {
    return victim(arguments[2]);
  }
  if (count == 6 && strcmp(arguments[1], "attack") == 0) {
    attack(atoi(arguments[2]), arguments[3], arguments[4], strtoul(arguments[5], NULL, 10));
    say("done", 0);
    return wait_for_the_end();
  }
  return 2;
}
