// The tables of pair scores in an engine.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine_directory.h"

namespace bita {

// The pair scores of an engine: float16 [V, r] each, in memory that `owner` holds.
struct PairTables {
  int64_t rank = 0;
  const uint16_t* left = nullptr;
  const uint16_t* right = nullptr;
  std::shared_ptr<const void> owner;
};

// Those of a file's content, for an engine with this manifest; `subject` names it. Throws a Fault.
PairTables parse_pair_tables(std::string content, const Manifest& manifest,
                             const std::string& subject);

// Null for an engine without pair scores. They stay in their file, of which a text needs a few
// pages: a file that is changed meanwhile changes drafts, and no text. Throws a Fault if the tables
// are not the engine's.
std::shared_ptr<const PairTables> read_pair_tables(const EngineDirectory& engine);

}  // namespace bita
