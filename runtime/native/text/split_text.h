// A text that is cut into pieces, some of which are tokens already.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "deadline.h"
#include "expression.h"
#include "rewrites.h"

namespace bita {

struct Piece {
  size_t start;
  size_t end;
  bool is_start = false;  // it begins where the whole prompt begins
  int32_t token_id = -1;  // of an added token; -1 for text
};

struct SplitText {
  std::string bytes;
  std::vector<Piece> pieces;  // none is empty

  std::string_view text(const Piece& piece) const {
    return std::string_view(bytes).substr(piece.start, piece.end - piece.start);
  }
};

// What becomes of the places where an expression matches.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct Split {
  Expression expression;
  SplitBehavior behavior;
  bool invert = false;  // what is between the matches counts as the matches
};

// Cuts each piece that is text.
void split_pieces(SplitText& split_text, const Split& split, const Deadline& deadline);

// Rewrites each piece that is text.
void rewrite_pieces(SplitText& split_text, const Rewrite& rewrite, const Deadline& deadline);

}  // namespace bita
