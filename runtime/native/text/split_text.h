// A text split into pieces, some of which are already tokens.
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
  bool is_start = false;  // whether it is the start of the whole prompt
  int32_t token_id = -1;  // id of an added token; -1 for text
};

struct SplitText {
  std::string bytes;
  std::vector<Piece> pieces;  // none is empty

  std::string_view text(const Piece& piece) const {
    return std::string_view(bytes).substr(piece.start, piece.end - piece.start);
  }
};

// What happens to the matches of an expression.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct Split {
  Expression expression;
  SplitBehavior behavior;
  bool invert = false;  // swap the matches and the text between them
};

// Splits each piece that is text.
void split_pieces(SplitText& split_text, const Split& split, const Deadline& deadline);

// Rewrites each piece that is text.
void rewrite_pieces(SplitText& split_text, const Rewrite& rewrite, const Deadline& deadline);

}  // namespace bita
