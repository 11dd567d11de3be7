/*
 * In the place of casemate-vmm: a monitor whose guest is this program. It takes Node's streams, and
 * does with each what the port that it is for stands for:
 *
 *   1  echoes up to the end, and ends then
 *   2  refuses
 *   3  never answers
 *   4  never reads
 *   5  sends "part" and breaks off
 *   6  sends 8 MiB of 0 to 250, again and again, and ends
 *   7  reads to the end, says how many bytes that were, and ends
 *   8  sends "last" and ends, and with it the VM
 *   9  ends at once, in both directions
 *   10 says how many bytes all streams of port 6 have taken, and ends
 *   11 as 1, and keeps a socket that nobody has given it
 *   1000 and above: connects to that port of the host, as a guest; says whether it is taken there,
 *   and what is taken echoes
 */
#define _GNU_SOURCE
#include "vmm/wire.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

struct stream {
  int fd;
  unsigned id;
  unsigned port;
  unsigned asked_by; /* the stream that waits for an answer, + 1 */
  size_t size;       /* of what is to be sent */
  size_t sent;
  size_t total;
  int is_at_end;
  char* data;
};

static struct stream streams[CASEMATE_MAX_STREAMS];
static struct pollfd polled[CASEMATE_MAX_STREAMS + 1];

static void say(unsigned type, unsigned id, unsigned detail) {
  const struct casemate_stream_event event = {{type, sizeof event}, id, detail};
  send(CASEMATE_FD_CONTROL, &event, sizeof event, MSG_NOSIGNAL);
}

static void say_bare(unsigned type, size_t size) {
  struct casemate_doorbell event = {.header = {type, size}};
  send(CASEMATE_FD_CONTROL, &event, size, MSG_NOSIGNAL);
}

static void give(struct stream* stream, const char* data, size_t size) {
  stream->data = realloc(stream->data, size);
  memcpy(stream->data, data, size);
  stream->size = size;
  stream->sent = 0;
}

static void finish(struct stream* stream, int is_whole) {
  if (is_whole) {
    say(CASEMATE_EVENT_STREAM_ENDED, stream->id, 0);
  }
  say(CASEMATE_EVENT_STREAM_CLOSED, stream->id,
      is_whole ? CASEMATE_BREAK_NONE : CASEMATE_BREAK_GUEST);
  close(stream->fd);
  free(stream->data);
  memset(stream, 0, sizeof *stream);
}

static struct stream* free_stream(void) {
  struct stream* stream = streams;
  while (stream->id != 0 || stream->asked_by != 0) {
    ++stream;
  }
  return stream;
}

static void answer(unsigned index, const char* text) {
  give(&streams[index], text, strlen(text));
  streams[index].port = 8000; /* ends behind it */
}

static void begin(unsigned id, unsigned port, int fd) {
  if (port == 2) {
    close(fd);
    say(CASEMATE_EVENT_STREAM_REFUSED, id, 0);
    return;
  }
  struct stream* stream = free_stream();
  *stream = (struct stream){.fd = fd, .id = id, .port = port};
  if (port == 3) {
    return;
  }
  if (port == 11) {
    /* Before Node hears of the stream, and looks. */
    int ends[2];
    stream->port = socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 ? 1 : 2;
  }
  say(CASEMATE_EVENT_STREAM_CONNECTED, id, 0);
  if (port == 5) {
    give(stream, "part", 4);
  } else if (port == 6) {
    stream->size = 8 << 20;
    stream->data = malloc(stream->size);
    for (size_t i = 0; i < stream->size; ++i) {
      stream->data[i] = (char)(i % 251);
    }
  } else if (port == 8) {
    give(stream, "last", 4);
  } else if (port == 9) {
    finish(stream, 1);
  } else if (port == 10) {
    size_t total = 0;
    for (size_t i = 0; i < CASEMATE_MAX_STREAMS; ++i) {
      total += streams[i].port == 6 ? streams[i].sent : 0;
    }
    char text[32];
    give(stream, text, (size_t)snprintf(text, sizeof text, "%zu", total));
    stream->port = 8000;
  } else if (port >= 1000) {
    struct stream* request = free_stream();
    request->asked_by = (unsigned)(stream - streams) + 1;
    say(CASEMATE_EVENT_STREAM_REQUESTED,
        CASEMATE_FIRST_GUEST_STREAM + (unsigned)(request - streams), port);
  }
}

static void obey(void) {
  struct casemate_stream_command command = {{0, 0}, 0, 0};
  union {
    struct cmsghdr header;
    char space[CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec vector = {&command, sizeof command};
  struct msghdr message = {.msg_iov = &vector,
                           .msg_iovlen = 1,
                           .msg_control = &control,
                           .msg_controllen = sizeof control};
  if (recvmsg(CASEMATE_FD_CONTROL, &message, MSG_CMSG_CLOEXEC) <= 0) {
    _exit(3);
  }
  int fd = -1;
  if (message.msg_controllen > 0) {
    memcpy(&fd, CMSG_DATA(&control.header), sizeof fd);
  }
  struct stream* request =
      &streams[command.id % CASEMATE_FIRST_GUEST_STREAM % CASEMATE_MAX_STREAMS];
  switch (command.header.type) {
  case CASEMATE_COMMAND_STREAM_CONNECT:
    begin(command.id, command.port, fd);
    break;
  case CASEMATE_COMMAND_STREAM_ACCEPT:
    answer(request->asked_by - 1, "accepted");
    *request = (struct stream){.fd = fd, .id = command.id, .port = 1};
    break;
  case CASEMATE_COMMAND_STREAM_REFUSE:
    answer(request->asked_by - 1, "refused");
    memset(request, 0, sizeof *request);
    break;
  default:
    _exit(4);
  }
}

static int wants(const struct stream* stream) {
  if (stream->sent < stream->size) {
    return POLLOUT;
  }
  return stream->is_at_end || stream->port == 4 || stream->port >= 1000 ? 0 : POLLIN;
}

static void all_is_sent(struct stream* stream) {
  if (stream->port == 8) {
    say(CASEMATE_EVENT_STREAM_ENDED, stream->id, 0);
    _exit(0);
  }
  if (stream->port == 5 || stream->port == 6 || stream->port == 8000 || stream->is_at_end) {
    finish(stream, stream->port != 5);
  }
}

static void go_on(struct stream* stream, int events) {
  if ((events & POLLHUP) != 0 && stream->port == 3) {
    close(stream->fd);
    say(CASEMATE_EVENT_STREAM_REFUSED, stream->id, 0);
    memset(stream, 0, sizeof *stream);
    return;
  }
  if (stream->sent < stream->size) {
    const ssize_t count = send(stream->fd, stream->data + stream->sent, stream->size - stream->sent,
                               MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && errno != EAGAIN) {
      finish(stream, 0);
    } else if (count > 0 && (stream->sent += (size_t)count) == stream->size) {
      all_is_sent(stream);
    }
    return;
  }
  if (stream->port == 4 || stream->port >= 1000) {
    if ((events & (POLLHUP | POLLERR)) != 0) {
      finish(stream, 0);
    }
    return;
  }
  static char bytes[65536];
  const ssize_t count = recv(stream->fd, bytes, sizeof bytes, MSG_DONTWAIT);
  if (count < 0 && errno == EAGAIN) {
    return;
  }
  if (count > 0) {
    stream->total += (size_t)count;
    if (stream->port == 1) {
      give(stream, bytes, (size_t)count);
    }
    return;
  }
  stream->is_at_end = 1;
  if (stream->port == 7) {
    give(stream, bytes, (size_t)snprintf(bytes, sizeof bytes, "%zu", stream->total));
  } else {
    finish(stream, count == 0);
  }
}

static void be_jailed(void) {
  struct sock_filter allow = {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW};
  struct sock_fprog program = {1, &allow};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

int main(void) {
  static char configuration[CASEMATE_MAX_MESSAGE];
  struct casemate_command run;
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  recv(CASEMATE_FD_CONTROL, configuration, sizeof configuration, 0);
  be_jailed();
  say_bare(CASEMATE_EVENT_JAILED, 8);
  recv(CASEMATE_FD_CONTROL, &run, sizeof run, 0);
  say_bare(CASEMATE_EVENT_DOORBELL, sizeof(struct casemate_doorbell));
  for (;;) {
    /* No more than are open: their number has the limit of descriptors. */
    struct stream* of[CASEMATE_MAX_STREAMS + 1];
    nfds_t count = 1;
    polled[0] = (struct pollfd){CASEMATE_FD_CONTROL, POLLIN, 0};
    for (size_t i = 0; i < CASEMATE_MAX_STREAMS; ++i) {
      if (streams[i].id != 0) {
        of[count] = &streams[i];
        polled[count++] = (struct pollfd){streams[i].fd, (short)wants(&streams[i]), 0};
      }
    }
    if (poll(polled, count, -1) < 0) {
      _exit(5);
    }
    for (nfds_t i = 1; i < count; ++i) {
      if (polled[i].revents != 0) {
        go_on(of[i], polled[i].revents);
      }
    }
    if (polled[0].revents != 0) {
      obey();
    }
  }
}
