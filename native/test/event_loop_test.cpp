#include "sys/event_loop.hpp"

#include "sys/clock.hpp"
#include "sys/eventfd.hpp"
#include "test/unit.hpp"

#include <linux/eventpoll.h>

#include <string>
#include <thread>
#include <vector>

using namespace casemate::sys;

namespace {

/// Notes who was called back, and does what it is told to then.
struct Note {
  std::string name;
  std::vector<std::string>* log = nullptr;
  EventLoop* loop = nullptr;
  EventLoop::Source* removes = nullptr;
  EventLoop::Timer* clears = nullptr;
  EventLoop::Timer* sets = nullptr;

  static void ready(void* context, std::uint32_t events) {
    static_cast<Note*>(context)->act((events & EPOLLHUP) != 0 ? " hung up" : "");
  }
  static void due(void* context) { static_cast<Note*>(context)->act(""); }

  void act(const std::string& what) {
    log->push_back(name + what);
    if (removes != nullptr) {
      loop->remove(*removes);
    }
    if (clears != nullptr) {
      loop->clear_timer(*clears);
    }
    if (sets != nullptr) {
      loop->set_timer(*sets, 0);
    }
  }
};

struct Fixture {
  Mutex lock;
  EventLoop loop{lock};
  std::vector<std::string> log;
  Note first{"first", &log, &loop};
  Note second{"second", &log, &loop};
  Fd a = make_eventfd().value();
  Fd b = make_eventfd().value();
  EventLoop::Source at_a{Note::ready, &first};
  EventLoop::Source at_b{Note::ready, &second};

  Fixture() {
    lock.lock();
    CHECK(!loop.open());
  }
  std::vector<std::string> turn(int milliseconds = 0) {
    log.clear();
    loop.turn(milliseconds);
    return log;
  }
};

using Names = std::vector<std::string>;

} // namespace

TEST("what is ready is called back, turn by turn until it is taken") {
  Fixture f;
  CHECK(!f.loop.add(f.at_a, f.a.get(), EPOLLIN));
  CHECK(!f.loop.add(f.at_b, f.b.get(), EPOLLIN));
  CHECK(f.turn().empty());
  tell_eventfd(f.b.get());
  CHECK(f.turn() == Names{"second"});
  CHECK(f.turn() == Names{"second"});
  take_eventfd(f.b.get());
  CHECK(f.turn().empty());
  tell_eventfd(f.a.get());
  tell_eventfd(f.b.get());
  CHECK_EQ(f.turn().size(), 2u);
}

TEST("a source that is removed is not called back, not even for what has happened already") {
  Fixture f;
  CHECK(!f.loop.add(f.at_a, f.a.get(), EPOLLIN));
  CHECK(!f.loop.add(f.at_b, f.b.get(), EPOLLIN));
  f.first.removes = &f.at_b;
  f.second.removes = &f.at_a;
  tell_eventfd(f.a.get());
  tell_eventfd(f.b.get());
  CHECK_EQ(f.turn().size(), 1u); // whichever came first
  CHECK((f.at_a.fd < 0) != (f.at_b.fd < 0));
  f.first.removes = f.second.removes = nullptr;
  CHECK_EQ(f.turn().size(), 1u);
  f.loop.remove(f.at_a);
  f.loop.remove(f.at_b);
  CHECK(f.turn().empty());
}

TEST("a source can be removed in its own callback, and added again") {
  Fixture f;
  CHECK(!f.loop.add(f.at_a, f.a.get(), EPOLLIN));
  f.first.removes = &f.at_a;
  tell_eventfd(f.a.get());
  CHECK(f.turn() == Names{"first"});
  CHECK(f.turn().empty());
  CHECK(!f.loop.add(f.at_a, f.a.get(), EPOLLIN));
  CHECK(f.turn() == Names{"first"});
}

TEST("what a source waits for can be changed; a hang-up comes unasked") {
  Fixture f;
  int ends[2];
  REQUIRE(call(__NR_socketpair, 1 /* AF_UNIX */, 1 /* SOCK_STREAM */, 0, ends) == 0);
  const Fd ours(ends[0]);
  Fd theirs(ends[1]);
  CHECK(!f.loop.add(f.at_a, ours.get(), EPOLLIN));
  CHECK(f.turn().empty());
  CHECK(!f.loop.change(f.at_a, EPOLLIN | EPOLLOUT));
  CHECK(f.turn() == Names{"first"});
  CHECK(!f.loop.change(f.at_a, 0));
  CHECK(f.turn().empty());
  theirs.reset();
  CHECK(f.turn() == Names{"first hung up"});
}

TEST("a descriptor that cannot be waited for is an error, and leaves nothing") {
  Fixture f;
  CHECK_EQ(f.loop.add(f.at_a, -1, EPOLLIN).number, 9); // EBADF
  CHECK(f.at_a.fd < 0);
  CHECK(!f.loop.add(f.at_a, f.a.get(), EPOLLIN));
  CHECK_EQ(f.loop.add(f.at_b, f.a.get(), EPOLLIN).number, 17); // EEXIST
}

TEST("timers are due in the order of their times, once, and not before") {
  Fixture f;
  EventLoop::Timer early{Note::due, &f.first};
  EventLoop::Timer late{Note::due, &f.second};
  const std::uint64_t now = monotonic_ns();
  f.loop.set_timer(late, now + 5'000'000);
  f.loop.set_timer(early, now + 1'500'000);
  while (f.log.size() < 2) {
    f.loop.turn();
    CHECK(f.log.empty() || monotonic_ns() >= now + 1'500'000);
  }
  CHECK(monotonic_ns() >= now + 5'000'000);
  CHECK(f.log == (Names{"first", "second"}));
  CHECK(f.turn().empty());
}

TEST("a timer that is set again has its new time only, and one that is cleared has none") {
  Fixture f;
  EventLoop::Timer timer{Note::due, &f.first};
  f.loop.set_timer(timer, 0);
  f.loop.set_timer(timer, monotonic_ns() + 3'600'000'000'000);
  CHECK(f.turn().empty());
  f.loop.set_timer(timer, 0);
  CHECK(f.turn() == Names{"first"});
  f.loop.set_timer(timer, 0);
  f.loop.clear_timer(timer);
  f.loop.clear_timer(timer);
  CHECK(f.turn().empty());
}

TEST("a timer may clear another that is due, and set itself anew without keeping the loop") {
  Fixture f;
  EventLoop::Timer one{Note::due, &f.first};
  EventLoop::Timer other{Note::due, &f.second};
  f.first.clears = &other;
  f.first.sets = &one;
  f.loop.set_timer(one, 1);
  f.loop.set_timer(other, 2);
  CHECK(f.turn() == Names{"first"});
  CHECK(f.turn() == Names{"first"});
}

TEST("the lock is let go of while the loop waits, and held when it calls back") {
  Fixture f;
  CHECK(!f.loop.add(f.at_a, f.a.get(), EPOLLIN));
  std::thread other([&] {
    const Lock held(f.lock); // given only while the loop waits
    f.log.emplace_back("other");
    tell_eventfd(f.a.get());
  });
  f.loop.turn();
  other.join();
  CHECK(f.log == (Names{"other", "first"}));
}

TEST("the lock is let go of for what takes its time, too") {
  Fixture f;
  std::thread other;
  const int result = f.loop.unlocked([&] {
    other = std::thread([&] { const Lock held(f.lock); });
    other.join();
    return 7;
  });
  CHECK_EQ(result, 7);
}

TEST("what is to be done behind each callback is done behind each") {
  Fixture f;
  CHECK(!f.loop.add(f.at_a, f.a.get(), EPOLLIN));
  EventLoop::Timer timer{Note::due, &f.second};
  f.loop.set_timer(timer, 0);
  tell_eventfd(f.a.get());
  f.loop.turn(
      -1, [](void* context) { static_cast<Fixture*>(context)->log.emplace_back("after"); }, &f);
  CHECK(f.log == (Names{"first", "after", "second", "after"}));
}

TEST("an eventfd is readable from when it is told until it is taken") {
  Fixture f;
  CHECK(!f.loop.add(f.at_a, f.a.get(), EPOLLIN));
  for (int i = 0; i < 3; ++i) {
    tell_eventfd(f.a.get());
  }
  take_eventfd(f.a.get());
  take_eventfd(f.a.get()); // does not wait
  CHECK(f.turn().empty());
}
