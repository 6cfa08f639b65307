#include "pair_tables.h"

#include <algorithm>

#include "../base/files.h"
#include "../base/mapped_file.h"
#include "../kernels/numbers.h"
#include "tensor_file.h"

namespace bita {

namespace {

bool is_within(const std::vector<uint16_t>& halves) {
  return std::all_of(halves.begin(), halves.end(),
                     [](uint16_t half) { return (half & 0x7FFF) <= 0x7BFF; });
}

std::vector<uint16_t> halves_of(const StoredTensor& tensor) {
  if (tensor.type == "F16") return tensor.numbers<uint16_t>();
  const std::vector<float> floats = tensor.floats();
  std::vector<uint16_t> halves(floats.size());
  std::transform(floats.begin(), floats.end(), halves.begin(), to_half);
  return halves;
}

// The faults of a file's tables for an engine.
std::vector<std::string> pair_table_faults(const TensorFile& file, const Manifest& manifest) {
  const std::vector<int64_t> wanted = {manifest.vocab_size, manifest.pair_rank};
  std::vector<std::string> faults;
  for (const char* side : {"left", "right"}) {
    const auto found = file.tensors.find(side);
    if (found == file.tensors.end()) {
      faults.push_back(std::string("there is no table ") + side);
    } else if (found->second.shape != wanted || !found->second.is_float()) {
      faults.push_back(std::string(side) + " is " + found->second.type + " " +
                       text_of(found->second.shape) + ", not " + text_of(wanted) +
                       " of F32, F16, BF16");
    } else if (!is_within(halves_of(found->second))) {
      faults.push_back(std::string(side) + " has values that are not finite, or beyond 65504");
    }
  }
  for (const auto& [name, tensor] : file.tensors) {
    if (name != "left" && name != "right") {
      faults.push_back(shown(name) + " is not a table of pair scores");
    }
  }
  return faults;
}

// Copy the tables of a file.
PairTables copy_tables(const TensorFile& file, int64_t rank) {
  struct Copies {
    std::vector<uint16_t> left, right;
  };
  auto copies = std::make_shared<Copies>();
  copies->left = halves_of(file.tensors.at("left"));
  copies->right = halves_of(file.tensors.at("right"));
  return {rank, copies->left.data(), copies->right.data(), copies};
}

// The address of a tensor in a mapping of its file; null if it is not aligned for its numbers.
const uint16_t* mapped_halves(const TensorFile& file, const StoredTensor& tensor,
                              const MappedFile& mapping) {
  const auto offset = static_cast<size_t>(tensor.data.data() - file.content->data());
  const bool fits = tensor.type == "F16" && offset % alignof(uint16_t) == 0 &&
                    mapping.size() == file.content->size();
  return fits ? reinterpret_cast<const uint16_t*>(mapping.data() + offset) : nullptr;
}

}  // namespace

PairTables parse_pair_tables(std::string content, const Manifest& manifest,
                             const std::string& subject) {
  TensorFile file;
  try {
    file = parse_tensor_file(std::move(content));
  } catch (const std::runtime_error& error) {
    throw Fault(FaultKind::kEngine, subject + " is not a whole safetensors file (" + error.what() +
                                        "); rebuild the engine");
  }
  raise_faults(FaultKind::kEngine, subject + " is broken; rebuild the engine",
               pair_table_faults(file, manifest));
  return copy_tables(file, manifest.pair_rank);
}

std::shared_ptr<const PairTables> read_pair_tables(const EngineDirectory& engine) {
  if (!engine.manifest.pair_rank) return nullptr;
  const std::filesystem::path path = engine.file(kPairsFile);
  const TensorFile file = read_tensor_file(path, FaultKind::kEngine, "rebuild the engine");
  raise_faults(FaultKind::kEngine, text_of(path) + " is broken; rebuild the engine",
               pair_table_faults(file, engine.manifest));
  const int64_t rank = engine.manifest.pair_rank;
  const auto mapping = std::make_shared<const MappedFile>(path);
  const uint16_t* left = mapped_halves(file, file.tensors.at("left"), *mapping);
  const uint16_t* right = mapped_halves(file, file.tensors.at("right"), *mapping);
  if (!left || !right) return std::make_shared<const PairTables>(copy_tables(file, rank));
  return std::make_shared<const PairTables>(PairTables{rank, left, right, mapping});
}

}  // namespace bita
