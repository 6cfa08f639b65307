#include "tokenizer.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

#include "../base/fault.h"
#include "tokenizer_file.h"
#include "tokenizer_parts.h"
#include "utf8.h"

namespace bita {

namespace {

constexpr size_t kMaxPrompt = size_t{1} << 28;  // bytes
constexpr std::chrono::seconds kUsualTime{2};   // for a prompt; a page takes less than 1 ms
constexpr std::chrono::microseconds kTimePerByte{2};

Deadline deadline_for(std::string_view text) {
  return Deadline(kUsualTime + kTimePerByte * static_cast<int64_t>(text.size()));
}

[[noreturn]] void refuse_prompt(const std::string& what) {
  throw Fault(FaultKind::kPrompt, "the prompt " + what);
}

void check_prompt(std::string_view text) {
  if (text.size() > kMaxPrompt) {
    refuse_prompt("has " + std::to_string(text.size()) + " bytes; pass at most " +
                  std::to_string(kMaxPrompt));
  }
  const size_t end = utf8_error(text);
  if (end < text.size()) {
    refuse_prompt("is not UTF-8 at byte " + std::to_string(end) +
                  "; pass valid Unicode, for instance with invalid bytes replaced by U+FFFD");
  }
}

std::vector<int32_t> ids_of(const TokenizerParts& parts, const SplitText& words) {
  std::vector<int32_t> ids;
  ids.reserve(words.pieces.size());
  for (const Piece& piece : words.pieces) {
    if (piece.token_id >= 0) {
      ids.push_back(piece.token_id);
    } else {
      parts.model.tokenize(words.text(piece), ids);
    }
  }
  return ids;
}

// Inserts the text into the template. Without special tokens a text that the template repeats is
// still repeated.
std::vector<int32_t> apply_template(const TextTemplate& text_template,
                                    const std::vector<int32_t>& text_ids, bool add_special_tokens) {
  std::vector<int32_t> ids;
  ids.reserve(text_ids.size() + text_template.ids.size());
  for (const int32_t id : text_template.ids) {
    if (id == TextTemplate::kText) {
      ids.insert(ids.end(), text_ids.begin(), text_ids.end());
    } else if (add_special_tokens) {
      ids.push_back(id);
    }
  }
  return ids;
}

}  // namespace

Tokenizer Tokenizer::parse(std::string_view json, const std::string& subject,
                           const std::string& fix) {
  std::vector<std::string> faults;
  std::unique_ptr<TokenizerParts> parts;
  const auto refuse = [&](const std::exception& error) {
    throw Fault(FaultKind::kEngine, subject + " is not a tokenizer: " + error.what() + "; " + fix);
  };
  try {
    parts = read_tokenizer_file(json, faults);
  } catch (const std::runtime_error& error) {
    refuse(error);
  } catch (const Json::exception& error) {  // a value of an unexpected type
    refuse(error);
  }
  if (!faults.empty()) faults.back() += "; " + fix;
  raise_faults(FaultKind::kEngine, subject + " cannot be used", faults);
  Tokenizer tokenizer(std::move(parts));
  if (tokenizer.num_tokens() > 0) return tokenizer;
  throw Fault(FaultKind::kEngine, subject + " cannot be used: it has no tokens; " + fix);
}

Tokenizer::Tokenizer(std::unique_ptr<TokenizerParts> parts) : parts_(std::move(parts)) {}
Tokenizer::Tokenizer(Tokenizer&& other) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&& other) noexcept = default;
Tokenizer::~Tokenizer() = default;

void Tokenizer::set_num_rows(int64_t num_rows) { num_rows_ = num_rows; }

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  check_prompt(text);
  std::vector<int32_t> ids;
  try {
    ids = ids_of(*parts_, words_of(*parts_, text, deadline_for(text)));
    ids = apply_template(parts_->text_template, ids, add_special_tokens);
  } catch (const TooSlow& error) {
    refuse_prompt("cannot be turned into tokens: the tokenizer's rules fail on it (" +
                  std::string(error.what()) + "); change the prompt, or use another model");
  }
  const auto largest = std::max_element(ids.begin(), ids.end());
  if (num_rows_ >= 0 && largest != ids.end() && *largest >= num_rows_) {
    refuse_prompt("holds the token '" + std::string(token(*largest).value_or("")) + "' with id " +
                  std::to_string(*largest) + ", but the model has ids below " +
                  std::to_string(num_rows_) + " only; leave it out");
  }
  return ids;
}

size_t Tokenizer::num_tokens() const {
  size_t count = parts_->model.vocabulary.size();
  for (const AddedToken& added : parts_->added_tokens.all()) {
    count += parts_->model.vocabulary.id(added.content) ? 0 : 1;
  }
  return count;
}

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const {
  if (const auto added = parts_->added_tokens.id(std::string(token))) return added;
  const auto found = parts_->model.vocabulary.id(token);
  if (!found) return std::nullopt;
  return static_cast<int32_t>(*found);
}

std::optional<std::string_view> Tokenizer::token(int64_t id) const {
  if (const AddedToken* added = parts_->added_tokens.with_id(id)) return added->shown;
  if (id < 0) return std::nullopt;
  return parts_->model.vocabulary.token(static_cast<uint64_t>(id));
}

const std::vector<SpecialToken>& Tokenizer::special_tokens() const {
  return parts_->special_tokens;
}

int64_t Tokenizer::id_limit() const {
  int64_t limit = parts_->model.vocabulary.id_limit();
  for (const AddedToken& added : parts_->added_tokens.all()) {
    limit = std::max<int64_t>(limit, added.id + 1);
  }
  return limit;
}

const Json& Tokenizer::decoder() const { return parts_->decoder; }

}  // namespace bita
