// Loops over registers. Compilers may leave them as loops, with the registers in memory.
#pragma once

#include <utility>

namespace bita {
namespace {

template <class F, int... I>
inline void call_with(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}

// Calls f with 0 to N - 1 as constants.
template <int N, class F>
inline void unrolled(F&& f) {
  call_with(f, std::make_integer_sequence<int, N>());
}

}  // namespace
}  // namespace bita
