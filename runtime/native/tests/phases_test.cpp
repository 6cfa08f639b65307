// Phases of one loop, on threads that come and go at any time.
//
// Pieces write to plain memory: ThreadSanitizer reports a phase that began too early, and a piece
// that two threads took. This file is compiled with it, unlike the other tests.
#include "../operators/phases.h"

#include <atomic>
#include <deque>
#include <thread>
#include <utility>

#include "nodes.h"

namespace bita::tests {
namespace {

using Lengths = std::vector<int64_t>;
using Place = std::pair<int64_t, int64_t>;  // a phase, and a piece of it

// Phases whose pieces read all results of the phase before, and record what they did.
class Work {
 public:
  // stalled: a piece whose thread waits until all other pieces of its phase are done, or {-1, -1}.
  // is_early: every other phase is early. The stalled piece then waits until one of them has begun.
  explicit Work(const Lengths& lengths, const Place& stalled = {-1, -1}, bool is_early = false)
      : stalled_(stalled), is_early_(is_early) {
    for (const int64_t length : lengths) results_.emplace_back(static_cast<size_t>(length));
  }

  auto phase(int64_t index) {
    return Phase{pieces(index), [=](int64_t piece) { run(index, piece); }};
  }

  auto early_phase(int64_t index) {
    return EarlyPhase{pieces(index), [=](int64_t piece, const auto& await) {
                        begin(index, piece);
                        await();
                        run(index, piece);
                      }};
  }

  // Run as many phases as there are lengths.
  void run_all(const NodeRun& node) {
    switch (results_.size()) {
      case 1:
        return run_phases(node, phase(0));
      case 3:
        if (is_early_) return run_phases(node, phase(0), early_phase(1), phase(2));
        return run_phases(node, phase(0), phase(1), phase(2));
      default:
        if (is_early_)
          return run_phases(node, phase(0), early_phase(1), phase(2), early_phase(3), phase(4),
                            early_phase(5));
        return run_phases(node, phase(0), phase(1), phase(2), phase(3), phase(4), phase(5));
    }
  }

  // The number of pieces done so far, in all phases.
  int64_t num_done() const { return num_done_.load(std::memory_order_relaxed); }
  int64_t num_pieces() const {
    int64_t sum = 0;
    for (const auto& phase : results_) sum += static_cast<int64_t>(phase.size());
    return sum;
  }

  void expect_done(const std::string& what) const {
    int64_t before = 1, long_before = 1;
    for (size_t index = 0; index < results_.size(); ++index) {
      int64_t sum = 0;
      for (size_t piece = 0; piece < results_[index].size(); ++piece) {
        const Result& result = results_[index][piece];
        const std::string which =
            what + ", piece " + std::to_string(piece) + " of phase " + std::to_string(index);
        expect(result.num_runs == 1, which + " ran " + std::to_string(result.num_runs) + " times");
        expect(result.value == before + static_cast<int64_t>(piece), which + " began too early");
        if (is_early_ && index % 2)
          expect(result.seen == long_before, which + " began far too early");
        sum += result.value;
      }
      long_before = before;
      if (!results_[index].empty()) before = sum;
    }
  }

 private:
  static constexpr int kYields = 4000;  // some ms, in which waiting threads stop spinning

  struct Result {
    int64_t num_runs = 0, value = 0;
    int64_t seen = 0;  // for pieces that began early
  };

  int64_t pieces(int64_t index) const {
    return static_cast<int64_t>(results_[static_cast<size_t>(index)].size());
  }

  // The sum of the last earlier phase that has pieces, or 1 if there is none.
  int64_t sum_before(int64_t index) const {
    while (--index >= 0) {
      int64_t sum = 0;
      for (const Result& result : results_[static_cast<size_t>(index)]) sum += result.value;
      if (pieces(index)) return sum;
    }
    return 1;
  }

  void begin(int64_t index, int64_t piece) {
    results_[static_cast<size_t>(index)][static_cast<size_t>(piece)].seen = sum_before(index - 1);
    num_begun_.fetch_add(1, std::memory_order_relaxed);
  }

  void run(int64_t index, int64_t piece) {
    Result& result = results_[static_cast<size_t>(index)][static_cast<size_t>(piece)];
    ++result.num_runs;
    result.value = sum_before(index) + piece;
    if (Place(index, piece) == stalled_) is_early_ ? await_early() : stall(index);
    num_done_.fetch_add(1, std::memory_order_relaxed);
  }

  // Wait until all other pieces of a phase are done, and then a little longer.
  void stall(int64_t index) const {
    int64_t others = -1;
    for (int64_t i = 0; i <= index; ++i) others += pieces(i);
    while (num_done() < others) std::this_thread::yield();
    for (int i = 0; i < kYields; ++i) std::this_thread::yield();
  }

  void await_early() const {
    while (!num_begun_.load(std::memory_order_relaxed)) std::this_thread::yield();
  }

  std::vector<std::vector<Result>> results_;
  Place stalled_;
  bool is_early_;
  std::atomic<int64_t> num_begun_{0};
  std::atomic<int64_t> num_done_{0};  // always relaxed, so that it imposes no order
};

std::string text_of(const Lengths& lengths) {
  std::string text = "phases of";
  for (const int64_t length : lengths) text += " " + std::to_string(length);
  return text;
}

void run_work(Work& work, const Threads& threads) {
  with_context(threads, [&](OrtKernelContext* context) {
    work.run_all(NodeRun(context, nullptr, nullptr));
  });
}

const std::vector<Lengths>& all_lengths() {
  static const std::vector<Lengths> all = {
      {0},
      {1},
      {7},
      {300},
      {0, 0, 0},
      {1, 1, 1},
      {0, 5, 0},
      {40, 1, 40},
      {3, 200, 2},
      {1, 0, 17},
      {16, 0, 1, 64, 0, 3},
      {0, 33, 2, 1, 90, 8},
  };
  return all;
}

const Adds pieces("Phases do each piece once, after all of the phase before", [] {
  uint32_t order = 0;
  for (const Lengths& lengths : all_lengths())
    for (int count = 1; count <= 8; ++count)
      for (const int64_t more : {0, 1, 56}) {
        use_processors(count + more);
        Work work(lengths, {-1, -1}, ++order % 2);
        run_work(work, {count, order});
        work.expect_done(text_of(lengths) + ", " + std::to_string(count) + " threads");
      }
  use_processors(kProcessors);
});

const Adds more_threads("Phases need only one thread, whatever the number of processors", [] {
  for (const int64_t processors : {1, 2, 64})
    for (const Lengths& lengths : all_lengths())
      for (const bool is_early : {false, true}) {
        use_processors(processors);
        Work work(lengths, {-1, -1}, is_early);
        run_work(work, {1, 3});
        work.expect_done(text_of(lengths) + ", one thread");
      }
  use_processors(kProcessors);
});

// All threads except the first wait until `start` pieces are done.
void run_with_late(Work& work, int count, int64_t start, uint32_t order) {
  run_work(work, {count, order, [&](int thread) {
                    while (thread && work.num_done() < start) std::this_thread::yield();
                  }});
}

const Adds one_taker("A piece is taken by one thread, however many try at once", [] {
  constexpr int64_t kPieces = 200000;
  constexpr int64_t kMembers = 3;
  Progress progress;
  progress.start(1, kMembers);
  std::vector<std::atomic<int>> num_takers(kPieces);
  // slower threads find pieces taken, and soon compete for the same ones
  const auto take_all = [&] {
    for (int64_t member = 0; member < kMembers; ++member)
      for (int64_t piece; (piece = progress.take(0, member, kPieces)) >= 0;)
        num_takers[static_cast<size_t>(piece)].fetch_add(1, std::memory_order_relaxed);
  };
  std::thread others[] = {std::thread(take_all), std::thread(take_all)};
  take_all();
  for (std::thread& other : others) other.join();
  for (int64_t piece = 0; piece < kPieces; ++piece)
    expect(num_takers[static_cast<size_t>(piece)] == 1,
           "piece " + std::to_string(piece) + " is not taken once");
});

const Adds late("Threads may join phases late, or when all is done", [] {
  uint32_t order = 0;
  for (const Lengths& lengths : all_lengths())
    for (const int count : {2, 3, 8}) {
      const int64_t all = Work(lengths).num_pieces();
      for (const int64_t start : {all / 3, all / 2, all - 1, all}) {
        use_processors(count + order % 2);
        Work work(lengths, {-1, -1}, ++order % 3);
        run_with_late(work, count, start, order);
        work.expect_done(text_of(lengths) + ", late after " + std::to_string(start));
      }
    }
  use_processors(kProcessors);
});

const Adds stalled("A phase waits for the thread that stalls in its last piece", [] {
  uint32_t order = 0;
  for (const Place& place : {Place(0, 0), Place(1, 7), Place(2, 4)})
    for (const int count : {2, 4, 8}) {
      use_processors(count);
      Work work({6, 9, 5}, place);
      run_work(work, {count, ++order});
      work.expect_done("a thread that stalls, " + std::to_string(count) + " threads");
    }
  use_processors(kProcessors);
});

const Adds early("An early phase does not wait for the phase before", [] {
  uint32_t order = 0;
  for (const Place& place : {Place(0, 0), Place(0, 5)})
    for (const int count : {2, 4, 8}) {
      use_processors(count);
      Work work({6, 9, 5}, place, true);
      run_work(work, {count, ++order});
      work.expect_done("early phases, " + std::to_string(count) + " threads");
    }
  use_processors(kProcessors);
});

const Adds two_loops("Threads that run phases of their own do not disturb each other", [] {
  const auto run_own = [](std::deque<Work>& works) {
    for (Work& work : works) run_work(work, {3, 5});
  };
  std::deque<Work> mine, theirs;
  for (int round = 0; round < 2; ++round)
    for (const Lengths& lengths : all_lengths()) {
      mine.emplace_back(lengths);
      theirs.emplace_back(Lengths(lengths.rbegin(), lengths.rend()));
    }
  std::thread other([&] { run_own(theirs); });
  run_own(mine);
  other.join();
  for (const Work& work : mine) work.expect_done("phases of this thread");
  for (const Work& work : theirs) work.expect_done("phases of another thread");
});

const Adds parts("even_phase covers all units once, in as many parts as are worthwhile", [] {
  for (const int64_t processors : {1, 4, 64})
    for (const int64_t total : {0, 1, 3, 16, 17, 255, 256, 1000}) {
      use_processors(processors);
      std::vector<int> units(static_cast<size_t>(total));
      const auto phase = even_phase(total, [&](int64_t first, int64_t last) {
        expect(first < last, "a part is empty");
        for (int64_t i = first; i < last; ++i) ++units[static_cast<size_t>(i)];
      });
      expect(phase.pieces == std::min(total, 4 * processors), "the number of parts");
      for (int64_t piece = 0; piece < phase.pieces; ++piece) phase.body(piece);
      expect_same(units, std::vector<int>(units.size(), 1), "even parts");
    }
  use_processors(kProcessors);
});

}  // namespace
}  // namespace bita::tests
