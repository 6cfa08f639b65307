#include <stdexcept>
#include <utility>

#include "character_classes.h"
#include "expression_syntax.h"
#include "file_fields.h"
#include "rule_files.h"
#include "utf8.h"

namespace bita {

namespace {

// GPT-2's words: contractions, letters, digits, other characters, spaces.
constexpr const char* kWords =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

SplitBehavior behavior_of(const std::string& name) {
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  throw std::runtime_error("behavior is " + shown(name));
}

// Adds the steps of each rule in turn.
class WordStepsReader {
 public:
  explicit WordStepsReader(TokenizerParts& parts) : parts_(parts) {}

  void read(const Json& rule) {
    const std::string type = type_of(rule);
    if (type == "ByteLevel") {
      byte_level(rule);
    } else if (type == "Metaspace") {
      metaspace(rule);
    } else if (type == "Split") {
      const SplitBehavior behavior = behavior_of(text_field(rule, "behavior"));
      split(pattern_field(rule), behavior, flag_field(rule, "invert"));
      const Json& pattern = rule["pattern"];
      if (pattern.contains("Regex")) parts_.expressions.push_back(pattern["Regex"]);
    } else if (type == "Digits") {
      split(Expression(numeric_character()), flag_field(rule, "individual_digits")
                                                 ? SplitBehavior::kIsolated
                                                 : SplitBehavior::kContiguous);
    } else if (type == "Punctuation") {
      const std::string behavior =
          rule.contains("behavior") ? text_field(rule, "behavior") : "Isolated";
      split(Expression(punctuation_character()), behavior_of(behavior));
    } else if (type == "Whitespace") {
      split(Expression(rust_words_and_marks()), SplitBehavior::kRemoved, true);
    } else if (type == "WhitespaceSplit") {
      split(Expression("[" + space_members() + "]"), SplitBehavior::kRemoved);
    } else {
      throw std::runtime_error(
          "it is not supported; supported are ByteLevel, Split, Digits, Metaspace, Whitespace, "
          "WhitespaceSplit, Punctuation and Sequence: choose another model");
    }
  }

 private:
  void split(Expression expression, SplitBehavior behavior, bool invert = false) {
    parts_.word_steps.push_back({Split{std::move(expression), behavior, invert}, {}});
  }

  void rewrite(Rewrite rewrite) { parts_.word_steps.push_back({std::nullopt, std::move(rewrite)}); }

  void byte_level(const Json& rule) {
    if (flag_field(rule, "add_prefix_space")) rewrite(prefixing(" ", {true, false}));
    if (flag_field(rule, "use_regex", true)) {
      split(Expression(pcre2_pattern(kWords)), SplitBehavior::kIsolated);
    }
    rewrite(to_byte_characters());
  }

  void metaspace(const Json& rule) {
    const std::string mark = text_field(rule, "replacement");
    const std::string scheme =
        rule.contains("prepend_scheme") ? text_field(rule, "prepend_scheme") : "always";
    if (num_characters(mark) != 1) {
      throw std::runtime_error("replacement is " + shown(mark) + ", not one character");
    }
    if (scheme != "always" && scheme != "never" && scheme != "first") {
      throw std::runtime_error("prepend_scheme is " + shown(scheme));
    }
    const bool adds = !rule.contains("add_prefix_space") || rule["add_prefix_space"].is_null() ||
                      flag_field(rule, "add_prefix_space");
    if (!adds && scheme != "never") {
      throw std::runtime_error("add_prefix_space is false, but prepend_scheme is " + scheme);
    }
    if (scheme == "first" && !parts_.normalizer.rewrites.empty()) check_start();
    rewrite(replacing_character(' ', mark));
    if (scheme != "never") rewrite(prefixing(mark, {true, scheme == "first"}));
    if (flag_field(rule, "split", true)) {
      split(Expression(literal_pattern(mark)), SplitBehavior::kMergedWithNext);
    }
  }

  // Refuses a normalizer that may change the start of a text: the first piece is then unknown.
  void check_start() const {
    if (parts_.normalizer.keeps_start) return;
    throw std::runtime_error(
        "prepend_scheme first is not supported after this normalizer: choose another model");
  }

  TokenizerParts& parts_;
};

}  // namespace

void read_word_steps(const Json& part, TokenizerParts& parts, std::vector<std::string>& faults) {
  WordStepsReader reader(parts);
  read_rules(flat_rules(part, "pretokenizers"), "pre_tokenizer", faults,
             [&](const Json& rule) { reader.read(rule); });
}

}  // namespace bita
