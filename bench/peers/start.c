/*
 * Starts a program again and again, as cheaply as can be, and says how long that took: what
 * bubblewrap, crun, unshare and QEMU are measured with. No Node in between, so that a peer pays
 * for itself alone.
 *
 *   start TRIALS PROGRAM [ARGUMENT]...
 *
 * The program has /dev/null for its standard streams and a pipe as descriptor 3. What arrives there
 * first says that the program within has begun: a time stamp (bench/floor/nothing.c) or any byte.
 * One line of JSON per trial, nanoseconds since the start: t1, the program's first instruction, by
 * its own stamp; t2, its word has arrived here; ended, the process started here has been reaped.
 */
#define _GNU_SOURCE
#include "../floor/floor.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void die(const char* what) {
  perror(what);
  exit(1);
}

static uint64_t monotonic(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void trial(char** arguments, int print) {
  int word[2];
  if (pipe2(word, O_CLOEXEC) < 0) {
    die("pipe2");
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  for (int i = 0; i <= 2; ++i) {
    posix_spawn_file_actions_addopen(&actions, i, "/dev/null", O_RDWR, 0);
  }
  posix_spawn_file_actions_adddup2(&actions, word[1], CONTROL);

  uint64_t t0 = monotonic(), t0_stamp = stamp();
  pid_t pid;
  if (posix_spawnp(&pid, arguments[0], &actions, NULL, arguments, NULL) != 0) {
    die(arguments[0]);
  }
  close(word[1]);
  uint64_t begun = 0;
  ssize_t size = read(word[0], &begun, sizeof begun);
  uint64_t t2 = monotonic(), t2_stamp = stamp();
  int status;
  waitpid(pid, &status, 0);
  uint64_t ended = monotonic();
  close(word[0]);
  posix_spawn_file_actions_destroy(&actions);
  if (size <= 0) {
    fprintf(stderr, "start: nothing was heard of %s: it ended with status 0x%x\n", arguments[0],
            status);
    exit(1);
  }
  if (!print) {
    return;
  }
  printf("{");
  if (size == sizeof begun) {
    double scale = (double)(t2 - t0) / (double)(t2_stamp - t0_stamp);
    printf("\"t1\":%ld,", (long)((double)(begun - t0_stamp) * scale));
  }
  printf("\"t2\":%ld,\"ended\":%ld}\n", (long)(t2 - t0), (long)(ended - t0));
}

int main(int count, char** arguments) {
  char* end = NULL;
  long trials = count < 3 ? 0 : strtol(arguments[1], &end, 10);
  if (trials <= 0 || *end != '\0') {
    fprintf(stderr, "start TRIALS PROGRAM [ARGUMENT]...\n");
    return 2;
  }
  /* So that both ends of the pipe lie above the number that the program finds it at. */
  for (int fd = open("/dev/null", O_RDONLY | O_CLOEXEC); fd <= CONTROL; fd = dup(fd)) {
    fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  trial(arguments + 2, 0);
  for (long i = 0; i < trials; ++i) {
    /* As the floor: the end of the one before goes on in the kernel for a while. */
    usleep(20000);
    trial(arguments + 2, 1);
  }
}
