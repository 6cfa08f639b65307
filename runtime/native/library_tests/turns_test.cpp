// Tests of turns: they come in the order of the requests, and waiting ends at the deadline.
#include "../session/turns.h"

#include <thread>
#include <vector>

#include "../tests/check.h"

namespace bita::tests {
namespace {

using Clock = std::chrono::steady_clock;

const Adds order("turns come in the order of the requests", [] {
  Turns turns;
  std::vector<int> order;
  std::vector<std::thread> threads;
  {
    const Turn first(turns);
    for (int number = 0; number < 4; ++number) {
      std::atomic<bool> asks{false};
      threads.emplace_back([&, number] {
        asks = true;
        const Turn turn(turns);
        order.push_back(number);  // no lock needed: only one thread has the turn
      });
      while (!asks) std::this_thread::yield();
      std::this_thread::sleep_for(
          std::chrono::milliseconds(30));  // time for the thread to start waiting
    }
  }
  for (std::thread& thread : threads) thread.join();
  expect(order == std::vector<int>({0, 1, 2, 3}), "the order of asking");
});

const Adds deadlines("waiting ends at the deadline, and the turn goes to the next", [] {
  Turns turns;
  {
    const Turn first(turns);
    const Turn late(turns, Clock::now() + std::chrono::milliseconds(20), nullptr);
    expect(!late, "no turn");
    const Turn past(turns, Clock::now() - std::chrono::milliseconds(20), nullptr);
    expect(!past, "no turn after a deadline that has passed");
  }
  const Turn next(turns, Clock::now() + std::chrono::seconds(10), nullptr);
  expect(static_cast<bool>(next), "the turn is free again");
});

const Adds cancelled("waiting ends when it is cancelled", [] {
  Turns turns;
  std::atomic<bool> is_cancelled{false};
  const Turn first(turns);
  std::thread canceller([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    is_cancelled = true;
  });
  const Turn waiting(turns, std::nullopt, &is_cancelled);
  expect(!waiting, "no turn");
  canceller.join();
});

}  // namespace
}  // namespace bita::tests
