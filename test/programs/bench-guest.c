/*
 * The guest's end of the rig's bench, and for its network the host's as well.
 *
 *   as /init      says "init" before anything else; then each line that is typed is a command
 *   disk DEVICE   reads and writes it past the guest's cache
 *   serve         listens on port 1
 *   net ADDRESS   talks to what listens there
 *
 * What it measures it prints: "= what number".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { chunk = 1 << 20, total = 64 << 20, page = 4096, operations = 400 };

static char* bytes;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void must(int is_good, const char* what) {
  if (!is_good) {
    perror(what);
    exit(1);
  }
}

static int by_size(const void* left, const void* right) {
  const double difference = *(const double*)left - *(const double*)right;
  return (difference > 0) - (difference < 0);
}

/* The median of what each takes, in microseconds. */
static void show_median(const char* what, double* seconds, int count) {
  qsort(seconds, (size_t)count, sizeof *seconds, by_size);
  printf("= %s %.1f\n", what, seconds[count / 2] * 1e6);
}

/* In MiB a second. */
static void show_rate(const char* what, double since) {
  printf("= %s %.1f\n", what, (double)total / (1 << 20) / (now() - since));
}

static void be_init(void) {
  must(write(1, "init\n", 5) == 5, "write");
  char line[256];
  for (;;) {
    const ssize_t size = read(0, line, sizeof line - 1);
    must(size > 0, "read");
    line[size] = 0;
    const pid_t child = fork();
    if (child == 0) {
      execl("/bin/busybox", "sh", "-c", line, (char*)NULL);
      _exit(127);
    }
    waitpid(child, NULL, 0);
  }
}

static void measure_disk(const char* path) {
  const int disk = open(path, O_RDWR | O_DIRECT);
  must(disk >= 0, path);
  static double took[operations];
  double start = now();
  for (off_t at = 0; at < total; at += chunk) {
    must(pwrite(disk, bytes, chunk, at) == chunk, "pwrite");
  }
  show_rate("write", start);
  start = now();
  for (off_t at = 0; at < total; at += chunk) {
    must(pread(disk, bytes, chunk, at) == chunk, "pread");
  }
  show_rate("read", start);
  for (int i = 0; i < operations; ++i) {
    start = now();
    must(pread(disk, bytes, page, (off_t)(i * 7919 % (total / page)) * page) == page, "pread");
    took[i] = now() - start;
  }
  show_median("read-4k", took, operations);
  for (int i = 0; i < operations; ++i) {
    start = now();
    must(pwrite(disk, bytes, page, (off_t)(i * 7919 % (total / page)) * page) == page, "pwrite");
    must(fdatasync(disk) == 0, "fdatasync");
    took[i] = now() - start;
  }
  show_median("write-4k-flush", took, operations);
}

/* Each connection begins with what it wants: to be sent to, to send, or an echo of each byte. */
static void answer(int peer) {
  char wish;
  must(recv(peer, &wish, 1, 0) == 1, "recv");
  if (wish == 'r') {
    for (size_t sent = 0; sent < total; sent += chunk) {
      must(send(peer, bytes, chunk, 0) == chunk, "send");
    }
  } else {
    size_t size = 0;
    ssize_t count;
    while ((count = recv(peer, bytes, chunk, 0)) > 0) {
      size += (size_t)count;
      if (wish == 'e' || size == total) {
        must(send(peer, bytes, 1, 0) == 1, "send");
      }
    }
  }
  close(peer);
}

static void serve(void) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  const int on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(1)};
  must(bind(listener, (const struct sockaddr*)&address, sizeof address) == 0, "bind");
  must(listen(listener, 8) == 0, "listen");
  printf("listening\n");
  fflush(stdout);
  for (;;) {
    answer(accept(listener, NULL, NULL));
  }
}

static int ask(const char* text, char wish) {
  const int peer = socket(AF_INET, SOCK_STREAM, 0);
  const int on = 1;
  setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(1)};
  inet_pton(AF_INET, text, &address.sin_addr);
  must(connect(peer, (const struct sockaddr*)&address, sizeof address) == 0, "connect");
  must(send(peer, &wish, 1, 0) == 1, "send");
  return peer;
}

static void measure_network(const char* address) {
  int peer = ask(address, 's');
  double start = now();
  for (size_t sent = 0; sent < total; sent += chunk) {
    must(send(peer, bytes, chunk, 0) == chunk, "send");
  }
  must(recv(peer, bytes, 1, 0) == 1, "recv");
  show_rate("send", start);
  close(peer);
  start = now();
  peer = ask(address, 'r');
  ssize_t size = 0;
  for (ssize_t count; (count = recv(peer, bytes, chunk, 0)) > 0;) {
    size += count;
  }
  must(size == total, "recv");
  show_rate("receive", start);
  close(peer);
  peer = ask(address, 'e');
  static double took[operations];
  for (int i = 0; i < operations; ++i) {
    start = now();
    must(send(peer, bytes, 1, 0) == 1, "send");
    must(recv(peer, bytes, 1, 0) == 1, "recv");
    took[i] = now() - start;
  }
  show_median("round-trip", took, operations);
}

int main(int count, char** arguments) {
  if (getpid() == 1) {
    be_init();
  }
  must(posix_memalign((void**)&bytes, page, chunk) == 0, "posix_memalign");
  memset(bytes, 'x', chunk);
  if (count == 3 && strcmp(arguments[1], "disk") == 0) {
    measure_disk(arguments[2]);
  } else if (count == 2 && strcmp(arguments[1], "serve") == 0) {
    serve();
  } else if (count == 3 && strcmp(arguments[1], "net") == 0) {
    measure_network(arguments[2]);
  } else {
    return 2;
  }
  return 0;
}
