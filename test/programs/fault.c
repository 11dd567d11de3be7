/*
 * fault <program> [argument...]
 *
 * Runs a program whose every system call asks this one first, by a filter that all which comes of
 * it inherits: a launched monitor from its birth on. The program says on descriptor 3, in a line,
 * which call is to fail and how: "<which> <number> <error>\n"; `which` is `first` for the calls of
 * the next process that is born, `second` for those of the one behind it, `task` for those of the
 * threads that launch; 0 is no call; an
 * error of -9 kills the process at the call instead. It reads on descriptor 4 what came of it,
 * after an empty line: "<calls that were counted> <the one that failed, or -1> <its second
 * argument>\n", which is what an ioctl(2) asks for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { commands = 3, answers = 4, listener_number = 5 };

/* What no program survives, what waits for others to go on, and what cannot fail (close(2) closes
 * whatever it answers) is not asked for. */
#define LET_PASS(number, rest) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, (rest) + 1, 0)

static int install_filter(void) {
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      LET_PASS(SYS_rt_sigreturn, 7),
      LET_PASS(SYS_exit, 6),
      LET_PASS(SYS_exit_group, 5),
      LET_PASS(SYS_futex, 4),
      LET_PASS(SYS_restart_syscall, 3),
      LET_PASS(SYS_close, 2),
      LET_PASS(SYS_getpid, 1),
      LET_PASS(SYS_tgkill, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};
  return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                      SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
                      &program);
}

static struct {
  int of_born; /* or of the threads that launch */
  long number; /* of the call, from 1 on */
  long error;
  int others; /* that are born before it */
  pid_t born; /* the process whose calls are counted */
  long counted;
  long failed;
  unsigned request;
} order;

static pid_t program_pid;

/* Processes that have called before: none of them is the next to be born. */
static unsigned char known[(1 << 22) / 8];

static int is_new(pid_t process) {
  unsigned char* byte = &known[process / 8];
  const unsigned char bit = (unsigned char)(1 << process % 8);
  const int result = (*byte & bit) == 0;
  *byte |= bit;
  return result;
}

/* The process of a thread. */
static pid_t process_of(pid_t thread) {
  char path[64];
  char text[512] = {0};
  snprintf(path, sizeof path, "/proc/%d/status", thread);
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  const ssize_t size = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
  close(fd);
  const char* found = size > 0 ? strstr(text, "\nTgid:") : NULL;
  return found == NULL ? -1 : atoi(found + 6);
}

/* Threads that launch have mounts of their own. */
static int is_task(pid_t thread) {
  char path[64];
  char own[64] = {0};
  char others[64] = {0};
  snprintf(path, sizeof path, "/proc/%d/ns/mnt", thread);
  return readlink(path, own, sizeof own - 1) > 0 &&
         readlink("/proc/self/ns/mnt", others, sizeof others - 1) > 0 && strcmp(own, others) != 0;
}

/* Each is one write(2), and so comes whole. */
static void obey(char* line) {
  if (line[0] == '\n') {
    char text[64];
    const int size =
        snprintf(text, sizeof text, "%ld %ld %u\n", order.counted, order.failed, order.request);
    if (write(answers, text, (size_t)size) != size) {
      exit(1);
    }
    return;
  }
  char* rest = strchr(line, ' ');
  memset(&order, 0, sizeof order);
  order.of_born = strncmp(line, "task", 4) != 0;
  order.others = strncmp(line, "second", 6) == 0;
  order.failed = -1;
  order.number = strtol(rest, &rest, 10);
  order.error = strtol(rest, &rest, 10);
}

static void listen_to_program(void) {
  char line[64];
  struct pollfd said = {commands, POLLIN, 0};
  while (poll(&said, 1, 0) == 1 && (said.revents & POLLIN) != 0) {
    for (size_t size = 0; size < sizeof line - 1; ++size) {
      if (read(commands, line + size, 1) != 1) {
        return;
      }
      if (line[size] == '\n') {
        line[size + 1] = 0;
        obey(line);
        break;
      }
    }
  }
}

/* Whether this call counts, and is the one. */
static int is_ordered(const struct seccomp_notif* asked) {
  const pid_t process = process_of((pid_t)asked->pid);
  if (order.of_born) {
    if (process < 0 || process == program_pid) {
      return 0;
    }
    if (is_new(process) && order.born == 0 && order.others-- == 0) {
      order.born = process;
    }
    if (order.born != process) {
      return 0;
    }
  } else if (process != program_pid || !is_task((pid_t)asked->pid)) {
    return 0;
  }
  ++order.counted;
  return order.counted == order.number;
}

static void serve(int listener) {
  struct seccomp_notif asked;
  struct seccomp_notif_resp answer;
  for (;;) {
    struct pollfd wanted = {listener, POLLIN, 0};
    if (poll(&wanted, 1, -1) < 0 || (wanted.revents & POLLIN) == 0) {
      return; /* nobody is left who could ask */
    }
    memset(&asked, 0, sizeof asked);
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked) != 0) {
      continue;
    }
    memset(&answer, 0, sizeof answer);
    answer.id = asked.id;
    listen_to_program();
    if (is_ordered(&asked)) {
      order.failed = asked.data.nr;
      order.request = (unsigned)asked.data.args[1];
      if (order.error == -9) {
        kill((pid_t)asked.pid, SIGKILL);
        continue;
      }
      answer.error = (int)-order.error;
    } else {
      answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    }
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
  }
}

int main(int count, char** arguments) {
  int to_us[2];
  int to_program[2];
  if (count < 2 || pipe(to_us) != 0 || pipe(to_program) != 0) {
    return 125;
  }
  program_pid = fork();
  if (program_pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* nobody else would answer it */
    dup2(to_us[1], 30);
    dup2(to_program[0], 31);
    close_range(3, 29, 0);
    dup2(30, commands);
    dup2(31, answers);
    close_range(listener_number, 31, 0);
    if (install_filter() == listener_number) {
      /* The first call that asks: by now there is somebody to be asked. It keeps the listener, too.
       */
      fcntl(listener_number, F_SETFD, FD_CLOEXEC);
      execvp(arguments[1], arguments + 1);
    }
    _exit(126);
  }
  const int process = (int)syscall(SYS_pidfd_open, program_pid, 0);
  int listener = -1;
  __u64 none = 0;
  /* Before it is the listener, something else has that number. */
  while ((ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &none) == 0 || errno != ENOENT) &&
         waitpid(program_pid, NULL, WNOHANG) == 0) {
    close(listener);
    listener = (int)syscall(SYS_pidfd_getfd, process, listener_number, 0);
  }
  dup2(to_us[0], 30);
  dup2(to_program[1], 31);
  dup2(listener, 32);
  close_range(3, 29, 0);
  dup2(30, commands);
  dup2(31, answers);
  serve(32);
  int status = 0;
  waitpid(program_pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
