#include "adapter.h"

#include <algorithm>
#include <cmath>

#include "../base/files.h"
#include "../base/json.h"
#include "../kernels/numbers.h"
#include "keyed_table.h"

namespace bita {

namespace {

constexpr const char* kFormat = "bita-adapter";
constexpr const char* kMakeAnother = "use the adapter tuned for this model, or tune one";
constexpr const char* kMetadata[] = {"format_version", "identity", "num_masks", "prefix_length",
                                     "tuned_on"};
constexpr const char* kTensors[] = {"mask_embeddings", "prefix_keys", "prefix_values"};
constexpr const char* kPairTensors[] = {"pair_left", "pair_bias", "pair_right"};
constexpr float kMaxValue = 65504.0f;  // the largest that float16 can hold
constexpr float kMaxRead = 1000.0f;    // for arrays that steps read, except the mask embeddings
constexpr float kMaxBonus = 50.0f;
constexpr int kSureBits = 7;  // of a continuation's value; the other bits are the token

// For adapters without bonuses of their own (`bita.bonuses.DEFAULT_BONUSES`).
constexpr std::array<float, kNumBonuses> kDefaultBonuses = {
    0.63f,                                                                              //
    1.5f,  2.5f,   2.5f,  2.5f,  2.65f, 2.8f,  3.4f,  3.4f,  3.4f,  3.4f,  4.6f, 5.0f,  //
    0.35f, 0.45f,  0.75f, 0.95f, 0.95f, 1.25f, 1.7f,  1.95f, 2.75f, 4.0f,  5.5f,        //
    -1.3f, 0.05f,  0.45f, 0.6f,  1.1f,  1.2f,  1.65f, 1.65f, 1.7f,  1.75f, 2.3f, 3.6f,  //
    -2.0f, -1.75f, -1.5f, -1.3f, -1.1f, -0.7f, -0.5f, -0.1f, 0.45f, 1.8f,  2.8f,        //
    1.8f};

// The sizes of the model for which an adapter was made, as far as they are needed here.
struct Identity {
  int64_t num_layers = 0, num_kv_heads = 0, head_dim = 0, hidden_size = 0, vocab_size = 0;
};

using Shape = std::vector<int64_t>;
using Faults = std::vector<std::string>;

// Reads and checks one file.
class AdapterReader {
 public:
  explicit AdapterReader(const TensorFile& file) : file_(file) {}

  Adapter read(const std::string& subject) {
    read_metadata(subject);
    Adapter adapter;
    take(adapter);
    check_values();
    read_continuations(adapter);
    read_bonuses(adapter);
    raise_faults(FaultKind::kAdapter, subject + " is broken (" + kMakeAnother + ")", faults_);
    for (auto& [name, array] : arrays_) place(adapter, name, std::move(array));
    return adapter;
  }

 private:
  void read_metadata(const std::string& subject) {
    const auto stated = file_.metadata.find(kFormat);
    Json data;
    try {
      if (stated != file_.metadata.end()) data = parse_json(stated->second);
    } catch (const std::runtime_error&) {
      data = Json();
    }
    if (!data.is_object() || data.empty()) {
      throw Fault(FaultKind::kAdapter,
                  subject + " is a safetensors file but not an adapter: its metadata has no '" +
                      kFormat + "'; " + kMakeAnother);
    }
    Fields fields(data, "metadata ", faults_);
    for (const char* name : kMetadata) {
      if (!fields.has(name)) {
        faults_.push_back(std::string("metadata has no '") + name + "'");
      } else {
        metadata_[name] = fields.text(name);
      }
    }
    const auto version = metadata_.find("format_version");
    if (version != metadata_.end() &&
        (version->second.size() != 1 || version->second < "1" || version->second > "4")) {
      faults_.push_back("format_version is " + shown(version->second) +
                        ", this bita-edge reads '1', '2', '3', '4': upgrade it");
    }
    if (metadata_.count("identity")) read_identity(metadata_["identity"]);
  }

  void read_identity(const std::string& text) {
    Json data;
    try {
      data = parse_json(text);
    } catch (const std::runtime_error& error) {
      faults_.push_back(std::string("identity is not JSON: ") + error.what());
      return;
    }
    if (!data.is_object()) {
      faults_.push_back("identity is " + shown(data) + ", not an object");
      return;
    }
    const size_t num_before = faults_.size();
    Fields fields(data, "identity.", faults_);
    Identity found;
    const std::pair<const char*, int64_t*> sizes[] = {{"num_layers", &found.num_layers},
                                                      {"num_kv_heads", &found.num_kv_heads},
                                                      {"head_dim", &found.head_dim},
                                                      {"hidden_size", &found.hidden_size},
                                                      {"vocab_size", &found.vocab_size}};
    for (const auto& [name, size] : sizes) *size = fields.whole(name, 1, 1000000000);
    if (faults_.size() == num_before) identity_ = found;
  }

  void take(Adapter&) {
    for (const char* name : kTensors) {
      if (!file_.tensors.count(name)) {
        faults_.push_back(std::string("tensor '") + name + "' is missing");
      }
    }
    take_all({kTensors[0], kTensors[1], kTensors[2]});
    take_all({kPairTensors[0], kPairTensors[1], kPairTensors[2]});
    std::vector<std::string> lora;
    for (const char* site : kLoraSites) {
      for (const char* side : {"down", "up"}) {
        lora.push_back(std::string("lora_") + site + "_" + side);
      }
    }
    take_all(lora);
    check_shapes();
    check_lora(lora);
    check_pairs();
    check_count("num_masks", kTensors[0], 0);
    check_count("prefix_length", kTensors[1], 2);
  }

  void take_all(const std::vector<std::string>& names) {
    for (const std::string& name : names) {
      const auto found = file_.tensors.find(name);
      if (found == file_.tensors.end()) continue;
      if (!found->second.is_float()) {
        faults_.push_back("tensor '" + name + "' has type " + found->second.type +
                          ", not one of F32, F16, BF16");
      } else {
        arrays_[name] = {found->second.shape, found->second.floats()};
      }
    }
  }

  // -1 in `wanted` matches any size. letters: the expected shape as a message shows it.
  void check_shape(const std::string& name, const Shape& wanted, const std::string& letters) {
    const auto found = arrays_.find(name);
    if (found == arrays_.end()) return;
    const Shape& shape = found->second.shape;
    bool fits = shape.size() == wanted.size();
    for (size_t i = 0; fits && i < shape.size(); ++i) fits = wanted[i] < 0 || wanted[i] == shape[i];
    if (!fits) faults_.push_back(name + " is " + text_of(shape) + ", not " + letters);
  }

  void check_shapes() {
    const Identity own = identity_.value_or(Identity{-1, -1, -1, -1, -1});
    const auto size = [&](int64_t number, const char* letter) {
      return identity_ ? std::to_string(number) : std::string(letter);
    };
    check_shape("mask_embeddings", {-1, own.hidden_size},
                "[M, " + size(own.hidden_size, "hidden") + "]");
    const std::string prefix = "[" + size(own.num_layers, "L") + ", " +
                               size(own.num_kv_heads, "H") + ", P, " + size(own.head_dim, "D") +
                               "]";
    for (const char* name : {"prefix_keys", "prefix_values"}) {
      check_shape(name, {own.num_layers, own.num_kv_heads, -1, own.head_dim}, prefix);
    }
    const auto masks = arrays_.find("mask_embeddings");
    if (masks != arrays_.end() && !masks->second.shape.empty() && masks->second.shape[0] == 0) {
      faults_.emplace_back("mask_embeddings has no rows; at least one mask token is needed");
    }
    const auto keys = arrays_.find("prefix_keys"), values = arrays_.find("prefix_values");
    if (faults_.empty() && keys->second.shape != values->second.shape) {
      faults_.push_back("prefix_keys is " + text_of(keys->second.shape) +
                        ", but prefix_values is " + text_of(values->second.shape));
    }
  }

  // Whether all tensors of the list are present. If only some are, adds a fault for each missing
  // one.
  bool are_all_there(const std::vector<std::string>& names) {
    Faults missing;
    for (const std::string& name : names) {
      if (!arrays_.count(name)) missing.push_back("tensor '" + name + "' is missing");
    }
    if (missing.size() == names.size()) return false;
    faults_.insert(faults_.end(), missing.begin(), missing.end());
    return missing.empty();
  }

  void check_lora(const std::vector<std::string>& names) {
    if (!are_all_there(names)) return;
    for (const std::string& name : names) {
      const Shape& shape = arrays_[name].shape;
      if (shape.size() != 3 || std::count(shape.begin(), shape.end(), 0)) {
        faults_.push_back(name + " is " + text_of(shape) + ", not of three dimensions above 0");
        return;
      }
    }
    const Shape& first = arrays_["lora_qkv_down"].shape;
    const int64_t rank = first[2], layers = identity_ ? identity_->num_layers : first[0];
    const int64_t hidden = identity_ ? identity_->hidden_size : first[1];
    const int64_t queries = arrays_["lora_o_down"].shape[1];
    const int64_t inner = arrays_["lora_down_down"].shape[1];
    const std::pair<const char*, Shape> wanted[] = {
        {"lora_qkv_down", {layers, hidden, rank}},
        {"lora_qkv_up", {layers, rank, arrays_["lora_qkv_up"].shape[2]}},
        {"lora_o_down", {layers, queries, rank}},
        {"lora_o_up", {layers, rank, hidden}},
        {"lora_gate_up_down", {layers, hidden, rank}},
        {"lora_gate_up_up", {layers, rank, 2 * inner}},
        {"lora_down_down", {layers, inner, rank}},
        {"lora_down_up", {layers, rank, hidden}}};
    for (const auto& [name, shape] : wanted) check_shape(name, shape, text_of(shape));
  }

  void check_pairs() {
    if (!are_all_there({kPairTensors[0], kPairTensors[1], kPairTensors[2]})) return;
    const Shape& left = arrays_["pair_left"].shape;
    const int64_t rank = left.size() == 2 ? left[1] : 0;
    const int64_t hidden = identity_ ? identity_->hidden_size : left.empty() ? 0 : left[0];
    const std::pair<const char*, Shape> wanted[] = {
        {"pair_left", {hidden, rank}}, {"pair_bias", {rank}}, {"pair_right", {hidden, rank}}};
    for (const auto& [name, shape] : wanted) {
      const Shape& found = arrays_[name].shape;
      if (found != shape || std::count(found.begin(), found.end(), 0)) {
        faults_.push_back(std::string(name) + " is " + text_of(found) + ", not " + text_of(shape) +
                          " with a rank above 0");
      }
    }
  }

  void check_count(const std::string& key, const std::string& name, size_t axis) {
    const auto array = arrays_.find(name);
    const auto stated = metadata_.find(key);
    if (array == arrays_.end() || stated == metadata_.end()) return;
    if (axis >= array->second.shape.size()) return;
    const int64_t size = array->second.shape[axis];
    if (stated->second != std::to_string(size)) {
      faults_.push_back("metadata " + key + " is " + shown(stated->second) + ", " + name + " has " +
                        std::to_string(size));
    }
  }

  void check_values() {
    for (const auto& [name, array] : arrays_) {
      int64_t num_infinite = 0, num_large = 0;
      for (const float value : array.values) {
        num_infinite += !std::isfinite(value);
        num_large += std::isfinite(value) && std::fabs(value) > kMaxValue;
      }
      add_value_fault(name, array, num_infinite, "that are not finite");
      add_value_fault(name, array, num_large, "beyond 65504, the largest that float16 can hold");
    }
  }

  void add_value_fault(const std::string& name, const FloatArray& array, int64_t count,
                       const char* what) {
    if (!count) return;
    faults_.push_back(name + " has " + std::to_string(count) + " of " +
                      std::to_string(array.values.size()) + " values " + what);
  }

  void read_continuations(Adapter& adapter) {
    const bool has_keys = file_.tensors.count("continuation_keys") != 0;
    const auto marks = file_.tensors.find(has_keys ? "continuation_keys" : "continuation_marks");
    const auto values = file_.tensors.find("continuation_values");
    if (!identity_ || (marks == file_.tensors.end() && values == file_.tensors.end())) return;
    if (marks == file_.tensors.end() || values == file_.tensors.end() ||
        marks->second.type != (has_keys ? "U64" : "U16") || values->second.type != "U32") {
      faults_.emplace_back(
          "the table of continuations is not of the types U16 (marks) or U64 (keys), and U32");
      return;
    }
    if (has_keys && marks->second.shape == values->second.shape) {
      adapter.continuations =
          keyed_table(marks->second.numbers<uint64_t>(), values->second.numbers<uint32_t>());
      check_table(*adapter.continuations, identity_->vocab_size);
      return;
    }
    const auto size = static_cast<uint64_t>(marks->second.size());
    if (marks->second.shape.size() != 1 || marks->second.shape != values->second.shape ||
        size < 2 || (size & (size - 1))) {
      faults_.push_back("the table of continuations is " + text_of(marks->second.shape) + " and " +
                        text_of(values->second.shape) + ", not twice one power of two");
      return;
    }
    ContinuationTable table{marks->second.numbers<uint16_t>(), values->second.numbers<uint32_t>()};
    check_table(table, identity_->vocab_size);
    adapter.continuations = std::move(table);
  }

  void check_table(const ContinuationTable& table, int64_t vocab_size) {
    uint32_t last_token = 0, max_percent = 0;
    bool has_empty = false;
    for (const uint32_t value : table.values) {
      last_token = std::max(last_token, value >> kSureBits);
      max_percent = std::max(max_percent, value & ((1u << kSureBits) - 1));
      has_empty |= value == 0;
    }
    if (!has_empty) faults_.emplace_back("the table of continuations has no empty slot");
    if (last_token >= vocab_size || max_percent > 100) {
      faults_.push_back("the table of continuations holds token " + std::to_string(last_token) +
                        " and " + std::to_string(max_percent) + " percent, not tokens below " +
                        std::to_string(vocab_size) + " and at most 100");
    }
  }

  void read_bonuses(Adapter& adapter) {
    adapter.bonuses.assign(kDefaultBonuses.begin(), kDefaultBonuses.end());
    const auto found = file_.tensors.find("guess_bonuses");
    if (found == file_.tensors.end()) return;
    if (!found->second.is_float()) {
      faults_.push_back("tensor 'guess_bonuses' has type " + found->second.type +
                        ", not one of F32, F16, BF16");
      return;
    }
    if (found->second.shape != Shape{kNumBonuses}) {
      faults_.push_back("guess_bonuses is " + text_of(found->second.shape) + ", not [" +
                        std::to_string(kNumBonuses) + "]");
      return;
    }
    adapter.bonuses = found->second.floats();
    const bool are_fine = std::all_of(adapter.bonuses.begin(), adapter.bonuses.end(),
                                      [](float bonus) { return std::fabs(bonus) <= kMaxBonus; });
    if (!are_fine || adapter.bonuses[0] <= 0) {
      faults_.emplace_back(
          "guess_bonuses has numbers beyond 50, or a scale of masks that is not above 0");
    }
  }

  // Store an array in its field, clamped if steps read it.
  static void place(Adapter& adapter, const std::string& name, FloatArray array) {
    const bool is_pair = name.rfind("pair_", 0) == 0;
    const float max = name == "mask_embeddings" ? kMaxValue : kMaxRead;
    if (!is_pair) {
      for (float& value : array.values) value = std::min(std::max(value, -max), max);
    }
    FloatArray& target = name == "mask_embeddings" ? adapter.mask_embeddings
                         : name == "prefix_keys"   ? adapter.prefix_keys
                         : name == "prefix_values" ? adapter.prefix_values
                         : is_pair                 ? adapter.pairs[name]
                                                   : adapter.lora[name];
    target = std::move(array);
  }

  const TensorFile& file_;
  std::map<std::string, std::string> metadata_;
  std::optional<Identity> identity_;
  std::map<std::string, FloatArray> arrays_;
  Faults faults_;
};

}  // namespace

int64_t Adapter::lora_rank() const {
  const auto found = lora.find("lora_qkv_down");
  return found == lora.end() ? 0 : found->second.shape[2];
}

int64_t Adapter::pair_rank() const {
  const auto found = pairs.find("pair_left");
  return found == pairs.end() ? 0 : found->second.shape[1];
}

Adapter read_adapter(const fs::path& path) {
  const TensorFile file = read_tensor_file(path, FaultKind::kAdapter, "copy or download it again");
  return AdapterReader(file).read(text_of(path));
}

Adapter parse_adapter(std::string content, const std::string& subject) {
  TensorFile file;
  try {
    file = parse_tensor_file(std::move(content));
  } catch (const std::runtime_error& error) {
    throw Fault(FaultKind::kAdapter, subject + " is not a whole safetensors file (" + error.what() +
                                         "); copy or download it again");
  }
  return AdapterReader(file).read(subject);
}

}  // namespace bita
