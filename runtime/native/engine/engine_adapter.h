// Checks of the adapters that an engine accepts, and its own adapter.
#pragma once

#include "adapter.h"
#include "engine_directory.h"

namespace bita {

// Throws a Fault that lists why the engine's graph cannot run this adapter.
void check_adapter(const EngineDirectory& engine, const Adapter& adapter);

// Read the engine's own adapter. Throws a Fault, also if it does not match the manifest.
Adapter read_own_adapter(const EngineDirectory& engine);

}  // namespace bita
