#pragma once

#include <atomic>
#include <cstddef>
#include <utility>

namespace casemate::addon {

/// A value with several owners, destroyed by the last one. Not std::shared_ptr: built
/// here, that one would ask for a newer glibc (__libc_single_threaded, 2.32) than Node.
template <typename T> class Shared {
public:
  Shared() = default;
  template <typename... Args> static Shared make(Args&&... args) {
    Shared shared;
    shared.box_ = new Box{T{std::forward<Args>(args)...}};
    return shared;
  }
  Shared(const Shared& other) : box_(other.box_) {
    if (box_ != nullptr) {
      ++box_->owners;
    }
  }
  Shared(Shared&& other) noexcept : box_(std::exchange(other.box_, nullptr)) {}
  Shared& operator=(Shared other) noexcept {
    std::swap(box_, other.box_);
    return *this;
  }
  ~Shared() {
    if (box_ != nullptr && --box_->owners == 0) {
      delete box_;
    }
  }

  T& operator*() const { return box_->value; }
  T* operator->() const { return &box_->value; }
  explicit operator bool() const { return box_ != nullptr; }

private:
  struct Box {
    T value;
    std::atomic<std::size_t> owners{1};
  };

  Box* box_ = nullptr;
};

} // namespace casemate::addon
