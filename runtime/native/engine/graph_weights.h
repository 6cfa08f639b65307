// Where a graph says that its weights are: the locations of external data in a file of ONNX.
//
// ONNX Runtime before 1.25 opens whatever path stands there, so the locations are read before the
// file is loaded (`bita/graph_weights.py`).
#pragma once

#include <set>
#include <string>
#include <string_view>

namespace bita {

// Every location of external data in a graph. Throws std::runtime_error for what is not a graph as
// the libraries of ONNX write it.
std::set<std::string> weight_locations(std::string_view graph);

}  // namespace bita
