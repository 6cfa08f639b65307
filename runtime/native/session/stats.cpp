#include "stats.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

namespace bita {

void Stats::count_step(const Path& path, int64_t num_guesses) {
  ++num_steps;
  num_accepted += static_cast<int64_t>(path.size());
  for (size_t depth = 0; depth < path.size(); ++depth) {
    ++accepted_by_depth[std::min(depth, kMaxDepthCounted - 1)];
  }
  const auto limit = static_cast<size_t>(num_guesses);
  // nodes off the spine hold a mask's draft
  for (size_t i = 0; i < std::min(path.size(), limit) && path[i] == 1; ++i) ++num_from_text;
}

int64_t peak_host_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) != 0) continue;
    int64_t kilobytes = 0;
    std::istringstream(line.substr(6)) >> kilobytes;
    return 1024 * kilobytes;
  }
  return 0;
}

}  // namespace bita
