// Byte-pair encoding: words to tokens by merging pairs.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "merge_table.h"
#include "vocabulary.h"

namespace bita {

struct BpeOptions {
  std::string unk_token;       // for characters outside the vocabulary; "" drops them
  bool fuse_unk = false;       // several such characters in a row are one token
  bool byte_fallback = false;  // such characters are tokens of their bytes, "<0xE2>", if there are
  bool ignore_merges = false;  // a word that is a token stays whole
};

// Immutable after `prepare`: several threads may use one.
class BpeModel {
 public:
  Vocabulary vocabulary;
  MergeTable merges;
  BpeOptions options;

  // Looks up what `tokenize` asks for often; to be called when vocabulary and options are set.
  void prepare();

  // Appends the token ids of a word. Cost: n log n for n characters.
  //
  // Throws Fault(kPrompt) for a character that needs an unknown token, if there is no such token.
  void tokenize(std::string_view word, std::vector<int32_t>& ids) const;

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr uint32_t kNumDirect = 0x400;  // byte-level tokens and most European letters

  void add_symbols(std::string_view word, std::vector<uint32_t>& symbols) const;
  bool add_bytes(std::string_view character, std::vector<uint32_t>& symbols) const;
  uint32_t id_at(std::string_view character) const;
  uint32_t unk_id() const;

  std::array<uint32_t, kNumDirect> direct_ids_{};  // by code point
  std::array<uint32_t, 256> byte_ids_{};           // of "<0x00>" to "<0xFF>"
};

}  // namespace bita
