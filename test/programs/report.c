/*
 * Says what it finds itself to be, as JSON on descriptor 3 (or the one that its first
 * argument names), then waits there to be told to end. What /proc can show from outside
 * is not in here.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

static char text[65536];
static size_t length;

__attribute__((format(printf, 1, 2))) static void add(const char* format, ...) {
  __builtin_va_list list;
  __builtin_va_start(list, format);
  length += (size_t)vsnprintf(text + length, sizeof text - length, format, list);
  __builtin_va_end(list);
}

/* Tests pass plain words: nothing in here needs escaping. */
static void add_strings(const char* name, char** strings) {
  add("\"%s\":[", name);
  for (char** each = strings; *each != NULL; ++each) {
    add("%s\"%s\"", each == strings ? "" : ",", *each);
  }
  add("],");
}

static void add_descriptors(void) {
  const char* separator = "";
  add("\"descriptors\":[");
  for (int fd = 0; fd < 1024; ++fd) {
    struct stat status;
    if (fstat(fd, &status) == 0) {
      add("%s{\"fd\":%d,\"device\":%lu,\"inode\":%lu,\"closeOnExec\":%d}", separator, fd,
          (unsigned long)status.st_dev, (unsigned long)status.st_ino, fcntl(fd, F_GETFD));
      separator = ",";
    }
  }
  add("],");
}

static void add_limits(void) {
  add("\"limits\":[");
  for (int resource = 0; resource < RLIM_NLIMITS; ++resource) {
    struct rlimit limit;
    getrlimit(resource, &limit);
    /* As strings: they are larger than a number in JSON. */
    add("%s[\"%lu\",\"%lu\"]", resource == 0 ? "" : ",", (unsigned long)limit.rlim_cur,
        (unsigned long)limit.rlim_max);
  }
  add("],");
}

static void add_signals(void) {
  sigset_t mask;
  sigprocmask(SIG_BLOCK, NULL, &mask);
  int blocked = 0;
  for (int signal = 1; signal < 65; ++signal) {
    blocked += sigismember(&mask, signal) == 1;
  }
  add("\"blockedSignals\":%d,\"handledSignals\":[", blocked);
  const char* separator = "";
  for (int signal = 1; signal < 65; ++signal) {
    struct sigaction action;
    if (sigaction(signal, NULL, &action) == 0 && action.sa_handler != SIG_DFL) {
      add("%s%d", separator, signal);
      separator = ",";
    }
  }
  add("],");
}

static void add_file(const char* name, const char* path) {
  int fd = open(path, O_RDONLY);
  add("\"%s\":\"%s\",", name, fd < 0 ? strerrorname_np(errno) : "open");
  if (fd >= 0) {
    close(fd);
  }
}

/* What may be made of each kind of namespace in the user namespace that this is in. */
static void add_namespace_limits(void) {
  static const char* const kinds[] = {"user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"};
  add("\"maxNamespaces\":{");
  for (int i = 0; i < 8; ++i) {
    char path[64];
    snprintf(path, sizeof path, "/proc/sys/user/max_%s_namespaces", kinds[i]);
    FILE* file = fopen(path, "r");
    long value = -1;
    if (file != NULL && fscanf(file, "%ld", &value) != 1) {
      value = -1;
    }
    if (file != NULL) {
      fclose(file);
    }
    add("%s\"%s\":%ld", i == 0 ? "" : ",", kinds[i], value);
  }
  add("},");
}

static void add_root(void) {
  DIR* root = opendir("/");
  const char* separator = "";
  add("\"root\":[");
  for (struct dirent* entry; root != NULL && (entry = readdir(root)) != NULL;) {
    if (entry->d_name[0] != '.') {
      add("%s\"%s\"", separator, entry->d_name);
      separator = ",";
    }
  }
  add("],");
  if (root != NULL) {
    closedir(root);
  }
}

int main(int argc, char** argv, char** environment) {
  int control = argc > 1 ? atoi(argv[1]) : 3;
  char path[4096];
  struct utsname names;
  add("{");
  add_strings("args", argv);
  add_strings("env", environment);
  add_descriptors();
  add_limits();
  add_signals();
  add_namespace_limits();
  add_root();
  add_file("password", "/etc/passwd");
  add("\"pid\":%d,\"session\":%d,\"group\":%d,", getpid(), getsid(0), getpgrp());
  add("\"cwd\":\"%s\",", getcwd(path, sizeof path) == NULL ? strerrorname_np(errno) : path);
  if (uname(&names) == 0) {
    add("\"hostname\":\"%s\",\"domainname\":\"%s\",", names.nodename, names.domainname);
  } else {
    add("\"hostname\":\"%s\",", strerrorname_np(errno));
  }
  mode_t mask = umask(0);
  umask(mask);
  int death = -1;
  prctl(PR_GET_PDEATHSIG, &death);
  add("\"umask\":%d,\"parentDeath\":%d,\"securebits\":%d,\"dumpable\":%d,", mask, death,
      prctl(PR_GET_SECUREBITS), prctl(PR_GET_DUMPABLE));
  add("\"keyring\":%ld}\n",
      syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0));
  if (length >= sizeof text || write(control, text, length) != (ssize_t)length) {
    return 2;
  }
  return read(control, text, 1) < 0 ? 3 : 7;
}
