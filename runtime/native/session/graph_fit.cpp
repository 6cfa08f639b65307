#include "graph_fit.h"

#include <algorithm>
#include <regex>
#include <set>

namespace bita {

namespace {

using Type = ONNXTensorElementDataType;
constexpr Type kFloat32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr Type kFloat16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr Type kWhole = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr Type kTruth = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
constexpr int64_t kAny = -1;

// Expected types and sizes; kAny matches any size. letters: the sizes as a message shows them.
struct Wanted {
  std::vector<Type> types;
  std::vector<int64_t> shape;
  std::string letters;
};

std::string name_of(Type type) {
  switch (type) {
    case kFloat32:
      return "float32";
    case kFloat16:
      return "float16";
    case kWhole:
      return "int64";
    case kTruth:
      return "bool";
    default:
      return "type " + std::to_string(type);
  }
}

std::string number(int64_t value) { return std::to_string(value); }

// The inputs that every graph may have, and those of caches in slots or in pages.
std::map<std::string, Wanted> small_inputs(const Manifest& manifest) {
  std::map<std::string, Wanted> known = {
      {"token_ids", {{kWhole}, {1, kAny}, "1, Q"}},
      {"positions", {{kWhole}, {1, kAny}, "1, Q"}},
      {"prefix_length", {{kWhole}, {1}, "1"}},
      {"sees", {{kTruth}, {kAny, kAny}, "Q, Q"}},
      {"sees_prefix", {{kTruth}, {kAny}, "Q"}},
      {"output_rows", {{kWhole}, {kAny}, "R"}},
      {"first_mask_row", {{kWhole}, {1}, "1"}},
      {"mask_embeddings",
       {{kFloat32}, {kAny, manifest.hidden_size}, "M, " + number(manifest.hidden_size)}},
  };
  const std::map<std::string, Wanted> paged = {
      {"row_slots", {{kWhole}, {kAny}, "Q"}},    {"row_texts", {{kWhole}, {kAny}, "Q"}},
      {"text_lengths", {{kWhole}, {kAny}, "T"}}, {"text_pages", {{kWhole}, {kAny, kAny}, "T, W"}},
      {"prefix_pages", {{kWhole}, {kAny}, "X"}}, {"wants_logits", {{kTruth}, {1}, "1"}},
  };
  const std::map<std::string, Wanted> slotted = {{"cache_length", {{kWhole}, {1}, "1"}},
                                                 {"slots", {{kWhole}, {kAny}, "S"}}};
  const auto& more = manifest.is_native() ? paged : slotted;
  known.insert(more.begin(), more.end());
  return known;
}

Wanted cache_of(const Manifest& manifest) {
  const int64_t heads = manifest.num_kv_heads, width = manifest.head_dim;
  if (manifest.is_native()) {
    return {{kFloat32, kFloat16},
            {kAny, heads, 2, kPageSlots * width},
            "pages, " + number(heads) + ", 2, " + number(kPageSlots * width)};
  }
  return {{kFloat32, kFloat16},
          {1, heads, manifest.capacity, width},
          "1, " + number(heads) + ", " + number(manifest.capacity) + ", " + number(width)};
}

class Checker {
 public:
  Checker(const Manifest& manifest, const GraphValues& inputs, const GraphValues& outputs)
      : manifest_(manifest), inputs_(inputs), outputs_(outputs), cache_(cache_of(manifest)) {}

  std::vector<std::string> check() {
    check_needed();
    check_layers("past", inputs_);
    check_inputs();
    const int64_t ranks = manifest_.num_ranks, size = manifest_.vocab_size;
    if (manifest_.is_native() || !outputs_.count("rows")) check_layers("present", outputs_);
    check_output("top_ids", {{kWhole}, {kAny, ranks}, "R, " + number(ranks)});
    check_output("top_logits", {{kFloat32}, {kAny, ranks}, "R, " + number(ranks)});
    check_output("logits", {{kFloat32}, {kAny, size}, "R, " + number(size)});
    for (const auto& [name, value] : outputs_) {
      if (std::regex_match(name, kCacheName)) check_value(name, value, cache_);
    }
    check_types();
    return std::move(faults_);
  }

 private:
  void check_needed() {
    std::vector<std::string> needed = {"token_ids", "mask_embeddings", "output_rows"};
    if (manifest_.is_native()) {
      for (const char* name :
           {"positions", "sees", "sees_prefix", "prefix_length", "row_slots", "row_texts",
            "text_lengths", "text_pages", "prefix_pages", "wants_logits"}) {
        needed.emplace_back(name);
      }
    }
    for (const std::string& name : needed) {
      if (!inputs_.count(name)) faults_.push_back("there is no input " + name);
    }
  }

  void check_layers(const std::string& time, const GraphValues& values) {
    std::set<int64_t> layers;
    size_t count = 0;
    bool are_of_form = true;
    for (const auto& [name, value] : values) {
      std::smatch match;
      if (!std::regex_match(name, match, kCacheName) || match[1] != time) continue;
      layers.insert(std::stoll(match[2]));
      are_of_form &= (match[3] == "pages") == manifest_.is_native();
      ++count;
    }
    const size_t sides = manifest_.is_native() ? 1 : 2;
    const auto num_layers = static_cast<int64_t>(layers.size());
    const bool are_all =
        !layers.empty() && *layers.rbegin() == num_layers - 1 && count == sides * layers.size();
    if (!are_all || !are_of_form || num_layers != manifest_.num_layers) {
      faults_.push_back("the graph has " + number(static_cast<int64_t>(count)) + " " + time +
                        " caches, of " + number(num_layers) + " layers; num_layers is " +
                        number(manifest_.num_layers));
    }
    if (!are_of_form) {
      faults_.push_back("the " + time + " caches of dialect " + manifest_.dialect + " are " +
                        (manifest_.is_native() ? "pages" : "key and value"));
    }
  }

  void check_inputs() {
    const auto known = small_inputs(manifest_);
    bool has_lora = false;
    for (const auto& [name, value] : inputs_) {
      const auto found = known.find(name);
      std::smatch match;
      if (found != known.end()) {
        check_value(name, value, found->second);
      } else if (std::regex_match(name, kCacheName)) {
        check_value(name, value, cache_);
      } else if (std::regex_match(name, match, kLoraName) &&
                 match[1].matched != manifest_.is_native()) {
        has_lora = true;
        check_lora(name, value, match[1], match[2], match[3]);
      } else {
        faults_.push_back("input '" + name.substr(0, 60) + "' is not known");
      }
    }
    if (has_lora != (manifest_.lora_rank > 0)) {
      faults_.push_back(std::string("the graph ") + (has_lora ? "has" : "has no") +
                        " inputs of LoRA; lora_rank is " + number(manifest_.lora_rank));
    }
  }

  void check_lora(const std::string& name, const GraphValue& value, const std::string& layer,
                  const std::string& site, const std::string& side) {
    const bool is_first = site == "qkv" || site == "gate_up";  // its input is the hidden state
    const int64_t hidden = manifest_.hidden_size;
    if (!manifest_.is_native()) {
      if (std::stoll(layer) >= manifest_.num_layers) {
        faults_.push_back("input " + name + " is for a nonexistent layer; num_layers is " +
                          number(manifest_.num_layers));
      }
      const std::string in = is_first ? number(hidden) : "in",
                        out = is_first ? "out" : number(hidden);
      check_value(name, value,
                  side == "down"
                      ? Wanted{{kFloat32}, {is_first ? hidden : kAny, kAny}, in + ", r"}
                      : Wanted{{kFloat32}, {kAny, is_first ? kAny : hidden}, "r, " + out});
      return;
    }
    const int64_t layers = manifest_.num_layers, blocks = (hidden + 31) / 32 * 32;
    const int64_t tiles = (hidden + 15) / 16;
    check_value(
        name, value,
        side == "down"
            ? Wanted{{kFloat16},
                     {layers, kAny, is_first ? blocks : kAny},
                     number(layers) + ", r, " + (is_first ? number(blocks) : "in")}
            : Wanted{{kFloat16},
                     {layers, is_first ? kAny : tiles, kAny, 16},
                     number(layers) + ", " + (is_first ? "tiles" : number(tiles)) + ", r, 16"});
  }

  void check_output(const std::string& name, const Wanted& wanted) {
    const auto found = outputs_.find(name);
    if (found == outputs_.end()) {
      faults_.push_back("there is no output " + name);
    } else {
      check_value(name, found->second, wanted);
    }
  }

  void check_value(const std::string& name, const GraphValue& value, const Wanted& wanted) {
    bool fits = value.shape.size() == wanted.shape.size() &&
                std::count(wanted.types.begin(), wanted.types.end(), value.type) != 0;
    for (size_t i = 0; fits && i < value.shape.size(); ++i) {
      fits = value.shape[i] < 0 || wanted.shape[i] < 0 || value.shape[i] == wanted.shape[i];
    }
    if (fits) return;
    std::string sizes, types;
    for (const int64_t size : value.shape) {
      sizes += (sizes.empty() ? "" : ", ") + (size < 0 ? std::string("?") : number(size));
    }
    for (const Type type : wanted.types) types += (types.empty() ? "" : " or ") + name_of(type);
    faults_.push_back(name + " is " + name_of(value.type) + " [" + sizes + "], not " + types +
                      " [" + wanted.letters + "]");
  }

  void check_types() {
    std::set<std::string> names;
    for (const GraphValues* values : {&inputs_, &outputs_}) {
      for (const auto& [name, value] : *values) {
        if (std::regex_match(name, kCacheName)) names.insert(name_of(value.type));
      }
    }
    if (names.size() < 2) return;
    std::string all;
    for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
    faults_.push_back("caches are of several types: " + all);
  }

  const std::regex kCacheName{R"((past|present)\.(0|[1-9]\d{0,8})\.(key|value|pages))"};
  const std::regex kLoraName{R"(lora\.(?:(0|[1-9]\d{0,8})\.)?(qkv|o|gate_up|down)\.(down|up))"};
  const Manifest& manifest_;
  const GraphValues &inputs_, &outputs_;
  const Wanted cache_;
  std::vector<std::string> faults_;
};

}  // namespace

std::vector<std::string> graph_faults(const Manifest& manifest, const GraphValues& inputs,
                                      const GraphValues& outputs) {
  return Checker(manifest, inputs, outputs).check();
}

}  // namespace bita
