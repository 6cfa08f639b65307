#include "../base/fault.h"
#include "../tests/check.h"
#include "../text/token_text.h"
#include "text_files.h"

namespace bita::tests {
namespace {

const char* const kVocabulary = R"({"<s>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "abc": 5, "bc": 6,
  "\u0120": 7, "\u0120a": 8, "\u00c3": 9, "\u00a9": 10})";
const char* const kMerges = R"(["b c", "a b", "ab c", "\u0120 a"])";
const std::string kByteLevel =
    R"("pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
       "decoder": {"type": "ByteLevel"}, "added_tokens": [)" +
    special_token("<s>") + "],";

TextCodec codec(const std::string& json) { return TextCodec::parse(json, "file", "fix it"); }

std::string fault_of(const std::string& json) {
  try {
    codec(json);
  } catch (const Fault& fault) {
    return fault.what();
  }
  return "";
}

void expect_part(const std::string& message, const std::string& part) {
  expect(message.find(part) != std::string::npos, message + " has " + part);
}

void expect_fault(const std::string& json, const std::string& part) {
  expect_part(fault_of(json), part);
}

void merges_go_by_rank() {
  const TextCodec small = codec(tokenizer_json(kVocabulary, kMerges, kByteLevel));
  // "b c" has the lowest rank, so "abc" is never merged from "ab" and "c"
  expect_same<int32_t>(small.encode("abc", false), {1, 6}, "abc");
  expect_same<int32_t>(small.encode("ab a", false), {4, 8}, "a space belongs to its word");
  expect_same<int32_t>(small.encode("\u00e9", false), {9, 10}, "bytes");
  expect_same<int32_t>(small.encode("a<s>b", false), {1, 0, 2}, "a special token");
  expect_same<int32_t>(small.encode("", true), {}, "nothing");
  expect_same<int32_t>(small.encode("xyz", false), {}, "letters that the vocabulary lacks");
  expect(small.decode({1, 6, 0, 8, 99, -1}) == "abc a", "special and unknown ids are nothing");
}

void long_words_merge_as_short_ones() {
  const TextCodec small = codec(tokenizer_json(kVocabulary, kMerges, kByteLevel));
  std::string text;
  std::vector<int32_t> wanted;
  for (int i = 0; i < 100; ++i) {
    text += "abca";
    wanted.insert(wanted.end(), {1, 6, 1});
  }
  expect_same(small.encode(text, false), wanted,
              "the heap and the scan of all pairs give the same");
}

void sentencepiece_falls_back_to_bytes() {
  const std::string parts = R"("normalizer": {"type": "Replace", "pattern": {"String": " "},
    "content": "_"}, "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"},
    {"type": "Fuse"}]},)";
  const TextCodec small = codec(
      tokenizer_json(R"({"?": 0, "a": 1, "_": 2, "<0xC3>": 3, "<0xA9>": 4, "_a": 5})",
                     R"([["_", "a"]])", parts, R"("unk_token": "?", "byte_fallback": true, )"));
  expect_same<int32_t>(small.encode("a a", false), {1, 5}, "a space is a mark");
  expect_same<int32_t>(small.encode("\u00e9z", false), {3, 4, 0}, "bytes, then unknown");
  expect(small.decode({3, 4, 3}) == "\u00e9\ufffd", "half a character");
}

void prompts_are_checked() {
  TextCodec small =
      TextCodec::parse(tokenizer_json(kVocabulary, kMerges, kByteLevel), "file", "fix it", 6);
  for (const auto& [text, part] : {std::pair<std::string, std::string>{"a\xff", "at byte 1"},
                                   {"bc", "token 'bc' with id 6, but the model has ids below 6"}}) {
    std::string message;
    try {
      small.encode(text, false);
    } catch (const Fault& fault) {
      expect(fault.kind() == FaultKind::kPrompt, "it is a fault of the prompt");
      message = fault.what();
    }
    expect_part(message, part);
  }
}

void broken_files_are_refused() {
  expect_fault("", "file is not a tokenizer");
  expect_fault("[]", "file is not a tokenizer: it holds [], not an object; fix it");
  expect_fault("{}", "it has no model");
  expect_fault("{\"model\": \"\xff\"}", "byte 12 is not UTF-8");
  expect_fault("{\"model\": " + std::string(100000, '['), "nested over 100 deep");
  expect_fault(tokenizer_json("{\"a\": 0}", "[]", "\"decoder\": 1e999,"), "not a tokenizer");
  expect_fault(tokenizer_json(R"({"a": "b"})", "[]"), "is unexpected in a tokenizer file");
  expect_fault(tokenizer_json(R"({"a": -1})", "[]"), "is unexpected in a tokenizer file");
  expect_fault(tokenizer_json(R"({"a": 1099511627776})", "[]"), "has the id 1099511627776, over");
  expect_fault(tokenizer_json(R"({"a": 1, "b": 1})", "[]"), "occurs twice");
  expect_fault(tokenizer_json(R"({"a": 1})", R"(["a b"])"), "'b' of a merge is not in");
  expect_fault(tokenizer_json("{}", "[]"), "it has no tokens; fix it");
}

void all_that_is_not_supported_is_listed() {
  const std::string parts = R"("normalizer": {"type": "Nmt"}, "pre_tokenizer": {"type": "Sequence",
    "pretokenizers": [{"type": "BertPreTokenizer"}, {"type": "Split", "pattern": {"Regex": "\\X"},
    "behavior": "Isolated", "invert": false}]}, "post_processor": {"type": "New"},)";
  const std::string json = tokenizer_json("{}", "[]", parts, R"("dropout": 0.5, )");
  expect_fault(json, "file cannot be used: 5 faults:\n  - its normalizer Nmt: it is not supported");
  for (const char* part : {"BertPreTokenizer: it is", "Split: '\\X' in a regular expression is",
                           "post_processor New", "dropout 0.5", "random tokens; fix it"}) {
    expect_fault(json, part);
  }
}

void rules_that_are_too_much_are_refused() {
  const std::string grows = R"({"type": "Replace", "pattern": {"String": "a"}, "content":
    "aaaaaaaa"})";
  std::string parts = R"("normalizer": {"type": "Sequence", "normalizers": [)";
  parts.append(grows).append(",").append(grows).append(",").append(grows).append("]},");
  expect_fault(tokenizer_json("{\"a\": 0}", "[]", parts), "512 times longer; at most 64");
  const std::string slow = R"("pre_tokenizer": {"type": "Split", "pattern": {"Regex":
    "(?:a|a)*[bc]d"}, "behavior": "Isolated", "invert": false},)";
  expect_fault(tokenizer_json("{\"a\": 0}", "[]", slow), "takes too long for");
  expect_fault(tokenizer_json("{\"a\": 0}", "[]", R"("decoder": {"type": "WordPiece"},)"),
               "file: the tokenizer decodes by WordPiece, which is not supported");
}

const Adds kRank("text: merges by rank", merges_go_by_rank);
const Adds kLong("text: long words", long_words_merge_as_short_ones);
const Adds kBytes("text: byte fallback", sentencepiece_falls_back_to_bytes);
const Adds kPrompts("text: prompts", prompts_are_checked);
const Adds kBroken("text: broken files", broken_files_are_refused);
const Adds kListed("text: what is not supported", all_that_is_not_supported_is_listed);
const Adds kTooMuch("text: rules that are too much", rules_that_are_too_much_are_refused);

}  // namespace
}  // namespace bita::tests
