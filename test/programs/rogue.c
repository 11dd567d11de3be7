/*
 * In the place of casemate-vmm: a monitor in somebody else's hands. It takes its configuration as
 * the real one does, and then does what the guest's arguments say, in their order; when there is
 * no more of them it waits, whoever hangs up. Node and the kernel are all that can stop it.
 */
#define _GNU_SOURCE
#include "vmm/wire.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { cpuid_entry_size = 40 };

static unsigned char configuration[CASEMATE_MAX_MESSAGE];
static unsigned char message[CASEMATE_MAX_MESSAGE];

/* Of nobody's protocol where it is longer than its type has it; `said` is the size in its header.
 */
static void say(unsigned type, size_t size, unsigned said) {
  const struct casemate_event header = {type, said};
  memcpy(message, &header, sizeof header);
  send(CASEMATE_FD_CONTROL, message, size, MSG_NOSIGNAL);
}

static void say_exited(unsigned reason, unsigned code) {
  struct casemate_exited exited = {
      {CASEMATE_EVENT_EXITED, sizeof exited}, .reason = reason, .code = code};
  send(CASEMATE_FD_CONTROL, &exited, sizeof exited, MSG_NOSIGNAL);
}

/* No control characters where a person reads it, and no more of it than there is. */
static void say_failed(unsigned step, char fill, size_t length) {
  struct casemate_failed failed = {
      {CASEMATE_EVENT_FAILED, sizeof failed}, .step = step, .error = 1};
  memset(failed.call, fill, length);
  send(CASEMATE_FD_CONTROL, &failed, sizeof failed, MSG_NOSIGNAL);
}

static void await_command(void) {
  struct casemate_stream_command command;
  if (recv(CASEMATE_FD_CONTROL, &command, sizeof command, 0) <= 0) {
    _exit(3);
  }
}

/* All that Node asks for is that there is a filter. */
static void install_filter(void) {
  struct sock_filter allow = {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW};
  struct sock_fprog program = {1, &allow};
  syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

/* "stream <type> <id> <detail>" */
static void say_of_stream(const char* numbers) {
  char* next = NULL;
  struct casemate_stream_event event = {{(unsigned)strtoul(numbers, &next, 0), sizeof event}, 0, 0};
  event.id = (unsigned)strtoul(next, &next, 0);
  event.detail = (unsigned)strtoul(next, &next, 0);
  send(CASEMATE_FD_CONTROL, &event, sizeof event, MSG_NOSIGNAL);
}

static void act(const char* what) {
  if (strncmp(what, "stream ", 7) == 0) {
    say_of_stream(what + 7);
  } else if (strncmp(what, "stream-flood ", 13) == 0) {
    for (;;) {
      say_of_stream(what + 13);
    }
  } else if (strcmp(what, "noNewPrivs") == 0) {
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  } else if (strcmp(what, "seccomp") == 0) {
    install_filter();
  } else if (strcmp(what, "command") == 0) { /* release, pause, resume: whichever is next */
    await_command();
  } else if (strcmp(what, "jailed") == 0) {
    say(CASEMATE_EVENT_JAILED, 8, 8);
  } else if (strcmp(what, "doorbell") == 0) {
    say(CASEMATE_EVENT_DOORBELL, sizeof(struct casemate_doorbell),
        sizeof(struct casemate_doorbell));
  } else if (strcmp(what, "paused") == 0) {
    say(CASEMATE_EVENT_PAUSED, 8, 8);
  } else if (strcmp(what, "resumed") == 0) {
    say(CASEMATE_EVENT_RESUMED, 8, 8);
  } else if (strcmp(what, "exited") == 0) {
    say_exited(CASEMATE_EXIT_GUEST, 7);
  } else if (strcmp(what, "exited-unknown-reason") == 0) {
    say_exited(99, 0);
  } else if (strcmp(what, "exited-huge-code") == 0) {
    say_exited(CASEMATE_EXIT_GUEST, 256);
  } else if (strcmp(what, "failed") == 0) {
    say_failed(CASEMATE_SETUP_VCPU, '\033', 8);
  } else if (strcmp(what, "failed-without-end") == 0) {
    say_failed(CASEMATE_SETUP_VCPU, 'x', sizeof((struct casemate_failed*)0)->call);
  } else if (strcmp(what, "failed-nowhere") == 0) {
    say_failed(CASEMATE_SETUP_DEVICES + 1, 'x', 1);
  } else if (strcmp(what, "unknown-type") == 0) {
    say(0xffffffffu, 8, 8);
  } else if (strcmp(what, "byte") == 0) {
    say(CASEMATE_EVENT_PAUSED, 1, 1);
  } else if (strcmp(what, "nothing") == 0) {
    say(0, 0, 0);
  } else if (strcmp(what, "short-doorbell") == 0) {
    say(CASEMATE_EVENT_DOORBELL, sizeof(struct casemate_doorbell) - 1,
        sizeof(struct casemate_doorbell));
  } else if (strcmp(what, "lying-size") == 0) {
    say(CASEMATE_EVENT_DOORBELL, sizeof(struct casemate_doorbell), 0xffffffffu);
  } else if (strcmp(what, "long") == 0) { /* more than any message of the protocol */
    say(CASEMATE_EVENT_DOORBELL, 4096, sizeof(struct casemate_doorbell));
  } else if (strcmp(what, "huge") == 0) {
    say(CASEMATE_EVENT_EXITED, sizeof message, sizeof message);
  } else if (strcmp(what, "flood") == 0) { /* no one of them is malformed */
    for (;;) {
      say_exited(CASEMATE_EXIT_GUEST, 7);
    }
  } else if (strcmp(what, "hang-up") == 0) {
    close(CASEMATE_FD_CONTROL);
  } else if (strcmp(what, "exit") == 0) {
    _exit(3);
  } else if (strcmp(what, "crash") == 0) {
    __builtin_trap();
  } else {
    _exit(99); /* the test has mistyped it */
  }
}

int main(void) {
  /* What must hold whatever it is told: it goes with its test. */
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  const ssize_t size = recv(CASEMATE_FD_CONTROL, configuration, sizeof configuration, 0);
  struct casemate_configure head;
  if (size < (ssize_t)sizeof head) {
    return 98;
  }
  memcpy(&head, configuration, sizeof head);
  const char* what = (const char*)configuration + sizeof head +
                     head.cpuid_count * cpuid_entry_size +
                     head.device_count * sizeof(struct casemate_device);
  /* Of Linux the command line. */
  if (head.format == CASEMATE_IMAGE_LINUX) {
    for (char* word = strtok((char*)what, ","); word != NULL; word = strtok(NULL, ",")) {
      act(word);
    }
    head.argument_count = 0;
  }
  /* The first argument is the guest's name. */
  for (unsigned i = 0; i < head.argument_count; ++i, what += strlen(what) + 1) {
    if (i > 0) {
      act(what);
    }
  }
  for (;;) {
    pause();
  }
}
