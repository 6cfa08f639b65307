// The pair score tables of an engine.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine_directory.h"

namespace bita {

// The pair scores of an engine: two float16 tables [V, r], in memory that `owner` holds.
struct PairTables {
  int64_t rank = 0;
  const uint16_t* left = nullptr;
  const uint16_t* right = nullptr;
  std::shared_ptr<const void> owner;
};

// Parse the content of a file for an engine with this manifest; `subject` names it in messages.
// Throws a Fault.
PairTables parse_pair_tables(std::string content, const Manifest& manifest,
                             const std::string& subject);

// Map the tables of an engine; null for an engine without pair scores. They stay in their file, of
// which a text needs a few pages: changing the file while it is in use affects drafts, but no text.
// Throws a Fault if the tables do not match the engine.
std::shared_ptr<const PairTables> read_pair_tables(const EngineDirectory& engine);

}  // namespace bita
