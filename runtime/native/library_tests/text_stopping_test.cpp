#include "../base/fault.h"
#include "../tests/check.h"
#include "../text/stop_rule.h"
#include "text_files.h"

namespace bita::tests {
namespace {

TextCodec make_codec() {
  const std::string parts = R"("decoder": {"type": "Sequence", "decoders": [
    {"type": "ByteFallback"}, {"type": "Fuse"}]}, "added_tokens": [)" +
                            special_token("<eos>") + "," + special_token("<x>") + "],";
  return TextCodec::parse(tokenizer_json(R"({"<eos>": 0, "a": 1, "b": 2, "ab": 3, "\n": 4,
    "<0xC3>": 5, "<0xA9>": 6, "<x>": 7})",
                                         "[]", parts),
                          "file", "fix it");
}

struct Ended {
  size_t num_kept;
  std::string reason;
  bool at_token;
  std::string text;
};

Ended run(const std::vector<std::string>& stops, int64_t limit, const std::vector<int32_t>& fed,
          std::vector<int32_t> eos_ids = {0}) {
  const TextCodec codec = make_codec();
  StopRule rule(IncrementalText(codec), {std::move(eos_ids), limit, stops, {}});
  std::string text;
  for (const int32_t id : fed) {
    rule.feed(id);
    text += rule.take_text();
  }
  text += rule.close();
  return {rule.token_ids().size(), finish_reason_name(rule.finish_reason()), rule.ended_at_token(),
          text};
}

void expect_end(const Ended& found, const Ended& wanted, const std::string& what) {
  expect(
      found.num_kept == wanted.num_kept && found.reason == wanted.reason &&
          found.at_token == wanted.at_token && found.text == wanted.text,
      what + ": " + std::to_string(found.num_kept) + " " + found.reason + " '" + found.text + "'");
}

void generations_end() {
  expect_end(run({}, 9, {1, 2}), {2, "", false, "ab"}, "no end");
  expect_end(run({}, 9, {1, 0, 2}), {2, "eos", true, "a"}, "EOS is kept and not shown");
  expect_end(run({}, 2, {1, 0}), {2, "eos", true, "a"}, "EOS before the limit");
  expect_end(run({}, 2, {1, 2, 1}), {2, "length", false, "ab"}, "the limit");
  expect_end(run({"b"}, 2, {1, 3}), {2, "stop", false, "aa"}, "a stop string before the limit");
  expect_end(run({"ab"}, 9, {1, 2, 1}), {2, "stop", false, ""}, "over two tokens");
  expect_end(run({"bb"}, 9, {1, 2, 0}), {3, "eos", true, "ab"}, "what was held back is shown");
  expect_end(run({"\u00e9"}, 9, {1, 5, 6, 2}), {3, "stop", false, "a"}, "a character of bytes");
  expect_end(run({}, 2, {1, 5}), {2, "length", false, "a\ufffd"}, "half a character");
}

void special_tokens_are_stop_strings() {
  expect_end(run({"b<x>"}, 9, {1, 2, 7, 1}), {3, "stop", true, "a"}, "text and a special token");
  expect_end(run({"<x>"}, 9, {1, 7}), {2, "stop", true, "a"}, "a special token alone");
  expect_end(run({"<x>b"}, 9, {7, 1, 7, 2}), {4, "stop", false, "a"}, "text after it");
  expect_end(run({"b<x>"}, 9, {2, 7 - 6, 7, 2}), {4, "", false, "bab"}, "not in this order");
  expect_end(run({"b<eos>"}, 9, {1, 2, 0}), {3, "stop", true, "a"}, "before EOS");
  expect_end(run({"<eos>"}, 9, {1, 0}), {2, "eos", true, "a"}, "EOS itself stays EOS");
}

std::string fault_of(const std::vector<std::string>& stops, int64_t limit) {
  try {
    run(stops, limit, {});
  } catch (const Fault& fault) {
    expect(fault.kind() == FaultKind::kPrompt, "it is a fault of the prompt");
    return fault.what();
  }
  return "";
}

void unusable_options_are_refused() {
  expect(fault_of({}, 0) == "max_new_tokens is 0; pass a positive integer", "a limit of 0");
  expect(fault_of({""}, 1) ==
             "stop strings: number 0 is empty, which every text contains; leave it out",
         "an empty one");
  std::string letters;
  for (int i = 0; i < 257; ++i) letters += "\u00e9";
  expect(fault_of({letters}, 1) == "stop strings: number 0 has 257 characters; use at most 256",
         "characters are counted");
  expect(fault_of({letters.substr(2)}, 1).empty(), "256 characters are allowed");
  expect(fault_of({"\xff"}, 1).find("is not UTF-8") != std::string::npos, "no text");
  expect(fault_of(std::vector<std::string>(17, "a"), 1) ==
             "stop strings: there are 17; give at most 16",
         "too many");
}

void pieces_have_whole_characters() {
  const TextCodec codec = make_codec();
  IncrementalText text(codec);
  expect(text.push({1, 5}) == "a" && text.push(6) == "\u00e9", "a character comes when complete");
  expect(text.push({5, 1}) ==
             "\ufffd"
             "a",
         "a broken one is shown");
  expect(text.push(5).empty() && text.flush() == "\ufffd" && text.flush().empty(), "the end");
  expect(codec.starts_special("<x>a") && !codec.starts_special("a<x>"), "special beginnings");
}

const Adds kEnd("text: the end of a generation", generations_end);
const Adds kSpecial("text: special tokens as stop strings", special_tokens_are_stop_strings);
const Adds kUnusable("text: unusable stop options", unusable_options_are_refused);
const Adds kWhole("text: whole characters", pieces_have_whole_characters);

}  // namespace
}  // namespace bita::tests
