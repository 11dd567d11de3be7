// One JSON object of numbers, a name at a time.
#pragma once

#include <cstdio>

inline void print(const char* name, unsigned long long value) {
  static const char* separator = "{";
  std::printf("%s\"%s\":%llu", separator, name, value);
  separator = ",";
}
