// Whether a graph has the inputs and outputs that its engine's manifest says.
//
// Buffers are allocated by the manifest and bound to the graph, so this is seen before the first
// is.
#pragma once

#include <string>
#include <vector>

#include "graph_session.h"

namespace bita {

// Every difference between a graph and its manifest; empty for none.
std::vector<std::string> graph_faults(const Manifest& manifest, const GraphValues& inputs,
                                      const GraphValues& outputs);

}  // namespace bita
