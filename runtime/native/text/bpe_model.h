// Byte-pair encoding of words.
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
  std::string unk_token;       // replaces characters outside the vocabulary; "" drops them
  bool fuse_unk = false;       // a run of such characters becomes one token
  bool byte_fallback = false;  // encode such characters by byte tokens like "<0xE2>" if possible
  bool ignore_merges = false;  // keep a word whole if it is a token
};

// Immutable and thread-safe after `prepare`.
class BpeModel {
 public:
  Vocabulary vocabulary;
  MergeTable merges;
  BpeOptions options;

  // Fills lookup tables for `tokenize`. Call it after setting the vocabulary and options.
  void prepare();

  // Appends the token ids of a word, in O(n log n) for n characters.
  //
  // Throws Fault(kPrompt) for a character that needs the unknown token if the vocabulary lacks it.
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
