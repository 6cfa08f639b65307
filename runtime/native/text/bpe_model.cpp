#include "bpe_model.h"

#include "../base/fault.h"
#include "merging.h"
#include "utf8.h"

namespace bita {

void BpeModel::prepare() {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  for (uint32_t i = 0; i < kNumDirect; ++i) {
    std::string character;
    append_utf8(i, character);
    direct_ids_[i] = vocabulary.id(character).value_or(kNone);
  }
  for (uint32_t byte = 0; byte < 256; ++byte) {
    std::string token = "<0x__>";
    token[3] = kDigits[byte >> 4];
    token[4] = kDigits[byte & 15];
    byte_ids_[byte] = vocabulary.id(token).value_or(kNone);
  }
}

void BpeModel::tokenize(std::string_view word, std::vector<int32_t>& ids) const {
  if (options.ignore_merges) {
    if (const auto whole = vocabulary.id(word)) {
      ids.push_back(static_cast<int32_t>(*whole));
      return;
    }
  }
  std::vector<uint32_t> symbols;
  symbols.reserve(word.size());
  add_symbols(word, symbols);
  merge_pairs(merges, symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

// Appends a token for each character, or the tokens of its bytes. An unknown token is held back
// until it is certain that no other is fused with it.
void BpeModel::add_symbols(std::string_view word, std::vector<uint32_t>& symbols) const {
  uint32_t waiting = kNone;
  for (size_t at = 0; at < word.size();) {
    const std::string_view character = word.substr(at, utf8_length(word[at]));
    at += character.size();
    const uint32_t id = id_at(character);
    if (id != kNone) {
      if (waiting != kNone) symbols.push_back(waiting);
      waiting = kNone;
      symbols.push_back(id);
    } else if (options.byte_fallback && add_bytes(character, symbols)) {
      continue;
    } else if (!options.unk_token.empty()) {
      if (waiting != kNone && !options.fuse_unk) symbols.push_back(waiting);
      waiting = unk_id();
    }
  }
  if (waiting != kNone) symbols.push_back(waiting);
}

bool BpeModel::add_bytes(std::string_view character, std::vector<uint32_t>& symbols) const {
  for (const char byte : character) {
    if (byte_ids_[static_cast<unsigned char>(byte)] == kNone) return false;
  }
  for (const char byte : character) symbols.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
  return true;
}

uint32_t BpeModel::id_at(std::string_view character) const {
  const uint32_t code_point = code_point_at(character, 0);
  if (code_point < kNumDirect) return direct_ids_[code_point];
  return vocabulary.id(character).value_or(kNone);
}

uint32_t BpeModel::unk_id() const {
  const auto found = vocabulary.id(options.unk_token);
  if (found) return *found;
  throw Fault(FaultKind::kPrompt, "the prompt cannot be turned into tokens: the unknown token '" +
                                      options.unk_token +
                                      "' is not in the vocabulary; change the prompt, or use "
                                      "another model");
}

}  // namespace bita
