// Checks that a graph has the inputs and outputs that its engine's manifest describes.
//
// Buffers are allocated as the manifest says and bound to the graph, so this check comes first.
#pragma once

#include <string>
#include <vector>

#include "graph_session.h"

namespace bita {

// Every difference between a graph and its manifest; empty if there is none.
std::vector<std::string> graph_faults(const Manifest& manifest, const GraphValues& inputs,
                                      const GraphValues& outputs);

}  // namespace bita
