/*
 * What Node and the agent in a Linux guest say to each other: the only definition of it.
 *
 * One stream for each request, so that none waits behind another one's bytes. On it frames go
 * in both directions: a struct casemate_agent_frame, and behind it as many bytes as it says.
 * Numbers are little-endian. Node sends one request, and the frames that belong to it; the
 * agent's last frame is FAILED, or EXITED and a CLOSE for each stream that it sends.
 *
 * Bytes go by credit. For each of stdin, stdout and stderr the receiver has room for
 * CASEMATE_AGENT_WINDOW bytes at first, and says by CREDIT how many more it takes: so a stream
 * that nobody reads holds up neither the others nor what is told about the process.
 *
 * When it is ready the agent connects to the host, at CASEMATE_AGENT_PORT, says HELLO and
 * keeps that stream open for as long as it lives.
 *
 * Trust: the guest belongs to somebody else. Node checks every size, type and number, and that
 * credit is kept. The agent does what Node says, within bounds.
 */
#ifndef CASEMATE_AGENT_ABI_H
#define CASEMATE_AGENT_ABI_H

#include <linux/types.h>

#define CASEMATE_AGENT_MAGIC 0x676d6d63u /* "cmmg" */
#define CASEMATE_AGENT_VERSION 1u

/* Of vsock, on both sides. Below 1024, as in a guest only root may listen there. */
#define CASEMATE_AGENT_PORT 1003u

#define CASEMATE_AGENT_WINDOW 262144u      /* bytes of a stream on their way, at most */
#define CASEMATE_AGENT_MAX_PAYLOAD 262144u /* behind a frame's head, at most */
#define CASEMATE_AGENT_MAX_STRINGS 16384u  /* arguments and variables of a command, at most */

/* Folders and files of the guest's initial root. */
#define CASEMATE_AGENT_PATH "/casemate/agent"
#define CASEMATE_AGENT_MODULES "/casemate/modules"

struct casemate_agent_frame {
  __u16 type;   /* enum casemate_agent_type */
  __u16 stream; /* enum casemate_agent_stream for DATA, CLOSE and CREDIT, else 0 */
  __u32 size;   /* of what follows */
};

enum casemate_agent_type {
  /* Requests: the first frame from Node. */
  CASEMATE_AGENT_EXEC = 1,      /* struct casemate_agent_exec */
  CASEMATE_AGENT_READ = 2,      /* a path: its contents come as stdout */
  CASEMATE_AGENT_WRITE = 3,     /* struct casemate_agent_write: its contents go as stdin */
  CASEMATE_AGENT_POWER_OFF = 4, /* nothing; only of an agent that is init */

  /* Both directions. */
  CASEMATE_AGENT_DATA = 16,
  CASEMATE_AGENT_CLOSE = 17,  /* no more DATA of this stream; or nobody takes it any more */
  CASEMATE_AGENT_CREDIT = 18, /* struct casemate_agent_credit */

  /* From Node, of an EXEC. */
  CASEMATE_AGENT_SIGNAL = 32, /* struct casemate_agent_signal */
  CASEMATE_AGENT_RESIZE = 33, /* struct casemate_agent_size */

  /* From the agent. */
  CASEMATE_AGENT_HELLO = 48,   /* struct casemate_agent_hello */
  CASEMATE_AGENT_STARTED = 49, /* struct casemate_agent_started, of an EXEC */
  CASEMATE_AGENT_EXITED = 50,  /* struct casemate_agent_exited; 0 and 0 of other requests */
  CASEMATE_AGENT_FAILED = 51   /* struct casemate_agent_failed */
};

enum casemate_agent_stream {
  CASEMATE_AGENT_STDIN = 0,
  CASEMATE_AGENT_STDOUT = 1, /* with a terminal stderr, too */
  CASEMATE_AGENT_STDERR = 2
};

enum casemate_agent_exec_flags {
  CASEMATE_AGENT_EXEC_TTY = 1u << 0,       /* a terminal of its own, of this size */
  CASEMATE_AGENT_EXEC_USER_NAME = 1u << 1, /* `user` of the guest's /etc/passwd and /etc/group */
  CASEMATE_AGENT_EXEC_USER_IDS = 1u << 2   /* uid and gid as they are here, no other groups */
};

struct casemate_agent_size {
  __u16 columns;
  __u16 rows;
};

/* Followed by strings, each NUL-terminated: working directory, user, arguments, variables. */
struct casemate_agent_exec {
  __u32 flags; /* enum casemate_agent_exec_flags; neither USER: the agent's own, root */
  __u32 uid;
  __u32 gid;
  struct casemate_agent_size size;
  __u32 argument_count;
  __u32 variable_count;
};

/* Followed by the path, NUL-terminated. The file is made where there is none. */
struct casemate_agent_write {
  __u32 set_mode; /* 0 or 1: gives the file these permissions, new or not */
  __u32 mode;
};

struct casemate_agent_credit {
  __u32 bytes;
};

/* To the command's process group. */
struct casemate_agent_signal {
  __u32 number;
};

enum casemate_agent_role {
  CASEMATE_AGENT_INIT = 1,  /* it is process 1 */
  CASEMATE_AGENT_BESIDE = 2 /* the guest has an init of its own */
};

struct casemate_agent_hello {
  __u32 magic;
  __u32 version;
  __u32 role; /* enum casemate_agent_role */
};

struct casemate_agent_started {
  __u32 pid;
};

struct casemate_agent_exited {
  __u32 code;   /* 0 where a signal ended it */
  __u32 signal; /* 0 where it exited */
};

struct casemate_agent_failed {
  __u32 error;   /* errno */
  char call[28]; /* what failed, NUL-terminated */
};

#endif
