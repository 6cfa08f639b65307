// Fuzzes text in a byte-level and a SentencePiece tokenizer: decoding restores it, also in pieces,
// and a stop rule never shows more than the text.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "../base/fault.h"
#include "../text/byte_alphabet.h"
#include "../text/stop_rule.h"
#include "../text/token_text.h"
#include "../text/utf8.h"

namespace {

using bita::IncrementalText;
using bita::Json;
using bita::TextCodec;

void check(bool holds) {
  if (!holds) __builtin_trap();
}

bita::TextCodec codec_of(const Json& json) {
  return TextCodec::parse(json.dump(), "built in", "fix it");
}

Json added(const char* content) {
  return {{"id", 0},         {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

// Returns a codec with GPT-2's rules and a few merges.
TextCodec make_byte_level() {
  Json vocabulary = {{"<s>", 256}, {"ab", 257},   {"abc", 258},          {"\u0120a", 259},
                     {"aa", 260},  {"aaaa", 261}, {"\u010a\u010a", 262}, {"\u00c3\u00a9", 263}};
  for (int byte = 0; byte < 256; ++byte) {
    std::string character;
    bita::append_byte_characters(std::string(1, static_cast<char>(byte)), character);
    vocabulary[character] = byte;
  }
  const Json merges = {"a b", "ab c", "\u0120 a", "a a", "aa aa", "\u010a \u010a", "\u00c3 \u00a9"};
  return codec_of(
      {{"added_tokens", Json::array({added("<s>")})},
       {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
       {"decoder", {{"type", "ByteLevel"}}},
       {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", merges}}}});
}

// Returns a codec with Gemma's rules and a few merges.
TextCodec make_sentencepiece() {
  Json vocabulary = {{"<s>", 256}, {"\u2581", 257},       {"a", 258},
                     {"b", 259},   {"\u2581a", 260},      {"ab", 261},
                     {"aa", 262},  {"\u2581\u2581", 263}, {"\u2581\u2581a", 264}};
  const char* const kDigits = "0123456789ABCDEF";
  for (int byte = 0; byte < 256; ++byte) {
    const std::string number = {kDigits[byte / 16], kDigits[byte % 16]};
    vocabulary["<0x" + number + ">"] = byte;
  }
  const Json merges = {"\u2581 a", "a b", "a a", "\u2581 \u2581", "\u2581\u2581 a"};
  const Json mark = {{"String", "\u2581"}};
  const Json decoders = {{{"type", "Replace"}, {"pattern", mark}, {"content", " "}},
                         {{"type", "ByteFallback"}},
                         {{"type", "Fuse"}}};
  return codec_of(
      {{"added_tokens", Json::array({added("<s>")})},
       {"normalizer", {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}}},
       {"decoder", {{"type", "Sequence"}, {"decoders", decoders}}},
       {"model",
        {{"type", "BPE"}, {"byte_fallback", true}, {"vocab", vocabulary}, {"merges", merges}}}});
}

std::string replaced(std::string text, std::string_view old, std::string_view now) {
  for (size_t at = text.find(old); at != std::string::npos; at = text.find(old, at + now.size())) {
    text.replace(at, old.size(), now);
  }
  return text;
}

// Decodes in pieces of 0 to 3 tokens, with sizes from `lengths`.
std::string in_pieces(const TextCodec& codec, const std::vector<int32_t>& ids,
                      std::string_view lengths) {
  IncrementalText text(codec);
  std::string all;
  size_t done = 0;
  for (size_t i = 0; done < ids.size(); ++i) {
    const size_t length = i < lengths.size() ? static_cast<size_t>(lengths[i] & 3) : ids.size();
    const size_t end = std::min(ids.size(), done + length);
    const auto first = ids.begin() + static_cast<std::ptrdiff_t>(done);
    const std::string piece =
        text.push(std::vector<int32_t>(first, ids.begin() + static_cast<std::ptrdiff_t>(end)));
    check(bita::is_utf8(piece));
    all += piece;
    done = end;
  }
  return all + text.flush();
}

// Returns the text that a stop rule shows of `ids`.
std::string shown_with(const TextCodec& codec, const std::vector<int32_t>& ids,
                       const std::vector<std::string>& stops, bool& is_stopped) {
  bita::StopRule rule(IncrementalText(codec), {{}, 1 << 20, stops, {}});
  std::string shown;
  for (const int32_t id : ids) {
    rule.feed(id);
    shown += rule.take_text();
  }
  is_stopped = rule.finish_reason() != bita::FinishReason::kNone;
  return shown + rule.close();
}

void check_stops(const TextCodec& codec, const std::vector<int32_t>& ids, const std::string& whole,
                 std::string_view bytes) {
  const std::string stop(bytes.substr(0, bita::utf8_error(bytes)));
  if (stop.empty()) return;
  bool is_stopped = false;
  const std::string shown = shown_with(codec, ids, {stop}, is_stopped);
  check(whole.compare(0, shown.size(), shown) == 0);
  if (stop.find("<s>") == std::string::npos)
    check(whole.find(stop) == (is_stopped ? shown.size() : std::string::npos));
  // A special token that a stop string contains becomes a mark in the searched text, so that the
  // text before and after it is not adjacent.
  const std::string marked = shown_with(codec, ids, {stop, "a<s>"}, is_stopped);
  check(whole.compare(0, marked.size(), marked) == 0);
  if (!is_stopped) check(marked == whole);
}

void check_codec(const TextCodec& codec, std::string_view text, const std::string& expected,
                 std::string_view bytes) {
  const std::vector<int32_t> ids = codec.encode(text, false);
  const std::string whole = codec.decode(ids);
  check(whole == expected);
  check(in_pieces(codec, ids, bytes) == whole);
  check_stops(codec, ids, whole, bytes.substr(0, 3));
  std::vector<int32_t> any;  // ids that no text is encoded to
  for (const char byte : bytes) any.push_back(static_cast<unsigned char>(byte) + (byte & 8));
  check(in_pieces(codec, any, bytes) == codec.decode(any));
  check(bita::is_utf8(codec.decode(any)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const TextCodec kByteLevel = make_byte_level();
  static const TextCodec kSentencepiece = make_sentencepiece();
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::string_view text = bytes.substr(0, bita::utf8_error(bytes));
  const std::string shown = replaced(std::string(text), "<s>", "");
  check_codec(kByteLevel, text, shown, bytes);
  check_codec(kSentencepiece, text, replaced(shown, "\u2581", " "), bytes);
  return 0;
}
