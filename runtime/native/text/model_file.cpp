#include "model_file.h"

#include <set>
#include <stdexcept>
#include <utility>

#include "../base/json.h"
#include "json_reader.h"

namespace bita {

namespace {

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

std::string as_text(std::string_view token) { return shown(Json(std::string(token))); }

void read_vocabulary(JsonReader reader, Vocabulary& vocabulary) {
  reader.open('{');
  std::string_view token;
  while (reader.next_key(token)) {
    const uint64_t id = reader.number();
    if (id > Vocabulary::kMaxId) {
      fail("the token " + as_text(token) + " has the id " + std::to_string(id) + ", over " +
           std::to_string(Vocabulary::kMaxId));
    }
    if (!vocabulary.add(token, static_cast<uint32_t>(id))) {
      fail("the token " + as_text(token) + " or its id " + std::to_string(id) + " occurs twice");
    }
  }
  reader.end();
  vocabulary.shrink();
}

// Adds merges to a model with a complete vocabulary.
class MergesReader {
 public:
  MergesReader(JsonReader reader, BpeModel& model) : reader_(std::move(reader)), model_(model) {}

  void read() {
    reader_.open('[');
    while (reader_.next_element()) {
      const bool is_pair = reader_.peek() == '[';
      if (!is_first_ && is_pair != are_pairs_) fail("its merges mix strings and pairs");
      are_pairs_ = is_pair;
      is_first_ = false;
      if (is_pair) {
        read_pair();
      } else {
        read_line();
      }
    }
    reader_.end();
  }

 private:
  // Reads ["a", "b"].
  void read_pair() {
    reader_.open('[');
    if (!reader_.next_element()) fail("a merge has fewer than two tokens");
    left_ = reader_.string();
    if (!reader_.next_element()) fail("a merge has fewer than two tokens");
    const std::string_view right = reader_.string();
    add(left_, right);
    if (reader_.next_element()) fail("a merge has more than two tokens");
  }

  // Reads "a b".
  void read_line() {
    const std::string_view line = reader_.string();
    if (line.substr(0, 8) == "#version") return;
    const size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
      fail("the merge " + as_text(line) + " is not two tokens with a space between them");
    }
    add(line.substr(0, space), line.substr(space + 1));
  }

  void add(std::string_view left, std::string_view right) {
    joined_.assign(left).append(right);
    const uint32_t left_id = id(left);
    const uint32_t right_id = id(right);
    model_.merges.add(left_id, right_id, {rank_++, id(joined_)});
  }

  uint32_t id(std::string_view token) const {
    const auto found = model_.vocabulary.id(token);
    if (!found) fail("the token " + as_text(token) + " of a merge is not in the vocabulary");
    return *found;
  }

  JsonReader reader_;
  BpeModel& model_;
  bool is_first_ = true;
  bool are_pairs_ = false;
  uint32_t rank_ = 0;
  std::string left_;
  std::string joined_;
};

bool flag(const std::string& name, const Json& value) {
  if (value.is_boolean()) return value.get<bool>();
  if (!value.is_null()) fail("the model's " + name + " is " + shown(value) + ", not true or false");
  return false;
}

// Reads a field of a model other than its vocabulary and merges.
void read_option(const std::string& name, const Json& value, BpeOptions& options,
                 std::vector<std::string>& faults) {
  if (name == "type") {
    if (value != "BPE") faults.push_back("its model is of type " + shown(value) + ", not BPE");
  } else if (name == "unk_token") {
    if (!value.is_null() && !value.is_string()) fail("the model's unk_token is " + shown(value));
    if (value.is_string()) options.unk_token = value.get<std::string>();
  } else if (name == "fuse_unk") {
    options.fuse_unk = flag(name, value);
  } else if (name == "byte_fallback") {
    options.byte_fallback = flag(name, value);
  } else if (name == "ignore_merges") {
    options.ignore_merges = flag(name, value);
  } else if (name == "dropout") {
    if (!value.is_null() && value != 0) {
      faults.push_back("its model has the dropout " + shown(value) + ", which gives random tokens");
    }
  } else if (name == "continuing_subword_prefix" || name == "end_of_word_suffix") {
    if (!value.is_null() && value != "") {
      faults.push_back("its model has the " + name + " " + shown(value) +
                       ", which is not supported");
    }
  }
}

}  // namespace

void read_model(std::string_view json, std::string_view file, BpeModel& model,
                std::vector<std::string>& faults) {
  JsonReader reader(json, file);
  std::string_view vocabulary;
  std::string_view merges;
  std::set<std::string> names;
  reader.open('{');
  std::string_view key;
  while (reader.next_key(key)) {
    const std::string name(key);
    if (!names.insert(name).second) fail("its model has " + as_text(name) + " twice");
    const std::string_view value = reader.skip();
    if (name == "vocab") {
      vocabulary = value;
    } else if (name == "merges") {
      merges = value;
    } else {
      read_option(name, parse_json(value), model.options, faults);
    }
  }
  reader.end();
  if (!faults.empty()) return;  // models of other types have other vocabularies
  if (vocabulary.empty() || merges.empty()) fail("its model has no vocab and merges");
  read_vocabulary(JsonReader(vocabulary, file), model.vocabulary);
  MergesReader(JsonReader(merges, file), model).read();
  model.prepare();
}

}  // namespace bita
