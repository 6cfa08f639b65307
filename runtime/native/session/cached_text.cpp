#include "cached_text.h"

namespace bita {

void CachedText::commit(const std::vector<int64_t>& path) {
  for (size_t to = 0; to < path.size(); ++to) {
    const int64_t target = length_ + static_cast<int64_t>(to), source = length_ + path[to];
    if (target != source) move_slot(source, target);  // otherwise it is on the spine
  }
  length_ += static_cast<int64_t>(path.size());
}

}  // namespace bita
