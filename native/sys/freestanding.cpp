// The string instructions are the fast path of every CPU with ERMS, need no
// loop for the compiler to "recognise" as memcpy (and turn into a call to
// itself), and are a few bytes each.
#include "sys/memory.hpp"

#include <cstdint>

extern "C" {

void* memcpy(void* to, const void* from, std::size_t size) {
  void* result = to;
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
  return result;
}

void* memmove(void* to, const void* from, std::size_t size) {
  auto distance = reinterpret_cast<std::uintptr_t>(to) - reinterpret_cast<std::uintptr_t>(from);
  if (distance >= size) { // `to` lies before `from` (the difference wraps) or behind its end
    return memcpy(to, from, size);
  }
  auto* last_to = static_cast<std::byte*>(to) + size - 1;
  const auto* last_from = static_cast<const std::byte*>(from) + size - 1;
  asm volatile("std\n\trep movsb\n\tcld"
               : "+D"(last_to), "+S"(last_from), "+c"(size)
               :
               : "memory", "cc");
  return to;
}

void* memset(void* to, int value, std::size_t size) {
  void* result = to;
  asm volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
  return result;
}

int memcmp(const void* left, const void* right, std::size_t size) {
  const auto* a = static_cast<const unsigned char*>(left);
  const auto* b = static_cast<const unsigned char*>(right);
  for (std::size_t i = 0; i < size; ++i) {
    if (a[i] != b[i]) {
      return a[i] - b[i];
    }
  }
  return 0;
}

} // extern "C"
