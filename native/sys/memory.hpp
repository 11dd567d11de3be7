// memcpy, memset, memmove and memcmp for the programs that have no libc (the
// monitor, the guests): gcc emits calls to these four whatever the flags.
// Compiled into those programs only.
#pragma once
#include <cstddef>
extern "C" {
void* memcpy(void* to, const void* from, std::size_t size);
void* memmove(void* to, const void* from, std::size_t size);
void* memset(void* to, int value, std::size_t size);
int memcmp(const void* left, const void* right, std::size_t size);
}
