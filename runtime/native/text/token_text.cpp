#include "token_text.h"

#include <algorithm>
#include <utility>

#include "../base/fault.h"

namespace bita {

TextCodec::TextCodec(Tokenizer tokenizer)
    : tokenizer_(std::move(tokenizer)), rule_(DecodingRule::parse(tokenizer_.decoder())) {
  for (const SpecialToken& special : tokenizer_.special_tokens()) {
    if (tokenizer_.token(special.id) == special.text) {
      hidden_tokens_.emplace(special.id, special.text);
    }
    special_texts_.push_back(special.text);
    special_matcher_.add(special.text, static_cast<uint32_t>(special_texts_.size() - 1));
  }
  special_matcher_.prepare();
}

TextCodec TextCodec::parse(std::string_view json, const std::string& subject,
                           const std::string& fix, std::optional<int64_t> num_rows) {
  Tokenizer tokenizer = Tokenizer::parse(json, subject, fix);
  if (num_rows) tokenizer.set_num_rows(*num_rows);
  try {
    return TextCodec(std::move(tokenizer));
  } catch (const Fault& fault) {
    throw Fault(fault.kind(), subject + ": " + fault.what());
  }
}

std::string TextCodec::decode(const std::vector<int32_t>& ids) const {
  IncrementalText text(*this);
  std::string whole = text.push(ids);
  return whole += text.flush();
}

bool TextCodec::starts_special(std::string_view text) const {
  return special_matcher_.at(text, 0).has_value();
}

std::optional<std::string_view> TextCodec::shown_token(int64_t id) const {
  if (hidden_token(id)) return std::nullopt;
  return tokenizer_.token(id);
}

const std::string* TextCodec::hidden_token(int64_t id) const {
  const auto found = hidden_tokens_.find(id);
  return found == hidden_tokens_.end() ? nullptr : &found->second;
}

std::string_view TextCodec::special_at(std::string_view text, size_t start) const {
  const auto found = special_matcher_.at(text, start);
  return found ? std::string_view(special_texts_[found->value]) : std::string_view();
}

IncrementalText::IncrementalText(const TextCodec& codec, bool continues)
    : codec_(&codec),
      is_first_(!continues && codec.rule().has_first()),
      strip_count_(continues ? 0 : codec.rule().strip_count()) {}

std::string IncrementalText::push(const std::vector<int32_t>& ids) {
  std::string text;
  for (const int32_t id : ids) add(id, text);
  return text;
}

std::string IncrementalText::push(int32_t id) {
  std::string text;
  add(id, text);
  return text;
}

std::string IncrementalText::flush() {
  std::string text;
  utf8_.flush(text);
  strip(text, 0);
  return text;
}

void IncrementalText::add(int32_t id, std::string& text) {
  const auto token = codec_->shown_token(id);
  if (!token) return;
  bytes_.clear();
  codec_->rule().append(*token, is_first_, bytes_);
  is_first_ = false;
  const size_t start = text.size();
  utf8_.push(bytes_, text);
  strip(text, start);
}

// Strips the rule's `strip_text` from the start of the text; `start` is where the newest piece
// begins.
void IncrementalText::strip(std::string& text, size_t start) {
  const std::string& mark = codec_->rule().strip_text();
  if (strip_count_ == 0 || text.size() == start) return;
  size_t end = start;
  for (; strip_count_ > 0 && text.compare(end, mark.size(), mark) == 0; --strip_count_) {
    end += mark.size();
  }
  text.erase(start, end - start);
  if (text.size() > start) strip_count_ = 0;
}

}  // namespace bita
