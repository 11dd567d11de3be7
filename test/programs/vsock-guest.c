/*
 * The guest's end of streams, for a Linux guest. It listens on ports and does with each connection
 * what its port stands for:
 *
 *   1  echoes up to the end
 *   4  never reads
 *   6  sends 8 MiB of 0 to 250, again and again
 *   7  reads to the end, and then says how many bytes that were
 *   9  resets its driver's device, and with it all streams
 *   2000 and above: connects to that port of the host, and says whether that was taken; what is
 *   taken echoes
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static const unsigned ports[] = {1, 4, 6, 7, 9, 2000, 2001};
enum { port_count = sizeof ports / sizeof *ports };

static char bytes[65536];

static struct sockaddr_vm address(unsigned cid, unsigned port) {
  struct sockaddr_vm at = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
  return at;
}

static int write_all(int fd, const char* data, size_t size) {
  while (size > 0) {
    const ssize_t count = write(fd, data, size);
    if (count <= 0) {
      return -1;
    }
    data += count;
    size -= (size_t)count;
  }
  return 0;
}

static void echo(int fd) {
  for (ssize_t count; (count = read(fd, bytes, sizeof bytes)) > 0;) {
    if (write_all(fd, bytes, (size_t)count) != 0) {
      return;
    }
  }
}

static void pour(int fd) {
  size_t at = 0;
  for (size_t rest = 8 << 20; rest > 0;) {
    const size_t size = rest < sizeof bytes ? rest : sizeof bytes;
    for (size_t i = 0; i < size; ++i) {
      bytes[i] = (char)(at++ % 251);
    }
    if (write_all(fd, bytes, size) != 0) {
      return;
    }
    rest -= size;
  }
}

static void count(int fd) {
  size_t total = 0;
  for (ssize_t size; (size = read(fd, bytes, sizeof bytes)) > 0;) {
    total += (size_t)size;
  }
  dprintf(fd, "%zu", total);
}

static void call_host(int fd, unsigned port) {
  const int out = socket(AF_VSOCK, SOCK_STREAM, 0);
  const struct sockaddr_vm host = address(VMADDR_CID_HOST, port);
  if (connect(out, (const struct sockaddr*)&host, sizeof host) != 0) {
    dprintf(fd, "refused");
    return;
  }
  dprintf(fd, "accepted");
  close(fd);
  echo(out);
}

/* The first virtio device with number 19, a socket. */
static void reset_device(void) {
  static const char script[] = "for d in /sys/bus/virtio/devices/*; do\n"
                               "  read id <$d/device\n"
                               "  [ $id = 0x0013 ] || continue\n"
                               "  name=${d##*/}\n"
                               "  driver=/sys/bus/virtio/drivers/vmw_vsock_virtio_transport\n"
                               "  echo $name >$driver/unbind\n"
                               "  echo $name >$driver/bind\n"
                               "done";
  execl("/bin/busybox", "sh", "-c", script, NULL);
}

static void serve(int fd, unsigned port) {
  switch (port) {
  case 1:
    echo(fd);
    break;
  case 4:
    pause();
    break;
  case 6:
    pour(fd);
    break;
  case 7:
    count(fd);
    break;
  case 9:
    reset_device();
    break;
  default:
    call_host(fd, port);
  }
}

int main(void) {
  struct pollfd listeners[port_count];
  signal(SIGCHLD, SIG_IGN);
  signal(SIGPIPE, SIG_IGN);
  for (int i = 0; i < port_count; ++i) {
    const struct sockaddr_vm at = address(VMADDR_CID_ANY, ports[i]);
    listeners[i] = (struct pollfd){socket(AF_VSOCK, SOCK_STREAM, 0), POLLIN, 0};
    if (bind(listeners[i].fd, (const struct sockaddr*)&at, sizeof at) != 0 ||
        listen(listeners[i].fd, 128) != 0) {
      perror("listen");
      return 1;
    }
  }
  puts("guest listens");
  fflush(stdout);
  while (poll(listeners, port_count, -1) > 0) {
    for (int i = 0; i < port_count; ++i) {
      if (listeners[i].revents == 0) {
        continue;
      }
      const int fd = accept(listeners[i].fd, NULL, NULL);
      if (fork() == 0) {
        serve(fd, ports[i]);
        _exit(0);
      }
      close(fd);
    }
  }
  return 1;
}
