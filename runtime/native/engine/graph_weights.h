// Locations of a graph's weights: the paths of external data in an ONNX file.
//
// ONNX Runtime before 1.25 opens any path that is given there, so the locations are read before the
// file is loaded (`bita/graph_weights.py`).
#pragma once

#include <set>
#include <string>
#include <string_view>

namespace bita {

// Every location of external data in a graph. Throws std::runtime_error unless the graph is encoded
// the way ONNX libraries write it.
std::set<std::string> weight_locations(std::string_view graph);

}  // namespace bita
