#include "engine_directory.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>
#include <vector>

#include "../base/files.h"
#include "../base/sha256.h"
#include "graph_weights.h"

namespace bita {

namespace {

constexpr const char* kRequired[] = {kGraphFile, kWeightsFile,   kAdapterFile,
                                     kTreeFile,  kTokenizerFile, kGenerationFile};
constexpr const char* kIncoming = ".engine.incoming";  // files on their way to their final names
constexpr size_t kMaxFiles = 1000;                     // in an engine; about ten are normal
constexpr size_t kMaxNameBytes = 255;                  // in a file name, as on all common systems
constexpr uint64_t kMaxGraphBytes = 2u << 30;          // as in protobuf
constexpr std::chrono::seconds kPatience(10);          // to wait for a writer's renames
constexpr int kMaxReads = 10;                          // attempts while others replace the engine

bool is_digest(const Json& value) {
  if (!value.is_string() || value.get_ref<const std::string&>().size() != 64) return false;
  const auto& text = value.get_ref<const std::string&>();
  return text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// Why this is not a valid name of a file in the engine's directory; empty if it is.
std::string name_fault(const std::string& name) {
  const bool is_place = name.empty() || name == "." || name == "..";
  if (is_place || name.find_first_of(std::string("/\\\0", 3)) != std::string::npos) {
    return "files: " + shown(name) + " points out of the engine, or is not the name of a file";
  }
  return name.size() > kMaxNameBytes
             ? "files: " + shown(name) + " is too long for the name of a file"
             : "";
}

std::map<std::string, FileEntry> parse_table(const Json& files, std::vector<std::string>& faults) {
  std::map<std::string, FileEntry> table;
  if (!files.is_object()) {
    faults.push_back(std::string(kManifestFile) + ": files is " + shown(files) +
                     ", not a table of files");
    return table;
  }
  if (files.size() > kMaxFiles) {
    faults.push_back(std::string(kManifestFile) + ": files lists " + std::to_string(files.size()) +
                     " files; an engine has at most " + std::to_string(kMaxFiles));
    return table;
  }
  for (const auto& [name, entry] : files.items()) {
    std::string fault = name_fault(name);
    const Json bytes = entry.is_object() ? entry.value("bytes", Json()) : Json();
    const Json digest = entry.is_object() ? entry.value("sha256", Json()) : Json();
    if (fault.empty() && !(bytes.is_number_unsigned() && is_digest(digest))) {
      fault =
          "files: entry of " + shown(name) + " is " + shown(entry) + ", not its size and sha256";
    }
    if (!fault.empty()) {
      faults.push_back(std::string(kManifestFile) + ": " + fault);
    } else {
      table[name] = {bytes.get<int64_t>(), digest.get<std::string>()};
    }
  }
  return table;
}

void add_missing(const EngineDirectory& engine, std::vector<std::string>& faults) {
  std::vector<std::string> needed(std::begin(kRequired), std::end(kRequired));
  if (engine.manifest.pair_rank) needed.emplace_back(kPairsFile);
  // optional files must be listed if they exist; a dangling link counts as existing
  for (const char* name : {kTemplateFile, kPiecesFile}) {
    std::error_code ignored;
    if (fs::symlink_status(engine.file(name), ignored).type() != fs::file_type::not_found) {
      needed.emplace_back(name);
    }
  }
  for (const std::string& name : needed) {
    if (!engine.has(name)) faults.push_back(std::string(kManifestFile) + " does not list " + name);
  }
}

// Why a file does not match its entry; empty if it does. Only regular files are opened.
std::string file_fault(const fs::path& path, const FileEntry& entry, bool checks_hash) {
  const std::string name = path.filename().string();
  struct stat status = {};
  if (stat(path.c_str(), &status) != 0) {
    return errno == ENOENT ? name + " is missing; copy the whole directory or rebuild the engine"
                           : name + " cannot be read (" + std::strerror(errno) +
                                 "); copy it again or rebuild the engine";
  }
  if (!S_ISREG(status.st_mode)) {
    return name + " is not a regular file; copy the whole directory or rebuild the engine";
  }
  if (status.st_size != entry.num_bytes) {
    return name + " has " + std::to_string(status.st_size) + " bytes, not " +
           std::to_string(entry.num_bytes) + "; copy it again or rebuild the engine";
  }
  if (!checks_hash) return "";
  try {
    if (sha256_of_file(path) == entry.sha256) return "";
  } catch (const std::runtime_error& error) {
    return name + " cannot be read (" + error.what() + "); copy it again or rebuild the engine";
  }
  return name + " is damaged (sha256 differs); copy it again or rebuild the engine";
}

// Why this graph must not be loaded; empty if its weights are in the graph itself or in
// kWeightsFile.
std::string graph_fault(const fs::path& path) {
  std::set<std::string> locations;
  try {
    locations = weight_locations(read_regular_file(path, kMaxGraphBytes));
  } catch (const std::runtime_error& error) {
    return std::string(kGraphFile) + " is not a readable graph (" + error.what() +
           "); rebuild the engine";
  }
  locations.erase(kWeightsFile);
  if (locations.empty()) return "";
  return std::string(kGraphFile) + " takes weights from " + shown(*locations.begin()) +
         ", which is not " + kWeightsFile + "; rebuild the engine";
}

bool needs_hash(const std::string& name, bool checks_weights) {
  return checks_weights || (name != kWeightsFile && name != kPlanFile);
}

// Hashes files on several threads, since the largest one takes most of the time.
void add_file_faults(const EngineDirectory& engine, bool checks_weights,
                     std::vector<std::string>& faults) {
  std::vector<std::string> names, found(engine.files.size());
  for (const auto& [name, entry] : engine.files) {
    // plans are for TensorRT, which this library does not use
    if (name != kPlanFile) names.push_back(name);
  }
  std::vector<std::thread> threads;
  const auto check = [&](size_t first, size_t stride) {
    for (size_t i = first; i < names.size(); i += stride) {
      const std::string& name = names[i];
      found[i] =
          file_fault(engine.file(name), engine.files.at(name), needs_hash(name, checks_weights));
      if (found[i].empty() && name == kGraphFile) found[i] = graph_fault(engine.file(name));
    }
  };
  const size_t count = std::min<size_t>(2, std::max(1u, std::thread::hardware_concurrency()));
  for (size_t i = 1; i < count; ++i) {
    try {
      threads.emplace_back(check, i, count);
    } catch (const std::system_error&) {
      check(i, count);
    }
  }
  check(0, count);
  for (std::thread& thread : threads) thread.join();
  for (const std::string& fault : found) {
    if (!fault.empty()) faults.push_back(fault);
  }
}

EngineDirectory read_directory(const fs::path& path, bool checks_weights) {
  const Json data = read_manifest(path);
  const std::string subject = "engine " + text_of(path);
  raise_faults(FaultKind::kEngine, subject, format_faults(data));
  std::vector<std::string> faults;
  EngineDirectory engine{path, parse_manifest(data, faults), {}};
  const size_t num_faults = faults.size();
  engine.files = parse_table(data.value("files", Json()), faults);
  if (faults.size() == num_faults) {
    add_missing(engine, faults);
    add_file_faults(engine, checks_weights, faults);
  }
  raise_faults(FaultKind::kEngine, subject, faults);
  return engine;
}

// Values that every writer changes; zeros if there is no engine.
std::array<int64_t, 5> state_of(const fs::path& path) {
  struct stat directory = {}, manifest = {};
  if (stat(path.c_str(), &directory) != 0) return {};
  if (stat((path / kManifestFile).c_str(), &manifest) != 0) return {};
  return {static_cast<int64_t>(directory.st_dev), static_cast<int64_t>(directory.st_ino),
          static_cast<int64_t>(manifest.st_ino),
          static_cast<int64_t>(manifest.st_mtim.tv_sec) * 1000000000 + manifest.st_mtim.tv_nsec,
          static_cast<int64_t>(manifest.st_size)};
}

// Wait until a writer has moved all its files to their final names.
void settle(const fs::path& path) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  std::error_code ignored;
  while (fs::is_directory(path / kIncoming, ignored)) {
    if (std::chrono::steady_clock::now() > end) {
      throw Fault(FaultKind::kEngine,
                  "engine " + text_of(path) +
                      " is being replaced, or its writer was killed in the middle; run as a user "
                      "who may write it: bita inspect " +
                      text_of(path));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

}  // namespace

EngineDirectory open_directory(const fs::path& path, bool checks_weights) {
  for (int i = 0; i < kMaxReads; ++i) {
    settle(path);
    const auto before = state_of(path);
    try {
      EngineDirectory engine = read_directory(path, checks_weights);
      if (state_of(path) == before) return engine;
    } catch (const Fault&) {
      if (state_of(path) == before) throw;
    }
  }
  throw Fault(FaultKind::kEngine, "engine " + text_of(path) +
                                      " was replaced again and again while it was read; try again "
                                      "when its writers are done");
}

}  // namespace bita
