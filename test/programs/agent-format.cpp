// Prints the constants, sizes and offsets of what is said to a guest's agent, as JSON.
#include "guest/agent-abi.h"
#include "print.hpp"

#include <cstddef>
#include <cstdio>

#define CONSTANT(name) print(#name, CASEMATE_AGENT_##name)
#define SIZE(type) print("sizeof " #type, sizeof(struct casemate_agent_##type))
#define OFFSET(type, member)                                                                       \
  print(#type "." #member, offsetof(struct casemate_agent_##type, member))

int main() {
  CONSTANT(MAGIC);
  CONSTANT(VERSION);
  CONSTANT(PORT);
  CONSTANT(WINDOW);
  CONSTANT(MAX_PAYLOAD);
  CONSTANT(MAX_STRINGS);
  CONSTANT(EXEC);
  CONSTANT(READ);
  CONSTANT(WRITE);
  CONSTANT(POWER_OFF);
  CONSTANT(DATA);
  CONSTANT(CLOSE);
  CONSTANT(CREDIT);
  CONSTANT(SIGNAL);
  CONSTANT(RESIZE);
  CONSTANT(HELLO);
  CONSTANT(STARTED);
  CONSTANT(EXITED);
  CONSTANT(FAILED);
  CONSTANT(STDIN);
  CONSTANT(STDOUT);
  CONSTANT(STDERR);
  CONSTANT(EXEC_TTY);
  CONSTANT(EXEC_USER_NAME);
  CONSTANT(EXEC_USER_IDS);
  CONSTANT(INIT);
  CONSTANT(BESIDE);
  SIZE(frame);
  OFFSET(frame, type);
  OFFSET(frame, stream);
  OFFSET(frame, size);
  SIZE(size);
  OFFSET(size, columns);
  OFFSET(size, rows);
  SIZE(exec);
  OFFSET(exec, flags);
  OFFSET(exec, uid);
  OFFSET(exec, gid);
  OFFSET(exec, size);
  OFFSET(exec, argument_count);
  OFFSET(exec, variable_count);
  SIZE(write);
  OFFSET(write, set_mode);
  OFFSET(write, mode);
  SIZE(credit);
  SIZE(signal);
  SIZE(hello);
  OFFSET(hello, magic);
  OFFSET(hello, version);
  OFFSET(hello, role);
  SIZE(started);
  SIZE(exited);
  OFFSET(exited, code);
  OFFSET(exited, signal);
  SIZE(failed);
  OFFSET(failed, error);
  OFFSET(failed, call);
  std::puts("}");
}
