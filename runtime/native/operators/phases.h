// Work in phases, run by the threads of one loop. A phase begins when the one before it has ended.
//
// A loop of ONNX Runtime costs about 3 us, as much as the work of some phases; here the next phase
// starts within half a microsecond. No particular thread is relied on: each takes pieces that are
// still free, and a single thread can do all of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <type_traits>

#include "ort.h"

namespace bita {

// Calls body(piece) for each piece in [0, pieces), in parallel if there are threads. It must not
// throw.
template <class Body>
struct Phase {
  static constexpr bool kIsEarly = false;
  int64_t pieces;
  Body body;
};
template <class Body>
Phase(int64_t, Body) -> Phase<Body>;

// A phase that begins when the last but one has ended: body(piece, await) calls await() before it
// uses results of the previous phase. So no thread waits for the few pieces of that phase.
template <class Body>
struct EarlyPhase {
  static constexpr bool kIsEarly = true;
  int64_t pieces;
  Body body;
};
template <class Body>
EarlyPhase(int64_t, Body) -> EarlyPhase<Body>;

// The number of pieces into which `total` units of work are divided: several for each processor, so
// that others can help one that is late or slow.
inline int64_t shares_of(int64_t total) {
  constexpr int64_t kShares = 4;
  return std::min(total, kShares * num_processors());
}

// Calls body(first, last) for even parts of [0, total).
template <class Body>
auto even_phase(int64_t total, const Body& body) {
  const int64_t pieces = shares_of(total);
  return Phase{pieces, [=](int64_t i) { body(total * i / pieces, total * (i + 1) / pieces); }};
}

// Keeps track of the pieces of one loop's phases: which are taken, and how many are done.
//
// Each member of the loop has a share of a phase's pieces, and a counter of those that are taken. A
// member whose share is used up takes pieces of the other shares. So most counters stay in the
// cache of one processor.
class Progress {
 public:
  // Mark all pieces of `num_phases` phases as free.
  void start(size_t num_phases, int64_t members);

  // Take a piece of a member's share of `pieces`; returns its number, or -1 if none is free.
  int64_t take(size_t phase, int64_t member, int64_t pieces) {
    const int64_t first = pieces * member / members_, stop = pieces * (member + 1) / members_;
    std::atomic<int64_t>& taken = at(phase, member);
    if (first == stop || first + taken.load(std::memory_order_relaxed) >= stop) return -1;
    const int64_t piece = first + taken.fetch_add(1, std::memory_order_relaxed);
    return piece < stop ? piece : -1;
  }
  // Report `pieces` more pieces as done.
  void count(size_t phase, int64_t pieces) {
    at(phase, members_).fetch_add(pieces, std::memory_order_release);
  }
  bool has_ended(size_t phase, int64_t pieces) const {
    return at(phase, members_).load(std::memory_order_acquire) == pieces;
  }

  // Report that all phases have ended: a thread that arrives later need not look for pieces.
  void finish() { is_finished_.store(true, std::memory_order_release); }
  bool is_finished() const { return is_finished_.load(std::memory_order_acquire); }

 private:
  // Each counter has its own cache line.
  struct alignas(64) Count {
    std::atomic<int64_t> value;
  };

  // The number of pieces taken from a member's share or, for member members_, of pieces that are
  // done.
  std::atomic<int64_t>& at(size_t phase, int64_t member) const {
    return counts_[phase * static_cast<size_t>(members_ + 1) + static_cast<size_t>(member)].value;
  }

  std::unique_ptr<Count[]> counts_;
  size_t num_counts_ = 0;
  int64_t members_ = 0;
  std::atomic<bool> is_finished_{false};
};

// Progress of the loop that this thread runs.
Progress& progress_of_thread();

// Wait until the threads that took the last pieces of a phase are done.
inline void await_end(const Progress& progress, size_t phase, int64_t pieces) {
  // About 100 us; a longer wait means that the other thread has no processor.
  constexpr int kSpins = 20000;
  int spins = 0;
  while (!progress.has_ended(phase, pieces)) {
    if (spins < kSpins)
      ++spins;
    else
      std::this_thread::yield();
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
  }
}

// Run the phases in order. The first phase must not be early, nor may two early phases follow each
// other.
template <class... Phases>
void run_phases(const NodeRun& node, const Phases&... phases) {
  const int64_t members = num_processors();
  Progress& progress = progress_of_thread();
  progress.start(sizeof...(phases), members);
  node.parallel(members, [&](int64_t member) {
    if (progress.is_finished()) return;  // for example, a thread's second member
    size_t index = 0;
    int64_t pieces_before = 0;
    const auto await_before = [&] {
      if (index) await_end(progress, index - 1, pieces_before);
    };
    const auto take_part = [&](const auto& phase) {
      constexpr bool kIsEarly = std::decay_t<decltype(phase)>::kIsEarly;
      if constexpr (!kIsEarly) await_before();
      const int64_t pieces = phase.pieces;
      int64_t done = 0;
      for (int64_t i = 0; i < members; ++i) {
        const int64_t of = (member + i) % members;
        for (int64_t piece; (piece = progress.take(index, of, pieces)) >= 0; ++done)
          if constexpr (kIsEarly)
            phase.body(piece, await_before);
          else
            phase.body(piece);
      }
      if (done) progress.count(index, done);
      if constexpr (kIsEarly) await_before();
      pieces_before = pieces;
      ++index;
    };
    (take_part(phases), ...);
    await_before();
    progress.finish();
  });
}

}  // namespace bita
