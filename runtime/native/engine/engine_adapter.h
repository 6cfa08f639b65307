// Which adapters an engine takes, and its own.
#pragma once

#include "adapter.h"
#include "engine_directory.h"

namespace bita {

// Throws a Fault that lists why the engine's graph cannot run this adapter.
void check_adapter(const EngineDirectory& engine, const Adapter& adapter);

// The engine's own adapter. Throws a Fault, also if it is not as the manifest says.
Adapter read_own_adapter(const EngineDirectory& engine);

}  // namespace bita
