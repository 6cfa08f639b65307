#include "split_text.h"

#include <algorithm>
#include <utility>

namespace bita {

namespace {

struct Stretch {
  size_t start;
  size_t end;
  bool is_match;
};

// Returns the matches and the stretches between them, which together cover `text`.
std::vector<Stretch> stretches_of(std::string_view text, const Split& split,
                                  const Deadline& deadline) {
  std::vector<Stretch> stretches;
  size_t done = 0;
  for (const Match& match : split.expression.matches(text, deadline)) {
    if (match.start > done) stretches.push_back({done, match.start, split.invert});
    stretches.push_back({match.start, match.end, !split.invert});
    done = match.end;
  }
  if (done < text.size()) stretches.push_back({done, text.size(), split.invert});
  return stretches;
}

// Joins adjacent stretches of the same kind. The start of the text counts as the end of a
// non-match.
std::vector<Stretch> contiguous(const std::vector<Stretch>& stretches) {
  std::vector<Stretch> merged;
  bool was_match = false;
  for (const Stretch& stretch : stretches) {
    if (stretch.is_match == was_match && !merged.empty()) {
      merged.back().end = stretch.end;
    } else {
      merged.push_back(stretch);
    }
    was_match = stretch.is_match;
  }
  return merged;
}

std::vector<Stretch> with_previous(const std::vector<Stretch>& stretches) {
  std::vector<Stretch> merged;
  bool was_match = false;
  for (const Stretch& stretch : stretches) {
    if (stretch.is_match && !was_match && !merged.empty()) {
      merged.back().end = stretch.end;
    } else {
      merged.push_back(stretch);
    }
    was_match = stretch.is_match;
  }
  return merged;
}

std::vector<Stretch> with_next(const std::vector<Stretch>& stretches) {
  std::vector<Stretch> merged;
  bool was_match = false;
  for (auto stretch = stretches.rbegin(); stretch != stretches.rend(); ++stretch) {
    if (stretch->is_match && !was_match && !merged.empty()) {
      merged.back().start = stretch->start;
    } else {
      merged.push_back(*stretch);
    }
    was_match = stretch->is_match;
  }
  std::reverse(merged.begin(), merged.end());
  return merged;
}

std::vector<Stretch> kept(std::vector<Stretch> stretches, SplitBehavior behavior) {
  switch (behavior) {
    case SplitBehavior::kRemoved:
      stretches.erase(std::remove_if(stretches.begin(), stretches.end(),
                                     [](const Stretch& stretch) { return stretch.is_match; }),
                      stretches.end());
      return stretches;
    case SplitBehavior::kContiguous:
      return contiguous(stretches);
    case SplitBehavior::kMergedWithPrevious:
      return with_previous(stretches);
    case SplitBehavior::kMergedWithNext:
      return with_next(stretches);
    case SplitBehavior::kIsolated:
      break;
  }
  return stretches;
}

}  // namespace

void split_pieces(SplitText& split_text, const Split& split, const Deadline& deadline) {
  std::vector<Piece> pieces;
  pieces.reserve(split_text.pieces.size());
  for (const Piece& piece : split_text.pieces) {
    if (piece.token_id >= 0) {
      pieces.push_back(piece);
      continue;
    }
    auto stretches = stretches_of(split_text.text(piece), split, deadline);
    for (const Stretch& stretch : kept(std::move(stretches), split.behavior)) {
      if (stretch.start == stretch.end) continue;
      pieces.push_back({piece.start + stretch.start, piece.start + stretch.end,
                        piece.is_start && stretch.start == 0});
    }
  }
  split_text.pieces = std::move(pieces);
}

void rewrite_pieces(SplitText& split_text, const Rewrite& rewrite, const Deadline& deadline) {
  SplitText rewritten;
  rewritten.bytes.reserve(split_text.bytes.size() + split_text.bytes.size() / 4);
  rewritten.pieces.reserve(split_text.pieces.size());
  for (const Piece& piece : split_text.pieces) {
    Piece now = piece;
    now.start = rewritten.bytes.size();
    if (piece.token_id < 0) {
      rewrite({split_text.text(piece), piece.is_start, deadline}, rewritten.bytes);
    }
    now.end = rewritten.bytes.size();
    if (now.token_id >= 0 || now.start < now.end) rewritten.pieces.push_back(now);
  }
  check_growth(split_text.bytes.size(), rewritten.bytes.size());
  split_text = std::move(rewritten);
}

}  // namespace bita
