#include <algorithm>
#include <stdexcept>

#include "file_fields.h"
#include "rule_files.h"

namespace bita {

namespace {

constexpr size_t kMaxContent =
    512;  // bytes; each position of a text may be compared with all of them
constexpr std::chrono::seconds kMaxTime{10};  // to normalize all tokens

AddedToken read_token(const Json& item) {
  AddedToken token;
  token.content = text_field(item, "content");
  token.single_word = flag_field(item, "single_word");
  token.lstrip = flag_field(item, "lstrip");
  token.rstrip = flag_field(item, "rstrip");
  token.normalized = flag_field(item, "normalized");
  token.special = flag_field(item, "special");
  if (token.content.size() > kMaxContent) {
    throw std::runtime_error("the added token " + shown(token.content) + " is too long");
  }
  return token;
}

// Assigns ids like the `tokenizers` package, which ignores those in the file.
class AddedIds {
 public:
  explicit AddedIds(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

  int32_t next(const std::string& content) {
    const auto found = vocabulary_.id(content);
    const auto size = static_cast<int64_t>(vocabulary_.size());
    const int64_t id = found                           ? int64_t{*found}
                       : largest_ < 0                  ? size
                       : largest_ >= size || size == 0 ? largest_ + 1
                                                       : size;
    largest_ = std::max(largest_, id);
    if (id > Vocabulary::kMaxId) throw std::runtime_error("it has too many added tokens");
    return static_cast<int32_t>(id);
  }

 private:
  const Vocabulary& vocabulary_;
  int64_t largest_ = -1;  // largest id of an added token
};

}  // namespace

void read_added_tokens(const Json& part, TokenizerParts& parts) {
  AddedIds ids(parts.model.vocabulary);
  const Deadline deadline(kMaxTime);
  if (!part.is_null() && !part.is_array()) throw std::runtime_error("added_tokens is not a list");
  for (const Json& item : part) {
    AddedToken token = read_token(item);
    if (token.content.empty()) continue;
    if (parts.added_tokens.id(token.content)) {
      throw std::runtime_error("the added token " + shown(token.content) + " occurs twice");
    }
    token.id = ids.next(token.content);
    token.shown =
        token.normalized ? parts.normalizer.apply(token.content, deadline) : token.content;
    if (token.shown.empty()) {  // the `tokenizers` package would match it between all bytes
      throw std::runtime_error("the added token " + shown(token.content) +
                               " is empty after normalization");
    }
    if (token.special) parts.special_tokens.push_back({token.id, token.content});
    parts.added_tokens.add(std::move(token));
  }
  parts.added_tokens.prepare();
  std::sort(parts.special_tokens.begin(), parts.special_tokens.end(),
            [](const SpecialToken& a, const SpecialToken& b) { return a.id < b.id; });
}

}  // namespace bita
