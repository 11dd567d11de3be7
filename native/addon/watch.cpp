#include "addon/watch.hpp"

#include "sys/epoll.hpp"
#include "sys/syscall.hpp"

namespace casemate::addon {

namespace {

/// How many sources are heard before others have their turn: children that never stop
/// sending have their share of the event loop and no more.
constexpr int sources_at_once = 32;

} // namespace

sys::Result<std::shared_ptr<Watch>> Watch::create(std::function<bool()> collect) {
  const long fd = sys::call(__NR_epoll_create1, EPOLL_CLOEXEC);
  if (fd < 0) {
    return sys::check("epoll_create1", fd);
  }
  auto watch = std::make_shared<Watch>();
  watch->epoll_.reset(static_cast<int>(fd));
  watch->collect_ = std::move(collect);
  return watch;
}

void Watch::start(Napi::Env env) {
  poll_ = std::make_unique<Poll>(env, fd(), [this](int, int) { on_ready(); });
  poll_->start(UV_READABLE);
  poll_->keep_alive(false);
}

void Watch::on_ready() {
  for (int i = 0; i < sources_at_once && poll_ != nullptr; ++i) {
    // One at a time: whoever is called may remove any of the others.
    epoll_event event{};
    if (sys::call(__NR_epoll_pwait, fd(), &event, 1, 0, nullptr, 8) <= 0) {
      return;
    }
    // What is done may have removed this one: the kernel is asked again.
    if (!collect_()) {
      (*reinterpret_cast<const Source*>(event.data.u64))();
    }
  }
}

sys::SysError Watch::add(int fd, const Source& source, std::uint32_t events) {
  return sys::epoll_control(epoll_.get(), EPOLL_CTL_ADD, fd, tag(source), events);
}

void Watch::change(int fd, const Source& source, std::uint32_t events) {
  static_cast<void>(sys::epoll_control(epoll_.get(), EPOLL_CTL_MOD, fd, tag(source), events));
}

void Watch::remove(int fd) {
  static_cast<void>(sys::epoll_control(epoll_.get(), EPOLL_CTL_DEL, fd));
}

void Watch::hold() {
  if (++holders_ == 1 && poll_ != nullptr) {
    poll_->keep_alive(true);
  }
}

void Watch::let_go() {
  if (--holders_ == 0 && poll_ != nullptr) {
    poll_->keep_alive(false);
  }
}

} // namespace casemate::addon
