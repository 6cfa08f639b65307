#include "added_tokens.h"

#include <algorithm>
#include <utility>

#include "../base/fault.h"
#include "character_classes.h"
#include "utf8.h"

namespace bita {

namespace {

constexpr size_t kTokensPerCheck = 64;  // tokens found between checks of the deadline

// Refuses a prompt on which the `tokenizers` package fails too.
[[noreturn]] void refuse_overlap(const AddedToken& token) {
  throw Fault(
      FaultKind::kPrompt,
      "the prompt cannot be turned into tokens: the token '" + token.content +
          "' is within white space that the token before it takes; change the prompt, or use "
          "another model");
}

}  // namespace

void AddedTokens::add(AddedToken token) {
  ids_.emplace(token.content, token.id);
  index_of_id_[token.id] = tokens_.size();
  tokens_.push_back(std::move(token));
}

void AddedTokens::prepare() {
  // special tokens come first: of two tokens with equal normalized text the first wins
  for (const bool special : {true, false}) {
    for (size_t i = 0; i < tokens_.size(); ++i) {
      const AddedToken& token = tokens_[i];
      if (token.special != special) continue;
      if (token.single_word && !word_) word_.emplace(rust_word());
      (token.normalized ? normalized_ : plain_).add(token.shown, static_cast<uint32_t>(i));
    }
  }
  plain_.prepare();
  normalized_.prepare();
}

const AddedToken* AddedTokens::with_id(int64_t id) const {
  const auto found = index_of_id_.find(id);
  return found == index_of_id_.end() ? nullptr : &tokens_[found->second];
}

std::optional<int32_t> AddedTokens::id(const std::string& content) const {
  const auto found = ids_.find(content);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

SplitText AddedTokens::extract(std::string_view text, const Normalizer& normalizer,
                               const Deadline& deadline) const {
  SplitText split_text;
  split_text.bytes.reserve(text.size() + text.size() / 4);
  for (const Piece& piece : find(plain_, text, deadline)) {
    if (piece.token_id >= 0) {
      split_text.pieces.push_back({0, 0, false, piece.token_id});
      continue;
    }
    const std::string now =
        normalizer.apply(text.substr(piece.start, piece.end - piece.start), deadline);
    const size_t offset = split_text.bytes.size();
    for (const Piece& inner : find(normalized_, now, deadline)) {
      split_text.pieces.push_back({offset + inner.start, offset + inner.end,
                                   piece.is_start && inner.is_start, inner.token_id});
    }
    split_text.bytes += now;
  }
  return split_text;
}

// Returns the tokens and the text between them. White space between two tokens may be claimed by
// both; a token that is left without any bytes of its own is dropped.
std::vector<Piece> AddedTokens::find(const TokenMatcher& matcher, std::string_view text,
                                     const Deadline& deadline) const {
  std::vector<Piece> pieces;
  size_t done = 0;
  const auto add_text = [&](size_t end) {
    if (done < end) pieces.push_back({done, end, done == 0, -1});
  };
  size_t from = 0;
  size_t num_found = 0;
  while (const auto found = matcher.find(text, from)) {
    const AddedToken& token = tokens_[found->value];
    from = found->end;
    if (++num_found % kTokensPerCheck == 0) deadline.check();
    if (token.single_word && !stands_alone(text, found->start, found->end, deadline)) continue;
    size_t start = found->start;
    size_t end = found->end;
    if (token.lstrip) {
      start = std::max(start, done);
      start = done + trailing_space(text.substr(done, start - done));
    }
    if (token.rstrip) end += leading_space(text.substr(end));
    if (start > end) refuse_overlap(token);
    add_text(start);
    if (start < end) pieces.push_back({start, end, start == 0, token.id});
    done = end;
  }
  add_text(text.size());
  return pieces;
}

bool AddedTokens::stands_alone(std::string_view text, size_t start, size_t end,
                               const Deadline& deadline) const {
  const auto is_word = [&](size_t at) {
    const std::string_view character = text.substr(at, utf8_length(text[at]));
    return !word_->matches(character, deadline).empty();
  };
  if (end < text.size() && is_word(end)) return false;
  if (start == 0) return true;
  size_t before = start - 1;
  while ((static_cast<unsigned char>(text[before]) & 0xC0) == 0x80) --before;
  return !is_word(before);
}

}  // namespace bita
