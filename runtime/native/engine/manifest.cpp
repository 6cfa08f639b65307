#include "manifest.h"

#include <algorithm>

#include "../base/files.h"

namespace bita {

namespace {

constexpr const char* kFormat = "bita-engine";
constexpr std::array<int64_t, 3> kFormatVersions = {2, 3, 4};
constexpr uint64_t kMaxManifestBytes = 4u << 20;  // manifests have about 2 kB
constexpr size_t kMaxText = 1u << 16;
constexpr int64_t kMaxSize = 1000000000;  // of a dimension, far beyond any model

// A dialect of the step graph, and the properties that this library needs.
struct Dialect {
  const char* name;
  std::vector<std::string> precisions;
  const char* backend;  // the one that runs its graph as written
  bool has_plans;       // whether TensorRT can compile it
};

const std::vector<Dialect>& dialects() {
  static const std::vector<std::string> all = {"fp32", "fp16", "int8", "int4", "fp8"};
  static const std::vector<Dialect> known = {
      {"ort", {"fp32", "fp16", "int8", "int4"}, "ort-cpu", false},
      {"native", {"int8", "int4"}, "ort-cpu", false},
      {"standard", all, "ort-cpu", true},
      {"plain", all, "ort-cpu", true},
      {"cuda", all, "ort-cuda", false},
  };
  return known;
}

std::string join(const std::vector<std::string>& names) {
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
  return all;
}

std::string take_text(Fields& fields, const std::string& name,
                      const std::optional<std::string>& otherwise = std::nullopt) {
  std::string text = fields.text(name, otherwise);
  if (text.size() > kMaxText) {
    fields.add_fault(name + " has " + std::to_string(text.size()) + " bytes; at most " +
                     std::to_string(kMaxText) + " are allowed");
  }
  return text;
}

std::string take_choice(Fields& fields, const std::string& name,
                        const std::vector<std::string>& known,
                        const std::optional<std::string>& otherwise = std::nullopt) {
  std::string text = fields.text(name, otherwise);
  const bool is_text = fields.has(name) && fields.at(name).is_string();
  if (is_text && std::find(known.begin(), known.end(), text) == known.end()) {
    fields.add_fault(name + " " + shown(text) + " is not one of " + join(known));
  }
  return text;
}

std::map<std::string, std::string> take_texts(Fields& fields, const std::string& name) {
  const Json table = fields.table(name);
  std::map<std::string, std::string> texts;
  for (const auto& [key, value] : table.items()) {
    if (!value.is_string()) {
      fields.add_fault(name + " is " + shown(table) + ", not names with texts");
      return {};
    }
    texts[key] = value.get<std::string>();
  }
  return texts;
}

// Report values that are valid by themselves but never occur together in an engine.
void add_misfits(const Manifest& manifest, Fields& fields) {
  const auto& known = dialects();
  const auto dialect = std::find_if(known.begin(), known.end(), [&](const Dialect& each) {
    return manifest.dialect == each.name;
  });
  const auto& precisions = dialect->precisions;
  if (std::find(precisions.begin(), precisions.end(), manifest.precision) == precisions.end()) {
    fields.add_fault("dialect " + manifest.dialect + " has no precision " + manifest.precision);
  }
  const bool is_compiled = manifest.backend.rfind("tensorrt", 0) == 0 && dialect->has_plans;
  if (manifest.backend != dialect->backend && !is_compiled) {
    fields.add_fault("backend " + manifest.backend + " does not run dialect " + manifest.dialect);
  }
  if (manifest.prefix_length >= manifest.capacity) {
    fields.add_fault("prefix_length " + std::to_string(manifest.prefix_length) +
                     " leaves no room in capacity " + std::to_string(manifest.capacity));
  }
}

}  // namespace

Json read_manifest(const fs::path& directory) {
  std::error_code ignored;
  if (!fs::is_directory(directory, ignored)) {
    throw Fault(FaultKind::kEngine,
                text_of(directory) + " is not a directory; build one: make engine MODEL=...");
  }
  const fs::path path = directory / kManifestFile;
  if (!fs::exists(path, ignored)) {
    throw Fault(FaultKind::kEngine, text_of(directory) + " has no " + kManifestFile +
                                        "; build an engine: make engine MODEL=...");
  }
  return read_json_object(path, FaultKind::kEngine, "rebuild the engine", kMaxManifestBytes);
}

std::vector<std::string> format_faults(const Json& data) {
  const auto format = data.find("format"), version = data.find("format_version");
  if (format == data.end() || *format != kFormat) {
    const Json found = format == data.end() ? Json() : *format;
    return {"format is " + shown(found) + ", not '" + kFormat + "': not a bita-edge engine"};
  }
  const Json found = version == data.end() ? Json() : *version;
  for (const int64_t known : kFormatVersions) {
    if (found.is_number_integer() && found == known) return {};
  }
  return {"format version " + shown(found) +
          "; this bita-edge reads 2, 3, 4: rebuild the engine with it"};
}

Manifest parse_manifest(const Json& data, std::vector<std::string>& faults) {
  const size_t num_before = faults.size();
  Fields fields(data, std::string(kManifestFile) + ": ", faults);
  Manifest found;
  found.model = take_text(fields, "model");
  found.family = take_text(fields, "family");
  take_text(fields, "tuned_on");
  found.created_by = take_text(fields, "created_by");
  found.backend =
      take_choice(fields, "backend", {"ort-cpu", "ort-cuda", "tensorrt", "tensorrt-rtx"});
  found.precision = take_choice(fields, "precision", {"fp32", "fp16", "int8", "int4", "fp8"});
  found.mode = take_choice(fields, "mode", {"exact", "tree"});
  const std::pair<const char*, int64_t*> sizes[] = {
      {"num_layers", &found.num_layers},       {"num_kv_heads", &found.num_kv_heads},
      {"head_dim", &found.head_dim},           {"hidden_size", &found.hidden_size},
      {"vocab_size", &found.vocab_size},       {"capacity", &found.capacity},
      {"num_ranks", &found.num_ranks},         {"num_masks", &found.num_masks},
      {"prefix_length", &found.prefix_length}, {"lora_rank", &found.lora_rank},
      {"pair_rank", &found.pair_rank}};
  for (size_t i = 0; i < std::size(sizes); ++i) {
    *sizes[i].second = fields.whole(sizes[i].first, i < 8 ? 1 : 0, kMaxSize);
  }
  std::vector<std::string> names;
  for (const Dialect& each : dialects()) names.emplace_back(each.name);
  found.dialect = take_choice(fields, "dialect", names, "ort");
  found.requires_versions = take_texts(fields, "requires");
  if (faults.size() == num_before) add_misfits(found, fields);
  return found;
}

}  // namespace bita
